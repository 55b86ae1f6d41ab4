//! The loader itself: VMs created, watched, and ended.

use crate::{
    disks,
    guest::{Guest, Refused},
    peers::{Lent, Peers},
    registers::{self, Machine, Own},
    table::{State, Table},
    templates::{Kind, Templates},
    text,
};
use alloc::{
    borrow::ToOwned,
    collections::BTreeMap,
    format,
    rc::Rc,
    string::{String, ToString},
    vec::Vec,
};
use entropy::Random;
use protocol::{
    abi::{Error, NEVER},
    layout::PAGE,
    manifest::{Vm, VmTable},
    registers::RegisterPage,
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
    incarnation: u32,
    /// Images that the pager has, by name.
    images: BTreeMap<String, ImageNumber>,
    /// What VMs are made from: by image, then by their memory as the manifest has it.
    guests: BTreeMap<String, Vec<(u64, Rc<Guest>)>>,
    templates: Templates,
    /// Of each run of the manifest, whether its VMs may be clones of each other; `None`: nobody has looked.
    cloneable: Vec<Option<bool>>,
    /// What is left of starting all VMs.
    starting: Option<Starting>,
    /// Where in the pager's list of VMs the next one stands that gets back what it has lost; `None`: all have.
    attaching: Option<u32>,
}

/// VMs of the manifest that are still to be started.
#[derive(Clone, Copy, Debug)]
struct Starting {
    /// The next one.
    next: usize,
    refused: usize,
    begun: u64,
    /// When to go on.
    at: u64,
}

