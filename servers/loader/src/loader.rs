//! The loader itself: VMs created, watched, and ended.

use crate::{
    disks,
    guest::Guest,
    peers::{Lent, Peers},
    registers::{self, Machine, Own},
    table::{Running, State, Table},
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
    manifest::{Manifest, Vm},
    service::{
        VmNumber, VmRef, console,
        loader::{Request, Response, VmInfo},
        pager::{self, ImageNumber, Stop, VmEntry},
        switch,
    },
};
use server_runtime::CallError;

/// Stops handled before requests get their turn.
const STOPS_AT_ONCE: usize = 32;
/// Bytes of a list that an answer has room for; a message has 4,096.
const LIST_BYTES: usize = 3500;
/// Upper bound of the numbers in an entry of a list, encoded, besides its texts.
const ENTRY_BYTES: usize = 64;
/// Where a VM is that is not in memory. Servers find it `Gone` there, as nothing ever is in that frame, and ask the pager.
const NOWHERE: VmRef = VmRef { frame: u32::MAX, generation: 0 };
/// A server that the system has not, or that was never started.
pub(crate) const NO_SUCH_SERVER: CallError = CallError::Kernel(Error::NoCapability);
/// Times that a call is tried anew after the called server was restarted in the middle of it.
const ATTEMPTS: usize = 3;

/// The loader.
#[derive(Debug)]
pub struct Loader<'a> {
    bundle: &'a [u8],
    manifest: Manifest,
    machine: Machine,
    random: Random,
    table: Table,
    /// Images that the pager has, by name.
    images: BTreeMap<String, ImageNumber>,
}

