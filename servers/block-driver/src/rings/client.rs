//! A client as the rings know it, and what is accepted of it.

use crate::{Dma, gpt::Extent};
use alloc::collections::VecDeque;
use protocol::{
    layout::PAGE,
    service::block_driver::{BLOCK, BUFFER, BUFFER_BLOCKS, Operation, SLOTS, SlotRequest, Status, slots},
};

/// A request that was accepted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    pub(super) operation: Operation,
    /// First block of the partition.
    pub(super) block: u64,
    pub(super) count: u32,
    /// Blocks that were zeroed already.
    pub(super) done: u32,
}

/// Where a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// It has not opened.
    Closed,
    /// It wants to open, and its former requests are still under way.
    Draining,
    /// Open.
    Open,
}

pub(super) struct Client {
    pub(super) shared: Dma,
    pub(super) slots: usize,
    pub(super) extent: Option<Extent>,
    pub(super) stage: Stage,
    /// Entries taken from the ring, and answers put there.
    pub(super) submitted: u32,
    pub(super) completed: u32,
    /// Whether there are answers that it was not shown.
    pub(super) unpublished: bool,
    /// Slots that were taken and not answered.
    pub(super) busy: [bool; SLOTS],
    /// Those of them that wait for the device.
    pub(super) waiting: VecDeque<(u16, Accepted)>,
    /// Requests that the device has, those of a former session among them.
    pub(super) under_way: usize,
}

impl Client {
    /// A client by the memory shared with it. It has not opened, and has no partition.
    pub(super) fn new(shared: Dma) -> Client {
        let slots = slots(shared.memory.length());
        Client {
            shared,
            slots,
            extent: None,
            stage: Stage::Closed,
            submitted: 0,
            completed: 0,
            unpublished: false,
            busy: [false; SLOTS],
            waiting: VecDeque::with_capacity(slots),
            under_way: 0,
        }
    }

    /// Begins a session: both sides count from zero.
    pub(super) fn begin(&mut self) {
        self.shared.memory.zero(0, PAGE as usize);
        (self.submitted, self.completed, self.unpublished) = (0, 0, false);
        self.busy = [false; SLOTS];
        self.waiting.clear();
        self.stage = Stage::Open;
    }
}

/// Checks a request against a partition of `blocks` blocks.
pub(super) fn accept(request: SlotRequest, blocks: u64, read_only: bool) -> Result<Accepted, Status> {
    let SlotRequest { operation, count, block } = request;
    let operation = Operation::from_u32(operation).ok_or(Status::BadRequest)?;
    let is_possible = match operation {
        Operation::Read | Operation::Write => (1..=BUFFER_BLOCKS).contains(&count),
        Operation::Flush => count == 0 && block == 0,
        Operation::Zero => count > 0,
    };
    if !is_possible {
        return Err(Status::BadRequest);
    }
    if block.checked_add(count.into()).is_none_or(|end| end > blocks) {
        return Err(Status::OutOfRange);
    }
    if read_only && matches!(operation, Operation::Write | Operation::Zero) {
        return Err(Status::ReadOnly);
    }
    Ok(Accepted { operation, block, count, done: 0 })
}

const _: () = assert!(BUFFER == BUFFER_BLOCKS as usize * BLOCK);