impl<'a> Loader<'a> {
    /// A loader for these VMs of the manifest, with images from `bundle`. `incarnation`: restarts of the loader so far.
    pub fn new(bundle: &'a [u8], vms: VmTable<'a>, machine: Machine, random: Random, incarnation: u32) -> Loader<'a> {
        let table = Table::new(vms.len(), incarnation);
        Loader {
            bundle,
            vms,
            machine,
            random,
            table,
            incarnation,
            images: BTreeMap::new(),
            guests: BTreeMap::new(),
            templates: Templates::default(),
            cloneable: Vec::new(),
            starting: None,
            attaching: None,
        }
    }

    /// All VMs of the manifest are to be started, bit by bit ([`Loader::start_some`]).
    pub fn start_all(&mut self, peers: &mut impl Peers) {
        self.starting = Some(Starting { next: 0, refused: 0, begun: peers.now(), at: 0 });
    }

    /// Starts some of the VMs that are to be started, in the order of the manifest, unless those next are to be clones of one that is not ready yet. One that cannot be
    /// started is reported; the others go on. When to go on, in nanoseconds since kernel entry; `None`: all are started.
    pub fn start_some(&mut self, peers: &mut impl Peers) -> Option<u64> {
        let mut starting = self.starting?;
        for _ in 0..MANY_AT_ONCE {
            if starting.next >= self.table.len() {
                let started = self.table.len() - starting.refused;
                let took = peers.now().saturating_sub(starting.begun) / 1_000_000;
                peers.log(format_args!("{started} VMs started, {} refused, in {took} ms", starting.refused));
                self.starting = None;
                return None;
            }
            // The operator may have been there before.
            if self.table.running(starting.next).is_none() {
                let awaited = self.kind(starting.next).and_then(|kind| self.templates.waits_until(kind));
                starting.at = awaited.unwrap_or(0);
                if starting.at > peers.now() {
                    break;
                }
                starting.refused += usize::from(self.start(peers, starting.next).is_err());
            }
            (starting.next, starting.at) = (starting.next + 1, 0);
        }
        self.starting = Some(starting);
        Some(starting.at)
    }

    /// When [`Loader::start_some`] is to go on, in nanoseconds since kernel entry.
    pub fn starts_at(&self) -> u64 {
        self.starting.map_or(NEVER, |starting| starting.at)
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
        match self.kind(index).filter(|_| entry.clone) {
            Some(kind) => self.templates.found(kind, entry.image, self.incarnation),
            None => drop(self.images.insert(vm.image, entry.image)),
        }
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
        self.vms.name(index).unwrap_or_default()
    }

    fn named(&self, name: &str) -> Option<usize> {
        (0..self.vms.len()).find(|index| self.vms.name(*index).as_deref() == Some(name))
    }

    /// What a VM is made from.
    fn guest(&mut self, vm: &Vm) -> Result<Rc<Guest>, Refused> {
        let known = self.guests.get(&vm.image).into_iter().flatten().find(|(memory, _)| *memory == vm.memory);
        if let Some((_, guest)) = known {
            return Ok(guest.clone());
        }
        let guest = Rc::new(Guest::find(self.bundle, &vm.image, vm.memory)?);
        self.guests.entry(vm.image.clone()).or_default().push((vm.memory, guest.clone()));
        Ok(guest)
    }

    /// The kind of the VM of an entry, if its image says `ready`, there are others of it, and they have no disks.
    fn kind(&mut self, index: usize) -> Option<Kind> {
        let (kind, count) = self.vms.run(index)?;
        if let Some(Some(cloneable)) = self.cloneable.get(kind) {
            return cloneable.then_some(kind);
        }
        let vm = self.vms.get(index)?;
        let cloneable = count > 1 && vm.disks.is_empty() && self.guest(&vm).is_ok_and(|guest| guest.says_ready);
        if self.cloneable.len() <= kind {
            self.cloneable.resize(kind + 1, None);
        }
        if let Some(known) = self.cloneable.get_mut(kind) {
            *known = Some(cloneable);
        }
        cloneable.then_some(kind)
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
        let begun = peers.now();
        let vm = self.vms.get(index).ok_or("no such VM")?;
        let guest = self.guest(&vm).map_err(|reason| reason.to_string())?;
        if guest.disk().is_none() && !vm.disks.is_empty() {
            return Err(format!("it has virtual disks, but its image `{}` uses none", vm.image));
        }
        let disks = disks::registers(peers, &vm)?;
        let number = self.table.number(index).ok_or("it was started too often: no number is left")?;
        let seed = self.random.seed();
        let own = Own { number, memory: guest.memory, created: begun, seed, disks };
        let mut page =
            registers::build(&self.machine, &vm, &own).map_err(|_| "its name or its arguments are too long")?;
        let kind = self.kind(index);
        let clone = kind.and_then(|kind| self.templates.next_clone(kind, begun));
        let cloned = match clone {
            Some((template, generation)) => {
                page.clone_generation = generation;
                let cloned = Self::create(peers, number, template, &guest, &page)?;
                // The pager has forgotten templates that no VM used: a new one is made.
                if let (None, Some(kind)) = (cloned, kind) {
                    self.templates.forget(kind);
                }
                page.clone_generation = 0;
                cloned
            }
            None => None,
        };
        let created = match cloned {
            Some(created) => created,
            None => self.create_from_image(peers, number, &vm, &guest, &page)?,
        };
        self.table.set_running(index, number);
        if let (None, Some(kind)) = (cloned, kind) {
            self.templates.started(kind, number, begun);
        }
        let ready = Self::attach(peers, &vm, &guest, number, created).and_then(|()| self.let_run(peers, number));
        if let Err(reason) = ready {
            self.end(peers, index, number);
            return Err(reason);
        }
        Ok(())
    }

    fn create_from_image(
        &mut self,
        peers: &mut impl Peers,
        number: VmNumber,
        vm: &Vm,
        guest: &Guest,
        page: &RegisterPage,
    ) -> Result<VmRef, String> {
        for _ in 0..2 {
            let image = self.image(peers, &vm.image, guest)?;
            if let Some(created) = Self::create(peers, number, image, guest, page)? {
                return Ok(created);
            }
            // The pager has forgotten images that no VM used.
            self.images.remove(&vm.image);
        }
        Err("the pager forgets its image at once".to_owned())
    }

    /// Has a VM created; `None`: the pager does not know the image.
    fn create(
        peers: &mut impl Peers,
        vm: VmNumber,
        image: ImageNumber,
        guest: &Guest,
        page: &RegisterPage,
    ) -> Result<Option<VmRef>, String> {
        let Guest { memory, entry, windows, .. } = *guest;
        match peers.pager(&pager::Request::Create { vm, image, memory, entry, windows }, Lent::Registers(page)) {
            Ok(pager::Response::Created(created)) => Ok(Some(created)),
            Ok(pager::Response::NotFound) => Ok(None),
            Ok(pager::Response::OutOfMemory) => Err(format!("not enough memory for its {} KiB", memory / 1024)),
            Ok(pager::Response::OutOfSwap) => {
                Err(format!("not enough swap space is left for its {} KiB", memory / 1024))
            }
            other => Err(format!("the pager did not create it: {}", unexpected(other))),
        }
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
    fn attach(peers: &mut impl Peers, vm: &Vm, guest: &Guest, number: VmNumber, at: VmRef) -> Result<(), String> {
        disks::attach(peers, vm, guest, number, at)?;
        // There is nothing to take in the queues of a VM that has not run: it rings when there is.
        Self::attach_nic(peers, vm, guest, number, VmRef::NOWHERE)?;
        Self::attach_console(peers, &vm.name, guest, number, VmRef::NOWHERE);
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
    fn attach_again(&mut self, peers: &mut impl Peers, index: usize, at: VmRef) {
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
    fn end(&mut self, peers: &mut impl Peers, index: usize, vm: VmNumber) {
        // What it was made from can be looked up: it was when it was made. If not, the servers say that they know nothing of it.
        if let Some(kind) = self.kind(index) {
            self.templates.ended(kind, vm);
        }
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
            match self.is_ready(peers, index, vm) {
                Ok(()) => return,
                Err(reason) => reason,
            }
        } else {
            let guest = self.vms.get(index).and_then(|vm| self.guest(&vm).ok());
            text::stop(stop, guest.map_or(0, |guest| guest.memory))
        };
        self.give_up(peers, index, &why);
    }

    /// A VM said `ready`: it becomes the template of its kind if there is none, and says it once more; or it goes on.
    fn is_ready(&mut self, peers: &mut impl Peers, index: usize, vm: VmNumber) -> Result<(), String> {
        if let Some(kind) = self.kind(index).filter(|kind| self.templates.wants(*kind, vm)) {
            let answer = peers.pager(&pager::Request::MakeTemplate(vm), Lent::Nothing);
            let made = if let Ok(pager::Response::Image(number)) = answer { Some(number) } else { None };
            self.templates.made(kind, made);
            if let Some(starting) = &mut self.starting {
                starting.at = 0;
            }
            if made.is_none() {
                let (name, why) = (self.name(index), unexpected(answer.clone()));
                peers.log(format_args!("VMs like {name} are not cloned: the pager made no template: {why}"));
            }
            // After any other answer it does not say it again.
            let again = [pager::Response::NotWhole, pager::Response::OutOfMemory];
            if made.is_some() || answer.is_err() || answer.is_ok_and(|answer| again.contains(&answer)) {
                return Ok(());
            }
        }
        self.let_run(peers, vm)
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
    fn list(&mut self, peers: &mut impl Peers, from: u64) -> Response {
        let mut vms = Vec::new();
        let mut room = LIST_BYTES;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        for index in from..self.table.len() {
            let Some(vm) = self.vms.get(index) else { break };
            let memory = self.guest(&vm).map_or(vm.memory, |guest| guest.memory);
            let Some(state) = self.table.state(index) else { break };
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
