//! Starting VMs: from their images, or as clones of one that is ready.

use super::{LOOKS_AT_ONCE, Loader, MANY_AT_ONCE, attach::Attaching, unexpected};
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
    vec::Vec,
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

/// A VM that is to be created.
struct New {
    /// Its entry.
    index: usize,
    vm: Vm,
    guest: Rc<Guest>,
    number: VmNumber,
    own: Own,
    /// Its kind, if it may be a clone.
    kind: Option<Kind>,
}

/// Why the pager has not created a VM.
enum NotCreated {
    /// It knows no such image.
    NoImage,
    /// There is no room for the VM, or the pager cannot be reached.
    Refused(String),
    /// An answer that does not fit.
    Unexpected(String),
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
        starting.at = 0;
        let mut batch = Vec::with_capacity(MANY_AT_ONCE);
        for _ in 0..LOOKS_AT_ONCE {
            if batch.len() == MANY_AT_ONCE || starting.next >= self.table.len() {
                break;
            }
            // The operator may have been there before.
            if self.table.running(starting.next).is_none() {
                let kind = self.kind(starting.next);
                let awaited = kind.and_then(|kind| self.templates.waits_until(kind)).unwrap_or(0);
                if awaited > peers.now() {
                    starting.at = awaited;
                    break;
                }
                batch.push(starting.next);
                if kind.is_some_and(|kind| self.templates.is_new(kind)) {
                    // Those behind it wait for it.
                    starting.next += 1;
                    break;
                }
            }
            starting.next += 1;
        }
        starting.refused += self.start_batch(peers, &batch).len();
        if starting.next < self.table.len() {
            self.starting = Some(starting);
            return Some(starting.at);
        }
        let started = self.table.len() - starting.refused;
        let took = peers.now().saturating_sub(starting.begun) / 1_000_000;
        peers.log(format_args!("{started} VMs started, {} refused, in {took} ms", starting.refused));
        self.starting = None;
        None
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
        self.start_batch(peers, &[index]).pop().map_or(Ok(()), Err)
    }

    /// Creates and starts the VMs of entries, which get their ports and their consoles before, all together: so they can run as soon as they are there. Why
    /// not, of those for which it fails.
    pub(super) fn start_batch(&mut self, peers: &mut impl Peers, indices: &[usize]) -> Vec<String> {
        let (mut reasons, mut batch) = (Vec::new(), Vec::with_capacity(indices.len()));
        for index in indices {
            match self.prepare(peers, *index) {
                Ok(new) => batch.push(new),
                Err(reason) => reasons.push(self.refuse(peers, *index, reason)),
            }
        }
        let attaching: Vec<_> = batch
            .iter()
            .map(|new| Attaching { vm: &new.vm, guest: &new.guest, number: new.number, at: VmRef::NOWHERE })
            .collect();
        let refused = Self::attach_nics(peers, &attaching);
        Self::attach_consoles(peers, &attaching);
        let mut to_create = Vec::with_capacity(batch.len());
        for (new, refused) in batch.iter().zip(refused) {
            match refused {
                Some(reason) => reasons.push(self.take_back(peers, new, reason)),
                None => to_create.push(new),
            }
        }
        let (mut rest, mut together) = (to_create.as_slice(), true);
        while let Some((first, others)) = rest.split_first() {
            let (asked, made) = if together { self.create_clones(peers, rest) } else { (0, 0) };
            // Why the pager makes no more is found out one by one.
            together = made == asked;
            if made > 0 {
                rest = rest.get(made..).unwrap_or_default();
                continue;
            }
            if let Err(reason) = self.create_new(peers, first) {
                reasons.push(self.take_back(peers, first, reason));
            }
            rest = others;
        }
        reasons
    }

    /// A VM that has its port and its console is not started after all.
    fn take_back(&mut self, peers: &mut impl Peers, new: &New, reason: String) -> String {
        self.end(peers, new.index, new.number);
        self.refuse(peers, new.index, reason)
    }

    /// Notes and says why a VM was not started.
    fn refuse(&mut self, peers: &mut impl Peers, index: usize, reason: String) -> String {
        let name = self.name(index);
        peers.log(format_args!("vm {name} refused: {reason}"));
        self.table.set_stopped(index, format!("refused: {reason}"));
        reason
    }

    /// Finds what the VM of an entry is made from.
    fn prepare(&mut self, peers: &mut impl Peers, index: usize) -> Result<New, String> {
        let begun = peers.now();
        let vm = self.vms.get(index).ok_or("no such VM")?;
        let guest = self.guest(&vm).map_err(|reason| reason.to_string())?;
        if guest.disk().is_none() && !vm.disks.is_empty() {
            return Err(format!("it has virtual disks, but its image `{}` uses none", vm.image));
        }
        let disks = disks::registers(peers, &vm)?;
        let number = self.table.number(index).ok_or("it was started too often: no number is left")?;
        let own = Own { number, memory: guest.memory, created: begun, seed: self.random.seed(), disks };
        Ok(New { index, vm, guest, number, own, kind: self.kind(index) })
    }

    /// Creates the first of these as clones of one template with one call, if they are of one kind and it has one. How many were asked for, and how many
    /// were made.
    fn create_clones(&mut self, peers: &mut impl Peers, new: &[&New]) -> (usize, usize) {
        let Some(kind) = new.first().and_then(|new| new.kind) else { return (0, 0) };
        if new.len() < 2 {
            return (0, 0);
        }
        let mut pages = core::mem::take(&mut self.pages);
        let (mut vms, mut template) = (Vec::with_capacity(new.len()), None);
        for new in new {
            if new.kind != Some(kind) {
                break;
            }
            if pages.len() == vms.len() {
                pages.push(RegisterPage::ZERO);
            }
            let Some(page) = pages.get_mut(vms.len()) else { break };
            let Some((number, generation)) = self.templates.next_clone(kind, new.own.created) else { break };
            if registers::build(page, &self.machine, &new.vm, &new.own).is_err() {
                break;
            }
            page.clone_generation = generation;
            template = Some(number);
            vms.push(new.number);
        }
        let asked = vms.len();
        let lent = pages.get(..asked).unwrap_or_default();
        let answer = match template {
            Some(template) => self.pager(peers, &pager::Request::Clone { template, vms }, Lent::Registers(lent)),
            None => Ok(pager::Response::Cloned(0)),
        };
        self.pages = pages;
        let Ok(pager::Response::Cloned(made)) = answer else { return (asked, 0) };
        let made = new.get(..asked.min(made as usize)).unwrap_or_default();
        made.iter().for_each(|new| self.table.set_running(new.index, new.number));
        (asked, made.len())
    }

    /// Creates a VM that has its port and its console, and lets it run.
    fn create_new(&mut self, peers: &mut impl Peers, new: &New) -> Result<(), String> {
        let mut pages = core::mem::take(&mut self.pages);
        if pages.is_empty() {
            pages.push(RegisterPage::ZERO);
        }
        let created = match pages.first_mut() {
            Some(page) => self.create_with(peers, new, page),
            None => Err("no memory for its virtual register page".to_owned()),
        };
        self.pages = pages;
        let created = created?;
        self.table.set_running(new.index, new.number);
        if !new.vm.disks.is_empty() {
            disks::attach(peers, &new.vm, &new.guest, new.number, created)?;
            self.let_run(peers, new.number)?;
        }
        Ok(())
    }

    fn create_with(&mut self, peers: &mut impl Peers, new: &New, page: &mut RegisterPage) -> Result<VmRef, String> {
        let built = registers::build(page, &self.machine, &new.vm, &new.own);
        built.map_err(|_| "its name or its arguments are too long")?;
        if let Some(kind) = new.kind
            && let Some(created) = self.clone_of_kind(peers, kind, new, page)?
        {
            return Ok(created);
        }
        let created = self.create_from_image(peers, new, page)?;
        if let Some(kind) = new.kind {
            self.templates.started(kind, new.number, new.own.created);
        }
        Ok(created)
    }

    /// A clone of the template of a kind; `None`: there is no template, or none that the pager makes clones of.
    fn clone_of_kind(
        &mut self,
        peers: &mut impl Peers,
        kind: Kind,
        new: &New,
        page: &mut RegisterPage,
    ) -> Result<Option<VmRef>, String> {
        let Some((template, generation)) = self.templates.next_clone(kind, page.created) else { return Ok(None) };
        page.clone_generation = generation;
        let clone = self.create(peers, new, template, page);
        page.clone_generation = 0;
        match clone {
            Ok(created) => Ok(Some(created)),
            // From its image it takes more, not less.
            Err(NotCreated::Refused(reason)) => Err(reason),
            // A template that no VM used was forgotten when the pager was restarted: a new one is made.
            Err(NotCreated::NoImage) => {
                self.templates.forget(kind);
                Ok(None)
            }
            Err(NotCreated::Unexpected(reason)) => {
                peers.log(format_args!("clones are made no more of a template: {reason}"));
                self.templates.forget(kind);
                Ok(None)
            }
        }
    }

    fn create_from_image(&mut self, peers: &mut impl Peers, new: &New, page: &RegisterPage) -> Result<VmRef, String> {
        for _ in 0..2 {
            let image = self.image(peers, &new.vm.image, &new.guest)?;
            match self.create(peers, new, image, page) {
                Ok(created) => return Ok(created),
                // An image that no VM used was forgotten when the pager was restarted.
                Err(NotCreated::NoImage) => drop(self.images.remove(&new.vm.image)),
                Err(NotCreated::Refused(reason) | NotCreated::Unexpected(reason)) => return Err(reason),
            }
        }
        Err("the pager forgets its image at once".to_owned())
    }

    fn create(
        &mut self,
        peers: &mut impl Peers,
        new: &New,
        image: ImageNumber,
        page: &RegisterPage,
    ) -> Result<VmRef, NotCreated> {
        let Guest { memory, entry, windows, .. } = *new.guest;
        // Disks are for a VM that is there.
        let start = new.vm.disks.is_empty();
        let request = pager::Request::Create { vm: new.number, image, memory, entry, windows, start };
        let answer = self.pager(peers, &request, Lent::Registers(core::slice::from_ref(page)));
        let too_little = |what| Err(NotCreated::Refused(format!("not enough {what} for its {} KiB", memory / 1024)));
        match answer {
            Ok(pager::Response::Created(created)) => Ok(created),
            Ok(pager::Response::NotFound) => Err(NotCreated::NoImage),
            Ok(pager::Response::OutOfMemory) => too_little("memory"),
            Ok(pager::Response::OutOfSwap) => too_little("swap space is left"),
            other => {
                let refused = other.is_err();
                let reason = format!("the pager did not create it: {}", unexpected(other));
                Err(if refused { NotCreated::Refused(reason) } else { NotCreated::Unexpected(reason) })
            }
        }
    }

    /// The number of an image at the pager, which is given it if it does not have it.
    fn image(&mut self, peers: &mut impl Peers, name: &str, guest: &Guest) -> Result<ImageNumber, String> {
        if let Some(number) = self.images.get(name) {
            return Ok(*number);
        }
        let request = pager::Request::DefineImage { parts: guest.parts.clone() };
        match self.pager(peers, &request, Lent::Bundle { offset: guest.offset, pages: guest.pages }) {
            Ok(pager::Response::Image(number)) => {
                self.images.insert(name.to_owned(), number);
                Ok(number)
            }
            Ok(pager::Response::OutOfMemory) => Err("not enough memory for its image".to_owned()),
            other => Err(format!("the pager did not take its image: {}", unexpected(other))),
        }
    }

    pub(super) fn let_run(&mut self, peers: &mut impl Peers, vm: VmNumber) -> Result<(), String> {
        match self.pager(peers, &pager::Request::Start(vm), Lent::Nothing) {
            Ok(pager::Response::Done) => Ok(()),
            other => Err(format!("the pager did not start it: {}", unexpected(other))),
        }
    }

    /// A VM said `ready`: it becomes the template of its kind if there is none, and says it once more; or it goes on.
    pub(super) fn is_ready(&mut self, peers: &mut impl Peers, index: usize, vm: VmNumber) -> Result<(), String> {
        if let Some(kind) = self.kind(index).filter(|kind| self.templates.wants(*kind, vm)) {
            let answer = self.pager(peers, &pager::Request::MakeTemplate(vm), Lent::Nothing);
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
