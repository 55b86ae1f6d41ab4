//! The VMs that have disks, and who may use which: a disk is either written by one VM or read by any number.
//!
//! Each attachment is a *session*, numbered since the start and never again: what is still under way for a VM that left, or that was attached anew,
//! is never taken for that of another.

use crate::{
    flight::FlightId,
    queue::{Own, Window},
    store::{Disk, Table},
};
use alloc::{collections::BTreeMap, rc::Rc, string::ToString, vec::Vec};
use hashbrown::HashMap;
use protocol::{
    disk::{Completion, DISKS},
    service::{
        VmNumber, VmRef,
        vdisk::{DiskInfo, Wanted},
    },
};

/// Number of a session.
pub type Session = u64;

/// A disk of a VM.
#[derive(Clone, Debug)]
pub struct VmDisk {
    /// Name.
    pub name: Rc<str>,
    /// Blocks and places.
    pub disk: Rc<Disk>,
    /// Without the right to write.
    pub read_only: bool,
}

/// A VM.
#[derive(Debug)]
pub struct Vm {
    /// Its number.
    pub number: VmNumber,
    /// Where it was last seen.
    pub at: VmRef,
    /// Its disk window.
    pub window: Window,
    /// Its disks.
    pub disks: Vec<VmDisk>,
    /// What is known of its queue; `None` until it was read.
    pub own: Option<Own>,
    /// Requests that it has put up, as last seen.
    pub submitted: u32,
    /// Its requests that are under way.
    pub flights: u32,
    /// Answers that are not written into its queue page yet.
    pub answers: Vec<Completion>,
    /// Whether it is to be told of answers.
    pub raise: bool,
    /// It, or a page of it, is not in memory: the pager is asked, and nothing is done until it has answered.
    pub parked: bool,
    /// Blocks that were read for it while it was parked.
    pub held: Vec<FlightId>,
    /// Whether it stands in the queue of those with requests, and of those with answers.
    pub queued: bool,
    /// See `queued`.
    pub answering: bool,
    /// It is no more; only what it has under way is left.
    pub leaving: bool,
}

impl Vm {
    /// Whether it is known to have requests that nobody has begun.
    pub fn has_more(&self) -> bool {
        self.own.is_none_or(|own| own.again != 0 || own.taken != self.submitted)
    }
}

/// Why a VM does not get its disks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unattached {
    /// No disk of this name.
    NotFound,
    /// Another VM has one of them, in a way that excludes this.
    InUse,
    /// The same, but only VMs that are leaving: it will be free.
    Leaving,
    /// Too many disks, or a window that makes no sense.
    BadArgument,
}

/// Users of a disk.
#[derive(Debug)]
struct Use {
    disk: Rc<Disk>,
    readers: u32,
    written: bool,
}

/// The VMs.
#[derive(Debug, Default)]
pub struct Vms {
    sessions: HashMap<Session, Vm>,
    by_number: HashMap<VmNumber, Session>,
    next: Session,
    uses: BTreeMap<Rc<str>, Use>,
}

impl Vms {
    /// A VM.
    pub fn get(&self, session: Session) -> Option<&Vm> {
        self.sessions.get(&session)
    }

    /// A VM.
    pub fn get_mut(&mut self, session: Session) -> Option<&mut Vm> {
        self.sessions.get_mut(&session)
    }

    /// The session of the VM with this number.
    pub fn of(&self, number: VmNumber) -> Option<Session> {
        self.by_number.get(&number).copied()
    }

    /// All sessions.
    pub fn sessions(&self) -> Vec<Session> {
        self.sessions.keys().copied().collect()
    }

    /// VMs that have a disk, those that are leaving included.
    pub fn holders(&self, name: &str) -> impl Iterator<Item = &Vm> {
        self.sessions.values().filter(move |vm| vm.disks.iter().any(|disk| &*disk.name == name))
    }

    /// Whether any VM has a disk.
    pub fn is_used(&self, name: &str) -> bool {
        self.uses.contains_key(name)
    }

    /// A disk of the table, with its users.
    pub fn info(&self, name: &str, disk: &Disk) -> DiskInfo {
        let (users, written) =
            self.uses.get(name).map_or((0, false), |u| (u.readers + u32::from(u.written), u.written));
        DiskInfo { name: name.to_string(), blocks: disk.blocks, users, written }
    }

