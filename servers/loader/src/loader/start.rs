//! Starting VMs: from their images, or as clones of one that is ready.

use super::{Loader, MANY_AT_ONCE, unexpected};
use crate::{
    disks,
    guest::{Guest, Refused},
    peers::{Lent, Peers},
    registers::{self, Own},
    templates::Kind,
};
use alloc::{
    borrow::ToOwned,
    format,
    rc::Rc,
    string::{String, ToString},
};
use protocol::{
    abi::NEVER,
    manifest::Vm,
    registers::RegisterPage,
    service::{
        VmNumber, VmRef,
        pager::{self, ImageNumber},
    },
};

/// VMs of the manifest that are still to be started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Starting {
    /// The next one.
    next: usize,
    refused: usize,
    begun: u64,
    /// When to go on.
    at: u64,
}

impl Loader<'_> {
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

    /// What a VM is made from.
    pub(super) fn guest(&mut self, vm: &Vm) -> Result<Rc<Guest>, Refused> {
        let known = self.guests.get(&vm.image).into_iter().flatten().find(|(memory, _)| *memory == vm.memory);
        if let Some((_, guest)) = known {
            return Ok(guest.clone());
        }
        let guest = Rc::new(Guest::find(self.bundle, &vm.image, vm.memory)?);
        self.guests.entry(vm.image.clone()).or_default().push((vm.memory, guest.clone()));
        Ok(guest)
    }

    /// The kind of the VM of an entry, if its image says `ready`, there are others of it, and they have no disks.
    pub(super) fn kind(&mut self, index: usize) -> Option<Kind> {
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
    pub(super) fn start(&mut self, peers: &mut impl Peers, index: usize) -> Result<(), String> {
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

    pub(super) fn let_run(&self, peers: &mut impl Peers, vm: VmNumber) -> Result<(), String> {
        match peers.pager(&pager::Request::Start(vm), Lent::Nothing) {
            Ok(pager::Response::Done) => Ok(()),
            other => Err(format!("the pager did not start it: {}", unexpected(other))),
        }
    }

    /// A VM said `ready`: it becomes the template of its kind if there is none, and says it once more; or it goes on.
    pub(super) fn is_ready(&mut self, peers: &mut impl Peers, index: usize, vm: VmNumber) -> Result<(), String> {
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
}
