//! Requests of disks that are under way, and VMs that are on their way out of memory or back.

use super::{Pager, pages::Entries};
use crate::{
    crypt::TAG,
    frames::Frame,
    machine::{Completed, Machine},
    region::UNIT_BLOCKS,
    suspended::Header,
};
use alloc::{boxed::Box, collections::VecDeque, vec::Vec};
use protocol::{
    domain::SavedDomain,
    service::block_driver::{SLOTS, Status},
};

/// Pieces that are sealed for VMs that leave before others get their turn: 1 MiB, a few hundredths of a second where sealing is slow.
const PIECES: u32 = 16;

/// What a request of a disk is for. `place`: the VM's, whose `under_way` counts it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    /// Pages are read into frames that are [`crate::frames::Usage::Incoming`].
    Read { place: u32, first: u32, count: u32, entries: Entries },
    /// Pages are written out of frames that are busy.
    Write { place: u32, first: u32, count: u32, frames: [Frame; UNIT_BLOCKS as usize], entries: Entries },
    /// A segment of a VM that is being suspended is written.
    Out { place: u32 },
    /// A segment of a VM that is being resumed is read.
    In { place: u32, segment: u32 },
}

impl Job {
    const fn place(&self) -> u32 {
        match self {
            Job::Read { place, .. } | Job::Write { place, .. } | Job::Out { place } | Job::In { place, .. } => *place,
        }
    }

    const fn is_read(&self) -> bool {
        matches!(self, Job::Read { .. } | Job::In { .. })
    }
}

/// A VM on its way.
#[derive(Debug)]
pub(super) struct Move {
    pub place: u32,
    pub way: Way,
}

/// Which way.
#[derive(Debug)]
pub(super) enum Way {
    Out(Leave),
    In(Arrive),
}

/// A VM on its way out.
#[derive(Debug)]
pub(super) struct Leave {
    /// It leaves although it is wanted: others are before it.
    pub force: bool,
    pub state: Box<SavedDomain>,
    /// Frames that it has, free when it is gone; but for those whose write to their own places is under way.
    pub frames: u32,
    /// Pages that go to their own places before the rest goes in one piece; those from `next` on are still to go.
    pub before: Vec<(u32, Frame)>,
    pub next: usize,
    pub pages: Vec<(u32, Frame)>,
    pub maps: Vec<(u32, Frame)>,
    /// Segments of the piece; 0: it was not put together yet.
    pub segments: u32,
    /// Segments that were not put up yet: the last ones first, the first one, which holds the others' tags, at last.
    pub left: u32,
    /// Segments that are being written.
    pub writing: u32,
    /// Number of the write of the first segment; the others follow.
    pub counter: u64,
    pub tags: Vec<[u8; TAG]>,
    pub failed: Option<Status>,
}

/// A VM on its way back.
#[derive(Debug)]
pub(super) struct Arrive {
    pub segments: u32,
    /// Frames that it was let in for and has not taken yet.
    pub promised: u32,
    /// Segments whose read was put up.
    pub asked: u32,
    /// Segments that were taken in.
    pub taken: u32,
    /// Those that were read and wait for their turn: disk, slot.
    pub arrived: Vec<Option<(u32, u16, Status)>>,
    pub header: Option<Header>,
    /// Chunks of the header, and those taken in so far.
    pub chunk: u32,
    /// Pages taken in.
    pub pages: Vec<(u32, Frame)>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Underway {
    jobs: Vec<Option<Job>>,
    count: u32,
    /// Those of them that are reads, and the most there ever were.
    reads: u32,
    most_reads: u32,
    moves: VecDeque<Move>,
    /// Pieces that may still be sealed before others get their turn, and whether they were too few.
    pieces: u32,
    more: bool,
    /// Frames that become free when the writes of them are over.
    pub freeing: u32,
    /// Free frames that are spoken for: of VMs that were let in and have not taken them yet.
    pub promised: u32,
}

impl Underway {
    /// Requests under way.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Most reads that were ever under way at once.
    pub const fn most_reads(&self) -> u32 {
        self.most_reads
    }

