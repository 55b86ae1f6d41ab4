//! The loader itself: VMs created, watched, and ended.

use crate::{
    disks,
    guest::{Guest, Refused},
    peers::{Lent, Peers},
    registers::{self, Machine, Own},
    table::{State, Table},
    text,
};
use alloc::{
    borrow::ToOwned,
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};
use entropy::Random;
use protocol::{
    abi::Error,
    layout::PAGE,
    manifest::{Vm, VmTable},
    service::{
        VmNumber, VmRef, console,
        loader::{MemoryInfo, Request, Response, VmInfo},
        pager::{self, ImageNumber, Stop, VmEntry},
        switch,
    },
};
use server_runtime::CallError;

/// Stops handled before requests get their turn.
const STOPS_AT_ONCE: usize = 32;
/// Why a VM is no more.
const STOPPED: &str = "stopped by the operator";
/// VMs started or ended, and looked at, for one request about many.
const MANY_AT_ONCE: u64 = 16;
const LOOKS_AT_ONCE: usize = 2048;
/// Bytes of a list that an answer has room for; a message has 4,096.
const LIST_BYTES: usize = 3500;
/// Upper bound of the numbers in an entry of a list, encoded, besides its texts.
const ENTRY_BYTES: usize = 64;
/// A server that the system has not, or that was never started.
pub(crate) const NO_SUCH_SERVER: CallError = CallError::Kernel(Error::NoCapability);
/// Times that a call is tried anew after the called server was restarted in the middle of it.
const ATTEMPTS: usize = 3;

/// The loader.
#[derive(Debug)]
pub struct Loader<'a> {
    bundle: &'a [u8],
    vms: VmTable<'a>,
    machine: Machine,
    random: Random,
    table: Table,
    /// Images that the pager has, by name.
    images: BTreeMap<String, ImageNumber>,
    /// Where in the pager's list of VMs the next one stands that gets back what it has lost; `None`: all have.
    attaching: Option<u32>,
}

