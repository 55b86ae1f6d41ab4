//! The loader itself: VMs created, watched, and ended.

mod attach;
mod operator;
mod start;

use crate::{
    disks,
    guest::Guest,
    peers::{Lent, Peers},
    registers::Machine,
    table::Table,
    templates::Templates,
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
    abi::Error,
    manifest::VmTable,
    registers::RegisterPage,
    service::{
        VmNumber, VmRef, console,
        pager::{self, ImageNumber, Stop, VmEntry},
        switch,
    },
};
use server_runtime::CallError;

/// Stops handled before requests get their turn.
const STOPS_AT_ONCE: usize = 32;
/// Why a VM is no more.
const STOPPED: &str = "stopped by the operator";
/// VMs started or ended before requests, or other requests, get their turn. All that is said of so many to another server fits into a message.
pub(crate) const MANY_AT_ONCE: usize = 32;
/// VMs looked at for that.
const LOOKS_AT_ONCE: usize = 2048;
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
    /// What VMs are made from: by image, then by their memory as the manifest has it.
    guests: BTreeMap<String, Vec<(u64, Rc<Guest>)>>,
    templates: Templates,
    /// Of each run of the manifest, whether its VMs may be clones of each other; `None`: nobody has looked.
    cloneable: Vec<Option<bool>>,
    /// The virtual register pages of the VMs that were created last.
    pages: Vec<RegisterPage>,
    /// What is left of starting all VMs.
    starting: Option<start::Starting>,
    /// Where in the pager's list of VMs the next one stands that gets back what it has lost; `None`: all have.
    attaching: Option<u32>,
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
            images: BTreeMap::new(),
            guests: BTreeMap::new(),
            templates: Templates::new(incarnation),
            cloneable: Vec::new(),
            pages: Vec::new(),
            starting: None,
            attaching: None,
        }
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
        match again(|| self.pager(peers, &pager::Request::List { from: position }, Lent::Nothing)) {
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
            let _ = self.pager(peers, &pager::Request::Destroy(entry.vm), Lent::Nothing);
            return false;
        };
        self.learn(index, vm.image, &entry);
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

    /// What a VM that is there was made from can be used for others: after a restart of the loader or of the pager, it is known by this only.
    fn learn(&mut self, index: usize, image: String, entry: &VmEntry) {
        match self.kind(index).filter(|_| entry.clone) {
            Some(kind) => self.templates.found(kind, entry.image),
            None => drop(self.images.insert(image, entry.image)),
        }
    }

    /// Calls the pager. One that was restarted has dropped images that no VM used, and gives their numbers to others: what is known of numbers is
    /// forgotten, and learned again from its list of VMs ([`Loader::attach_some`]).
    fn pager(
        &mut self,
        peers: &mut impl Peers,
        request: &pager::Request,
        lent: Lent,
    ) -> Result<pager::Response, CallError> {
        let answer = peers.pager(request, lent);
        if peers.take_pager_restarted() {
            self.images.clear();
            self.templates.lost();
        }
        answer
    }

    fn name(&self, index: usize) -> String {
        self.vms.name(index).unwrap_or_default()
    }

    fn named(&self, name: &str) -> Option<usize> {
        (0..self.vms.len()).find(|index| self.vms.name(*index).as_deref() == Some(name))
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
        let _ = self.pager(peers, &pager::Request::Destroy(vm), Lent::Nothing);
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
            match self.pager(peers, &pager::Request::NextStop, Lent::Nothing) {
                Ok(pager::Response::Stopped(Some((vm, stop)))) => match self.table.of(vm) {
                    Some(index) => self.stopped(peers, index, &stop),
                    None => {
                        peers.log(format_args!("destroying VM {vm}, which nobody has started"));
                        let _ = self.pager(peers, &pager::Request::Destroy(vm), Lent::Nothing);
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