impl<'a> Loader<'a> {
    /// A loader for the VMs of `manifest`, with images from `bundle`. `incarnation`: restarts of the loader so far.
    pub fn new(bundle: &'a [u8], manifest: Manifest, machine: Machine, random: Random, incarnation: u32) -> Loader<'a> {
        let table = Table::new(manifest.vms.iter().map(|vm| vm.name.as_str()), incarnation);
        Loader { bundle, manifest, machine, random, table, images: BTreeMap::new() }
    }

    /// Starts all VMs of the manifest. One that cannot be started is reported; the others go on.
    pub fn start_all(&mut self, peers: &mut impl Peers) {
        for index in 0..self.table.len() {
            // Reported already.
            let _ = self.start(peers, index);
        }
    }

    /// After a restart of the loader: finds the VMs that are there again. Those that are not stay stopped, since they may have
    /// ended before: the operator starts them.
    pub fn adopt_all(&mut self, peers: &mut impl Peers) {
        let mut from = Some(0);
        let mut found = 0;
        while let Some(position) = from {
            match peers.pager(&pager::Request::List { from: position }, Lent::Nothing) {
                Ok(pager::Response::Vms(entries, more)) => {
                    for entry in entries {
                        found += u64::from(self.adopt(peers, entry));
                    }
                    from = more.filter(|next| *next > position);
                }
                other => {
                    peers.log(format_args!("cannot ask the pager for VMs: {}", unexpected(other)));
                    from = None;
                }
            }
        }
        peers.log(format_args!("{found} VMs found again"));
        let missing: Vec<_> = (0..self.table.len())
            .filter(|index| self.table.running(*index).is_none())
            .filter_map(|i| self.name(i))
            .collect();
        if !missing.is_empty() {
            peers.log(format_args!("not running after a restart of the loader: {}", missing.join(", ")));
        }
    }

    /// Takes a VM that is there into the table; whether it goes on.
    fn adopt(&mut self, peers: &mut impl Peers, entry: VmEntry) -> bool {
        let index = self.table.entry_of(entry.vm).filter(|index| self.table.running(*index).is_none());
        let vm = index.and_then(|index| self.manifest.vms.get(index));
        let guest = vm.and_then(|vm| Guest::find(self.bundle, &vm.image, vm.memory).ok());
        let (Some(index), Some(vm), Some(guest)) = (index, vm, guest) else {
            peers.log(format_args!("destroying VM {}, of which the manifest knows nothing", entry.vm));
            let _ = peers.pager(&pager::Request::Destroy(entry.vm), Lent::Nothing);
            return false;
        };
        self.images.insert(vm.image.clone(), entry.image);
        let at = entry.at.unwrap_or(NOWHERE);
        self.table.set_running(index, Running { vm: entry.vm, at, guest });
        self.attach_again(peers, index);
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

    fn name(&self, index: usize) -> Option<&str> {
        self.manifest.vms.get(index).map(|vm| vm.name.as_str())
    }

    /// Creates and starts the VM of an entry; why not, if not.
    fn start(&mut self, peers: &mut impl Peers, index: usize) -> Result<(), String> {
        let result = self.try_start(peers, index);
        if let Err(reason) = &result {
            let name = self.name(index).unwrap_or_default();
            peers.log(format_args!("vm {name} refused: {reason}"));
            self.table.set_stopped(index, format!("refused: {reason}"));
        }
        result
    }

    fn try_start(&mut self, peers: &mut impl Peers, index: usize) -> Result<(), String> {
        let vm = self.manifest.vms.get(index).cloned().ok_or("no such VM")?;
        let guest = Guest::find(self.bundle, &vm.image, vm.memory).map_err(|reason| reason.to_string())?;
        if guest.disk().is_none() && !vm.disks.is_empty() {
            return Err(format!("it has virtual disks, but its image `{}` uses none", vm.image));
        }
        let disks = disks::registers(peers, &vm)?;
        let number = self.table.number(index);
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
                    return Err(format!("not enough swap space for its {} KiB", guest.memory / 1024));
                }
                other => return Err(format!("the pager did not create it: {}", unexpected(other))),
            }
        };
        self.table.set_running(index, Running { vm: number, at: created, guest });
        let ready = self.attach(peers, index).and_then(|()| self.let_run(peers, number));
        if let Err(reason) = ready {
            if let Some(running) = self.table.set_stopped(index, reason.clone()) {
                Self::end(peers, &running);
            }
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
    fn attach(&self, peers: &mut impl Peers, index: usize) -> Result<(), String> {
        let (Some(vm), Some(running)) = (self.manifest.vms.get(index), self.table.running(index)) else {
            return Ok(());
        };
        disks::attach(peers, vm, running)?;
        self.attach_nic(peers, vm, running)?;
        self.attach_console(peers, &vm.name, running);
        Ok(())
    }

    fn attach_nic(&self, peers: &mut impl Peers, vm: &Vm, running: &Running) -> Result<(), String> {
        if let Some((queue, length)) = running.guest.nic() {
            let request = switch::Request::Attach {
                vm: running.vm,
                at: running.at,
                mac: vm.mac,
                address: vm.address,
                queue,
                length,
            };
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

    fn attach_console(&self, peers: &mut impl Peers, name: &str, running: &Running) {
        let Some(page) = running.guest.console() else { return };
        match again(|| peers.console(&console::Request::Attach { vm: running.vm, at: running.at, name, page })) {
            Ok(console::Response::Done) => {}
            // Nobody can be told then.
            Err(NO_SUCH_SERVER) => {}
            Ok(console::Response::Full) => peers.log(format_args!("vm {name} has no console: no room for another")),
            other => peers.log(format_args!("vm {name} has no console now: {}", unexpected(other))),
        }
    }

    /// After a restart of the switch, the console, the server of virtual disks or the loader: a VM gets back what it has lost.
    fn attach_again(&self, peers: &mut impl Peers, index: usize) {
        let (Some(vm), Some(running)) = (self.manifest.vms.get(index), self.table.running(index)) else { return };
        let lost = running.guest.nic().is_some()
            && !matches!(
                again(|| peers.switch(&switch::Request::Statistics(running.vm))),
                Ok(switch::Response::Statistics { .. }) | Err(NO_SUCH_SERVER)
            );
        if lost && let Err(reason) = self.attach_nic(peers, vm, running) {
            peers.log(format_args!("vm {} has no network now: {reason}", vm.name));
        }
        if disks::are_lost(peers, vm, running)
            && let Err(reason) = disks::attach(peers, vm, running)
        {
            peers.log(format_args!("vm {} has no disks now: {reason}", vm.name));
        }
        // The console takes it in the place of the one before.
        self.attach_console(peers, &vm.name, running);
    }

    /// A server was restarted: all VMs get back what they have lost there.
    pub fn peer_restarted(&mut self, peers: &mut impl Peers) {
        for index in 0..self.table.len() {
            self.attach_again(peers, index);
        }
    }

    /// Takes back a VM's disks, port and console, and its memory. Servers that are gone have forgotten it anyway.
    fn end(peers: &mut impl Peers, running: &Running) {
        disks::detach(peers, running);
        if running.guest.nic().is_some() {
            let _ = again(|| peers.switch(&switch::Request::Detach(running.vm)));
        }
        if running.guest.console().is_some() {
            let _ = again(|| peers.console(&console::Request::Detach(running.vm)));
        }
        let _ = peers.pager(&pager::Request::Destroy(running.vm), Lent::Nothing);
    }

    fn give_up(&mut self, peers: &mut impl Peers, index: usize, why: &str) {
        let running = self.table.set_stopped(index, why.to_owned());
        if let Some(running) = running {
            Self::end(peers, &running);
        }
        peers.log(format_args!("vm {} {why}", self.name(index).unwrap_or_default()));
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
        let Some(running) = self.table.running(index) else { return };
        let why = if *stop == Stop::Ready {
            match self.let_run(peers, running.vm) {
                Ok(()) => return,
                Err(reason) => reason,
            }
        } else {
            text::stop(stop, running.guest.memory)
        };
        self.give_up(peers, index, &why);
    }

    /// Carries out a request of the operator.
    pub fn request(&mut self, peers: &mut impl Peers, request: &Request) -> Response {
        match request {
            Request::List { from } => self.list(peers, *from),
            Request::Start(name) => match self.table.named(name) {
                None => Response::Unknown,
                Some(index) if self.table.running(index).is_some() => Response::WrongState,
                Some(index) => match self.start(peers, index) {
                    Ok(()) => Response::Done,
                    Err(reason) => Response::Failed(reason),
                },
            },
            Request::Stop(name) => match self.table.named(name) {
                None => Response::Unknown,
                Some(index) if self.table.running(index).is_none() => Response::WrongState,
                Some(index) => {
                    self.give_up(peers, index, "stopped by the operator");
                    Response::Done
                }
            },
            Request::Memory => match peers.pager(&pager::Request::Pool, Lent::Nothing) {
                Ok(pager::Response::Pool { total, free, .. }) => {
                    Response::Memory(total.saturating_mul(PAGE / 1024), free.saturating_mul(PAGE / 1024))
                }
                other => Response::Failed(format!("the pager did not say: {}", unexpected(other))),
            },
        }
    }

    /// VMs by number of their entry: `from` is 0 or what the answer before said.
    fn list(&self, peers: &mut impl Peers, from: u64) -> Response {
        let mut vms = Vec::new();
        let mut room = LIST_BYTES;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        for (index, vm) in self.manifest.vms.iter().enumerate().skip(from) {
            let Some(state) = self.table.state(index) else { break };
            let memory = if vm.memory == 0 && matches!(state, State::Stopped(_)) {
                Guest::find(self.bundle, &vm.image, 0).map_or(0, |guest| guest.memory)
            } else {
                vm.memory
            };
            let mut info = VmInfo {
                number: index as u64 + 1,
                name: vm.name.clone(),
                image: vm.image.clone(),
                address: vm.address,
                memory: memory / 1024,
                used: 0,
                cpu_time: 0,
                stopped: None,
            };
            let bytes = vm.name.len() + vm.image.len() + ENTRY_BYTES;
            let bytes = bytes + if let State::Stopped(why) = state { why.len() } else { 0 };
            if bytes > room && !vms.is_empty() {
                return Response::Vms(vms, Some(index as u64));
            }
            room = room.saturating_sub(bytes);
            match state {
                State::Stopped(why) => info.stopped = Some(text::reason(why).to_owned()),
                State::Running(running) => {
                    (info.number, info.memory) = (running.vm, running.guest.memory / 1024);
                    if let Ok(pager::Response::Usage { frames, cpu_time, .. }) =
                        peers.pager(&pager::Request::Usage(running.vm), Lent::Nothing)
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