impl<'a> Loader<'a> {
    /// A loader for these VMs of the manifest, with images from `bundle`. `incarnation`: restarts of the loader so far.
    pub fn new(bundle: &'a [u8], vms: VmTable<'a>, machine: Machine, random: Random, incarnation: u32) -> Loader<'a> {
        let table = Table::new(vms.len(), incarnation);
        Loader { bundle, vms, machine, random, table, images: BTreeMap::new(), attaching: None }
    }

    /// Starts all VMs of the manifest. One that cannot be started is reported; the others go on.
    pub fn start_all(&mut self, peers: &mut impl Peers) {
        let (begun, mut refused) = (peers.now(), 0);
        for index in 0..self.table.len() {
            refused += usize::from(self.start(peers, index).is_err());
        }
        let (started, took) = (self.table.len() - refused, peers.now().saturating_sub(begun) / 1_000_000);
        peers.log(format_args!("{started} VMs started, {refused} refused, in {took} ms"));
    }

    /// After a restart of the loader: finds the VMs that are there again. Those that are not stay stopped, since they may have
    /// ended before: the operator starts them.
    pub fn adopt_all(&mut self, peers: &mut impl Peers) {
        let mut found = 0;
        let mut from = Some(0);
        while let Some(position) = from {
            from = self
                .each_listed(peers, position, |loader, peers, entry| found += u64::from(loader.adopt(peers, entry)));
        }
        peers.log(format_args!("{found} VMs found again"));
        let missing: Vec<_> = (0..self.table.len())
            .filter(|index| self.table.running(*index).is_none())
            .map(|index| self.name(index))
            .collect();
        if !missing.is_empty() {
            peers.log(format_args!("not running after a restart of the loader: {}", missing.join(", ")));
        }
    }

    /// Does something for some of the VMs that the pager has, as many as it names in one answer; where to go on.
    fn each_listed<P: Peers>(
        &mut self,
        peers: &mut P,
        position: u32,
        mut each: impl FnMut(&mut Self, &mut P, VmEntry),
    ) -> Option<u32> {
        match again(|| peers.pager(&pager::Request::List { from: position }, Lent::Nothing)) {
            Ok(pager::Response::Vms(entries, more)) => {
                entries.into_iter().for_each(|entry| each(self, peers, entry));
                more.filter(|next| *next > position)
            }
            other => {
                peers.log(format_args!("cannot ask the pager for VMs: {}", unexpected(other)));
                None
            }
        }
    }

    /// Takes a VM that is there into the table; whether it goes on.
    fn adopt(&mut self, peers: &mut impl Peers, entry: VmEntry) -> bool {
        let index = self.table.entry_of(entry.vm).filter(|index| self.table.running(*index).is_none());
        let vm = index.and_then(|index| self.vms.get(index));
        let (Some(index), Some(vm)) = (index, vm.filter(|vm| self.guest(vm).is_ok())) else {
            peers.log(format_args!("destroying VM {}, of which the manifest knows nothing", entry.vm));
            let _ = peers.pager(&pager::Request::Destroy(entry.vm), Lent::Nothing);
            return false;
        };
        self.images.insert(vm.image, entry.image);
        self.table.set_running(index, entry.vm);
        self.attach_again(peers, index, entry.at.unwrap_or(VmRef::NOWHERE));
        match entry.stop {
            Some(stop) => self.stopped(peers, index, &stop),
            None if !entry.started => {
                if let Err(reason) = self.let_run(peers, entry.vm) {
                    self.give_up(peers, index, &reason);
                }
            }
            None => {}
        }
        self.table.running(index).is_some()
    }

    fn name(&self, index: usize) -> String {
        self.vms.get(index).map_or(String::new(), |vm| vm.name)
    }

    fn named(&self, name: &str) -> Option<usize> {
        self.vms.iter().position(|vm| vm.name == name)
    }

    /// What a VM is made from.
    fn guest(&self, vm: &Vm) -> Result<Guest, Refused> {
        Guest::find(self.bundle, &vm.image, vm.memory)
    }

    /// Creates and starts the VM of an entry; why not, if not.
    fn start(&mut self, peers: &mut impl Peers, index: usize) -> Result<(), String> {
        let result = self.try_start(peers, index);
        if let Err(reason) = &result {
            let name = self.name(index);
            peers.log(format_args!("vm {name} refused: {reason}"));
            self.table.set_stopped(index, format!("refused: {reason}"));
        }
        result
    }

    fn try_start(&mut self, peers: &mut impl Peers, index: usize) -> Result<(), String> {
        let vm = self.vms.get(index).ok_or("no such VM")?;
        let guest = self.guest(&vm).map_err(|reason| reason.to_string())?;
        if guest.disk().is_none() && !vm.disks.is_empty() {
            return Err(format!("it has virtual disks, but its image `{}` uses none", vm.image));
        }
        let disks = disks::registers(peers, &vm)?;
        let number = self.table.number(index).ok_or("it was started too often: no number is left")?;
        let seed = self.random.seed();
        let own = Own { number, memory: guest.memory, created: peers.now(), seed, disks };
        let page = registers::build(&self.machine, &vm, &own).map_err(|_| "its name or its arguments are too long")?;
        let mut image = self.image(peers, &vm.image, &guest)?;
        let mut forgotten = false;
        let created = loop {
            let request = pager::Request::Create {
                vm: number,
                image,
                memory: guest.memory,
                entry: guest.entry,
                windows: guest.windows,
            };
            match peers.pager(&request, Lent::Registers(&page)) {
                Ok(pager::Response::Created(created)) => break created,
                // The pager has forgotten images that no VM used.
                Ok(pager::Response::NotFound) if !forgotten => {
                    forgotten = true;
                    self.images.remove(&vm.image);
                    image = self.image(peers, &vm.image, &guest)?;
                }
                Ok(pager::Response::OutOfMemory) => {
                    return Err(format!("not enough memory for its {} KiB", guest.memory / 1024));
                }
                Ok(pager::Response::OutOfSwap) => {
                    return Err(format!("not enough swap space is left for its {} KiB", guest.memory / 1024));
                }
                other => return Err(format!("the pager did not create it: {}", unexpected(other))),
            }
        };
        self.table.set_running(index, number);
        let ready = self.attach(peers, index, created).and_then(|()| self.let_run(peers, number));
        if let Err(reason) = ready {
            self.end(peers, index, number);
            return Err(reason);
        }
        Ok(())
    }

    /// The number of an image at the pager, which is given it if it does not have it.
    fn image(&mut self, peers: &mut impl Peers, name: &str, guest: &Guest) -> Result<ImageNumber, String> {
        if let Some(number) = self.images.get(name) {
            return Ok(*number);
        }
        let request = pager::Request::DefineImage { parts: guest.parts.clone() };
        match peers.pager(&request, Lent::Bundle { offset: guest.offset, pages: guest.pages }) {
            Ok(pager::Response::Image(number)) => {
                self.images.insert(name.to_owned(), number);
                Ok(number)
            }
            Ok(pager::Response::OutOfMemory) => Err("not enough memory for its image".to_owned()),
            other => Err(format!("the pager did not take its image: {}", unexpected(other))),
        }
    }

    fn let_run(&self, peers: &mut impl Peers, vm: VmNumber) -> Result<(), String> {
        match peers.pager(&pager::Request::Start(vm), Lent::Nothing) {
            Ok(pager::Response::Done) => Ok(()),
            other => Err(format!("the pager did not start it: {}", unexpected(other))),
        }
    }

    /// Gives a VM its disks, its port at the switch and its console. A switch or console that is gone is no reason to refuse the VM: it is
    /// attached when the server is back. Without its disks a VM is not started.
    fn attach(&self, peers: &mut impl Peers, index: usize, at: VmRef) -> Result<(), String> {
        let (Some(vm), Some(number)) = (self.vms.get(index), self.table.running(index)) else {
            return Ok(());
        };
        let guest = self.guest(&vm).map_err(|reason| reason.to_string())?;
        disks::attach(peers, &vm, &guest, number, at)?;
        Self::attach_nic(peers, &vm, &guest, number, at)?;
        Self::attach_console(peers, &vm.name, &guest, number, at);
        Ok(())
    }

    fn attach_nic(peers: &mut impl Peers, vm: &Vm, guest: &Guest, number: VmNumber, at: VmRef) -> Result<(), String> {
        if let Some((queue, length)) = guest.nic() {
            let request = switch::Request::Attach { vm: number, at, mac: vm.mac, address: vm.address, queue, length };
            match again(|| peers.switch(&request)) {
                Ok(switch::Response::Done) => {}
                Ok(switch::Response::Clash) => {
                    return Err("its MAC or IP address belongs to another VM".to_owned());
                }
                Ok(switch::Response::Full) => return Err("the switch has no port left".to_owned()),
                Err(NO_SUCH_SERVER) => peers.log(format_args!("vm {} has no network: there is no switch", vm.name)),
                other => peers.log(format_args!("vm {} has no network now: {}", vm.name, unexpected(other))),
            }
        }
        Ok(())
    }

    fn attach_console(peers: &mut impl Peers, name: &str, guest: &Guest, vm: VmNumber, at: VmRef) {
        let Some(page) = guest.console() else { return };
        match again(|| peers.console(&console::Request::Attach { vm, at, name, page })) {
            Ok(console::Response::Done) => {}
            // Nobody can be told then.
            Err(NO_SUCH_SERVER) => {}
            Ok(console::Response::Full) => peers.log(format_args!("vm {name} has no console: no room for another")),
            other => peers.log(format_args!("vm {name} has no console now: {}", unexpected(other))),
        }
    }

    /// After a restart of the switch, the console, the server of virtual disks or the loader: a VM gets back what it has lost.
    fn attach_again(&self, peers: &mut impl Peers, index: usize, at: VmRef) {
        let (Some(vm), Some(number)) = (self.vms.get(index), self.table.running(index)) else { return };
        let Ok(guest) = self.guest(&vm) else { return };
        let lost = guest.nic().is_some()
            && !matches!(
                again(|| peers.switch(&switch::Request::IsAttached(number))),
                Ok(switch::Response::Done) | Err(NO_SUCH_SERVER)
            );
        if lost && let Err(reason) = Self::attach_nic(peers, &vm, &guest, number, at) {
            peers.log(format_args!("vm {} has no network now: {reason}", vm.name));
        }
        if disks::are_lost(peers, &vm, &guest, number)
            && let Err(reason) = disks::attach(peers, &vm, &guest, number, at)
        {
            peers.log(format_args!("vm {} has no disks now: {reason}", vm.name));
        }
        // The console takes it in the place of the one before.
        Self::attach_console(peers, &vm.name, &guest, number, at);
    }

    /// A server was restarted: all VMs get back what they have lost there, bit by bit ([`Loader::attach_some`]).
    pub fn peer_restarted(&mut self) {
        self.attaching = Some(0);
    }

    /// Gives some VMs back what they have lost by the restart of a server. Where they are is known to the pager only. Whether there are more.
    pub fn attach_some(&mut self, peers: &mut impl Peers) -> bool {
        let Some(position) = self.attaching else { return false };
        self.attaching = self.each_listed(peers, position, |loader, peers, entry| {
            let Some(index) = loader.table.of(entry.vm) else { return };
            match &entry.stop {
                // The pager does not tell of it again.
                Some(stop) => loader.stopped(peers, index, stop),
                None => loader.attach_again(peers, index, entry.at.unwrap_or(VmRef::NOWHERE)),
            }
        });
        self.attaching.is_some()
    }

    /// Takes back a VM's disks, port and console, and its memory. Servers that are gone have forgotten it anyway.
    fn end(&self, peers: &mut impl Peers, index: usize, vm: VmNumber) {
        // What it was made from can be looked up: it was when it was made. If not, the servers say that they know nothing of it.
        let guest = self.vms.get(index).and_then(|vm| self.guest(&vm).ok());
        if guest.as_ref().is_none_or(|guest| guest.disk().is_some()) {
            disks::detach(peers, vm);
        }
        if guest.as_ref().is_none_or(|guest| guest.nic().is_some()) {
            let _ = again(|| peers.switch(&switch::Request::Detach(vm)));
        }
        if guest.is_none_or(|guest| guest.console().is_some()) {
            let _ = again(|| peers.console(&console::Request::Detach(vm)));
        }
        let _ = peers.pager(&pager::Request::Destroy(vm), Lent::Nothing);
    }

    fn give_up(&mut self, peers: &mut impl Peers, index: usize, why: &str) {
        if let Some(vm) = self.table.set_stopped(index, why.to_owned()) {
            self.end(peers, index, vm);
        }
        peers.log(format_args!("vm {} {why}", self.name(index)));
    }

    /// Takes VMs that stopped from the pager, a bounded number of them; whether there may be more.
    pub fn take_stops(&mut self, peers: &mut impl Peers) -> bool {
        for _ in 0..STOPS_AT_ONCE {
            match peers.pager(&pager::Request::NextStop, Lent::Nothing) {
                Ok(pager::Response::Stopped(Some((vm, stop)))) => match self.table.of(vm) {
                    Some(index) => self.stopped(peers, index, &stop),
                    None => {
                        peers.log(format_args!("destroying VM {vm}, which nobody has started"));
                        let _ = peers.pager(&pager::Request::Destroy(vm), Lent::Nothing);
                    }
                },
                Ok(pager::Response::Stopped(None)) => return false,
                other => {
                    peers.log(format_args!("cannot ask the pager for stopped VMs: {}", unexpected(other)));
                    return false;
                }
            }
        }
        true
    }

    /// A VM stopped.
    fn stopped(&mut self, peers: &mut impl Peers, index: usize, stop: &Stop) {
        let Some(vm) = self.table.running(index) else { return };
        let why = if *stop == Stop::Ready {
            match self.let_run(peers, vm) {
                Ok(()) => return,
                Err(reason) => reason,
            }
        } else {
            let guest = self.vms.get(index).and_then(|vm| self.guest(&vm).ok());
            text::stop(stop, guest.map_or(0, |guest| guest.memory))
        };
        self.give_up(peers, index, &why);
    }

    /// Carries out a request of the operator.
    pub fn request(&mut self, peers: &mut impl Peers, request: &Request) -> Response {
        match request {
            Request::List { from } => self.list(peers, *from),
            Request::Start(name) => match self.named(name) {
                None => Response::Unknown,
                Some(index) if self.table.running(index).is_some() => Response::WrongState,
                Some(index) => match self.start(peers, index) {
                    Ok(()) => Response::Done,
                    Err(reason) => Response::Failed(reason),
                },
            },
            Request::Stop(name) => match self.named(name) {
                None => Response::Unknown,
                Some(index) if self.table.running(index).is_none() => Response::WrongState,
                Some(index) => {
                    self.give_up(peers, index, STOPPED);
                    Response::Done
                }
            },
            Request::StartAll { prefix, from } => self.many(peers, prefix, *from, true),
            Request::StopAll { prefix, from } => self.many(peers, prefix, *from, false),
            Request::Memory => match peers.pager(&pager::Request::Pool, Lent::Nothing) {
                Ok(pager::Response::Pool {
                    total,
                    free,
                    vms,
                    suspended,
                    waiting,
                    swap_total,
                    swap_free,
                    page_ins,
                    page_outs,
                    ..
                }) => {
                    let [total, free, swap_total, swap_free] =
                        [total, free, swap_total, swap_free].map(|pages| pages.saturating_mul(PAGE / 1024));
                    Response::Memory(MemoryInfo {
                        total,
                        free,
                        swap_total,
                        swap_free,
                        vms,
                        suspended,
                        waiting,
                        page_ins,
                        page_outs,
                    })
                }
                other => Response::Failed(format!("the pager did not say: {}", unexpected(other))),
            },
        }
    }

    /// Starts or ends VMs whose names begin so. Of each that is ended there is no line in the log: the operator wants all.
    fn many(&mut self, peers: &mut impl Peers, prefix: &str, from: u64, start: bool) -> Response {
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(self.table.len());
        let (mut done, mut refused) = (0, 0);
        for index in from..self.table.len() {
            if done + refused >= MANY_AT_ONCE || index - from >= LOOKS_AT_ONCE {
                return Response::Many { done, refused, next: Some(index as u64) };
            }
            let running = self.table.running(index);
            if running.is_some() == start || !self.name(index).starts_with(prefix) {
                continue;
            }
            if start {
                match self.start(peers, index) {
                    Ok(()) => done += 1,
                    Err(_) => refused += 1,
                }
            } else if let Some(vm) = self.table.set_stopped(index, STOPPED.to_owned()) {
                self.end(peers, index, vm);
                done += 1;
            }
        }
        Response::Many { done, refused, next: None }
    }

    /// VMs by number of their entry: `from` is 0 or what the answer before said.
    fn list(&self, peers: &mut impl Peers, from: u64) -> Response {
        let mut vms = Vec::new();
        let mut room = LIST_BYTES;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        for index in from..self.table.len() {
            let (Some(vm), Some(state)) = (self.vms.get(index), self.table.state(index)) else { break };
            let memory = match self.guest(&vm) {
                Ok(guest) => guest.memory,
                Err(_) => vm.memory,
            };
            let bytes = vm.name.len() + vm.image.len() + ENTRY_BYTES;
            let bytes = bytes + if let State::Stopped(why) = state { why.len() } else { 0 };
            if bytes > room && !vms.is_empty() {
                return Response::Vms(vms, Some(index as u64));
            }
            room = room.saturating_sub(bytes);
            let mut info = VmInfo {
                number: index as u64 + 1,
                name: vm.name,
                image: vm.image,
                address: vm.address,
                memory: memory / 1024,
                used: 0,
                cpu_time: 0,
                stopped: None,
            };
            match state {
                State::Stopped(why) => info.stopped = Some(text::reason(why).to_owned()),
                State::Running(number) => {
                    info.number = number;
                    if let Ok(pager::Response::Usage { frames, cpu_time, .. }) =
                        peers.pager(&pager::Request::Usage(number), Lent::Nothing)
                    {
                        (info.used, info.cpu_time) = (frames.saturating_mul(PAGE / 1024), cpu_time);
                    }
                }
            }
            vms.push(info);
        }
        Response::Vms(vms, None)
    }
}

/// Calls again if the called server was restarted in the middle of it.
pub(crate) fn again<T>(mut call: impl FnMut() -> Result<T, CallError>) -> Result<T, CallError> {
    let mut result = call();
    for _ in 1..ATTEMPTS {
        if !matches!(result, Err(CallError::Restarted)) {
            break;
        }
        result = call();
    }
    result
}

/// An answer that does not fit, in words.
pub(crate) fn unexpected<T: core::fmt::Debug>(answer: Result<T, CallError>) -> String {
    match answer {
        Ok(response) => format!("it answered {response:?}"),
        Err(error) => error.to_string(),
    }
}