    /// Others have had their turn.
    pub fn new_turn(&mut self) {
        (self.pieces, self.more) = (PIECES, false);
    }

    /// Whether one more piece of up to 64 KiB may be sealed before others get their turn. If not, there is more to do.
    pub fn take_piece(&mut self) -> bool {
        self.more |= self.pieces == 0;
        let may = self.pieces > 0;
        self.pieces -= u32::from(may);
        may
    }

    /// Whether VMs on their way out can go on at once.
    pub const fn has_more(&self) -> bool {
        self.more
    }

    /// VMs on their way.
    pub fn moves(&self) -> usize {
        self.moves.len()
    }

    /// Begins a move.
    pub fn add_move(&mut self, new: Move) {
        self.moves.push_back(new);
    }

    /// Takes a VM's move out; it is put back or over.
    pub fn take_move(&mut self, place: u32) -> Option<Move> {
        let index = self.moves.iter().position(|found| found.place == place)?;
        self.moves.swap_remove_back(index)
    }

    /// Gives a VM's move up. What is under way for it ends of itself.
    pub fn forget_move(&mut self, machine: &mut impl Machine, place: u32) {
        match self.take_move(place).map(|found| found.way) {
            None => {}
            Some(Way::Out(leave)) => self.freeing -= leave.frames,
            Some(Way::In(arrive)) => {
                self.promised -= arrive.promised;
                for (disk, slot, _) in arrive.arrived.into_iter().flatten() {
                    machine.give_slot(disk, slot);
                }
            }
        }
    }

    /// Takes out the move that was put in first; it is put back behind the others, or over.
    pub fn next_move(&mut self) -> Option<Move> {
        self.moves.pop_front()
    }

    fn index(disk: u32, slot: u16) -> usize {
        disk as usize * SLOTS + usize::from(slot)
    }

    fn add(&mut self, disk: u32, slot: u16, job: Job) {
        let index = Self::index(disk, slot);
        if self.jobs.len() <= index {
            self.jobs.resize(index + 1, None);
        }
        if let Some(place) = self.jobs.get_mut(index) {
            *place = Some(job);
            self.count += 1;
            self.reads += u32::from(job.is_read());
            self.most_reads = self.most_reads.max(self.reads);
        }
    }

    fn take(&mut self, disk: u32, slot: u16) -> Option<Job> {
        let job = self.jobs.get_mut(Self::index(disk, slot))?.take()?;
        self.count -= 1;
        self.reads -= u32::from(job.is_read());
        Some(job)
    }
}

impl Pager<'_> {
    /// Notes a request that is being put up.
    pub(super) fn begin(&mut self, disk: u32, slot: u16, job: Job) {
        if let Some(vm) = self.vms.get_mut(job.place()) {
            vm.under_way += 1;
        }
        self.underway.add(disk, slot, job);
    }

    /// A request of a disk is over.
    pub fn completed(&mut self, machine: &mut impl Machine, completed: Completed) {
        let Completed { disk, slot, status } = completed;
        let Some(job) = self.underway.take(disk, slot) else { return };
        self.clock.unblock();
        if let Some(vm) = self.vms.get_mut(job.place()) {
            vm.under_way = vm.under_way.saturating_sub(1);
        }
        match job {
            Job::Read { place, first, count, entries } => {
                self.finish_read(machine, place, first, &entries[..count as usize], completed);
                machine.give_slot(disk, slot);
            }
            Job::Write { place, first, count, frames, entries } => {
                machine.give_slot(disk, slot);
                let count = count as usize;
                self.finish_write(machine, place, first, &frames[..count], &entries[..count], status);
            }
            Job::Out { place } => {
                machine.give_slot(disk, slot);
                self.segment_written(machine, place, status);
            }
            Job::In { place, segment } => self.segment_read(machine, place, segment, completed),
        }
    }

    /// Requests of disks that are under way.
    pub const fn under_way(&self) -> u32 {
        self.underway.count()
    }
}
