//! Doubly-linked lists through control blocks: constant-time insertion and removal, no memory of their own.

use crate::{Frame, Machine, NO_FRAME, block::ListHead};

/// A place in a list.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Link {
    /// Next, or [`NO_FRAME`].
    pub next: Frame,
    /// Previous, or [`NO_FRAME`].
    pub previous: Frame,
}

/// Which link of a control block a list goes through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Through {
    /// `link`.
    Main,
    /// `event_links[_]`.
    Event(u8),
}

#[inline]
fn link<M: Machine>(machine: &mut M, frame: Frame, through: Through) -> &mut Link {
    let block = machine.block_mut(frame);
    match through {
        Through::Main => &mut block.link,
        Through::Event(queue) => &mut block.event_links[usize::from(queue)],
    }
}

/// Adds `frame` at the end.
#[inline]
pub fn push_back<M: Machine>(machine: &mut M, head: ListHead, frame: Frame, through: Through) -> ListHead {
    *link(machine, frame, through) = Link { next: NO_FRAME, previous: head.last };
    if head.last == NO_FRAME {
        return ListHead { first: frame, last: frame };
    }
    link(machine, head.last, through).next = frame;
    ListHead { first: head.first, last: frame }
}

/// Adds `frame` at the front.
#[inline]
pub fn push_front<M: Machine>(machine: &mut M, head: ListHead, frame: Frame, through: Through) -> ListHead {
    *link(machine, frame, through) = Link { next: head.first, previous: NO_FRAME };
    if head.first == NO_FRAME {
        return ListHead { first: frame, last: frame };
    }
    link(machine, head.first, through).previous = frame;
    ListHead { first: frame, last: head.last }
}

/// Takes `frame`, which is in the list, out.
#[inline]
pub fn remove<M: Machine>(machine: &mut M, mut head: ListHead, frame: Frame, through: Through) -> ListHead {
    let Link { next, previous } = core::mem::take(link(machine, frame, through));
    if previous == NO_FRAME {
        head.first = next;
    } else {
        link(machine, previous, through).next = next;
    }
    if next == NO_FRAME {
        head.last = previous;
    } else {
        link(machine, next, through).previous = previous;
    }
    head
}