    /// Whether a VM is attached just so.
    pub fn is_attached_so(&self, number: VmNumber, window: Window, wanted: &[Wanted]) -> Option<Session> {
        let session = self.of(number)?;
        let vm = self.get(session)?;
        let same = |disk: &VmDisk, wanted: &Wanted| *disk.name == *wanted.name && disk.read_only == wanted.read_only;
        let disks = vm.disks.len() == wanted.len() && vm.disks.iter().zip(wanted).all(|(a, b)| same(a, b));
        (vm.window == window && disks).then_some(session)
    }

    /// Gives a VM its disks. It has none yet.
    pub fn attach(
        &mut self,
        number: VmNumber,
        at: VmRef,
        window: Window,
        wanted: &[Wanted],
        table: &Table,
    ) -> Result<Session, Unattached> {
        let sensible = window.address.is_multiple_of(4096) && window.length >= 4096;
        if wanted.len() > DISKS || !sensible || window.address.checked_add(window.length).is_none() {
            return Err(Unattached::BadArgument);
        }
        let mut disks: Vec<VmDisk> = Vec::new();
        for wanted in wanted {
            let disk = table.get(&wanted.name).ok_or(Unattached::NotFound)?;
            let user = self.uses.get(wanted.name.as_str());
            let excludes = |read_only: bool| !wanted.read_only || !read_only;
            if disks.iter().any(|disk| *disk.name == *wanted.name && excludes(disk.read_only)) {
                return Err(Unattached::InUse);
            }
            if user.is_some_and(|user| user.written || (!wanted.read_only && user.readers > 0)) {
                let all_leave = self.holders(&wanted.name).filter(|vm| in_the_way(vm, wanted)).all(|vm| vm.leaving);
                return Err(if all_leave { Unattached::Leaving } else { Unattached::InUse });
            }
            let disk = user.map_or_else(|| Rc::new(disk.clone()), |user| user.disk.clone());
            disks.push(VmDisk { name: Rc::from(wanted.name.as_str()), disk, read_only: wanted.read_only });
        }
        for disk in &disks {
            let fresh = || Use { disk: disk.disk.clone(), readers: 0, written: false };
            let user = self.uses.entry(disk.name.clone()).or_insert_with(fresh);
            if disk.read_only {
                user.readers += 1;
            } else {
                user.written = true;
            }
        }
        self.next += 1;
        let vm = Vm {
            number,
            at,
            window,
            disks,
            own: None,
            submitted: 0,
            flights: 0,
            answers: Vec::new(),
            raise: false,
            parked: false,
            held: Vec::new(),
            queued: false,
            answering: false,
            leaving: false,
        };
        self.sessions.insert(self.next, vm);
        self.by_number.insert(number, self.next);
        Ok(self.next)
    }

    /// A VM leaves: it is found by its number no more.
    pub fn leave(&mut self, number: VmNumber) -> Option<Session> {
        let session = self.by_number.remove(&number)?;
        let vm = self.get_mut(session)?;
        vm.leaving = true;
        vm.answers.clear();
        Some(session)
    }

    /// Forgets a VM that leaves and has nothing under way: its disks are free. `false` if it is not so far.
    pub fn forget(&mut self, session: Session) -> bool {
        if self.get(session).is_none_or(|vm| !vm.leaving || vm.flights > 0) {
            return false;
        }
        for disk in self.sessions.remove(&session).into_iter().flat_map(|vm| vm.disks) {
            if let Some(user) = self.uses.get_mut(&disk.name) {
                if disk.read_only {
                    user.readers = user.readers.saturating_sub(1);
                } else {
                    user.written = false;
                }
                if user.readers == 0 && !user.written {
                    self.uses.remove(&disk.name);
                }
            }
        }
        true
    }
}

/// Whether a VM keeps others from a disk.
pub fn in_the_way(vm: &Vm, wanted: &Wanted) -> bool {
    vm.disks.iter().any(|disk| *disk.name == *wanted.name && (!disk.read_only || !wanted.read_only))
}
