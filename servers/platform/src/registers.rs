//! Which pages of a device's registers a driver gets.
//!
//! Rights are by page. A driver gets no page that holds an MSI-X table (whoever writes there can send any interrupt) and
//! none that holds registers of another device.

use crate::device::Device;
use core::ops::Range;
use protocol::layout::PAGE;

/// Why a driver does not get a block of registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The device has no such registers, or they are I/O ports.
    Missing,
    /// Nothing is left once the pages that the driver must not have are left out.
    NotAlone,
}

/// A block of registers to hand out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Physical address of its first byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

impl Block {
    /// First frame.
    pub const fn first_frame(&self) -> u64 {
        self.address / PAGE
    }
    /// Frames.
    pub const fn frames(&self) -> u64 {
        (self.address % PAGE + self.length).div_ceil(PAGE)
    }
}

/// The registers behind base address register `number` of `device`, one of `all`: the longest part that the driver may have.
pub fn block<'a>(device: &Device, number: u8, all: impl Iterator<Item = &'a Device>) -> Result<Block, Refusal> {
    let bar = device.bar(number).filter(|bar| bar.memory).ok_or(Refusal::Missing)?;
    let whole = bar.address..bar.address + bar.length;
    let others = all.filter(|other| other.address != device.address);
    let foreign = others.flat_map(|other| &other.bars).filter(|bar| bar.memory);
    let foreign = foreign.map(|bar| bar.address..bar.address.saturating_add(bar.length));
    // Each taken range cuts off a part; what remains is one range, the longer of the two beside it.
    let rest = foreign.chain(device.msix_table()).fold(whole, |rest, taken| longest(rest, &pages(&taken)));
    match rest.end - rest.start {
        0 => Err(Refusal::NotAlone),
        length => Ok(Block { address: rest.start, length }),
    }
}

/// The range grown to whole pages.
fn pages(range: &Range<u64>) -> Range<u64> {
    range.start & !(PAGE - 1)..range.end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX)
}

/// The longer part of `range` that lies beside `taken`.
fn longest(range: Range<u64>, taken: &Range<u64>) -> Range<u64> {
    let before = range.start..range.end.min(taken.start).max(range.start);
    let behind = range.start.max(taken.end).min(range.end)..range.end;
    if before.end - before.start >= behind.end - behind.start { before } else { behind }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{Bus, Function};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn devices(functions: impl IntoIterator<Item = Function>) -> Vec<Device> {
        crate::enumerate::enumerate(&Bus::new(functions), &Default::default()).devices
    }

    #[test]
    fn the_msix_table_is_left_out() {
        let all = devices([Function::virtio_net(3)]);
        assert_eq!(block(&all[0], 4, all.iter()), Ok(Block { address: 0x7_0000_0000, length: 0x4000 }));
        assert_eq!(block(&all[0], 1, all.iter()), Err(Refusal::NotAlone));
        assert_eq!(block(&all[0], 0, all.iter()), Err(Refusal::Missing));
        assert_eq!(block(&all[0], 7, all.iter()), Err(Refusal::Missing));
    }

    #[test]
    fn a_table_in_the_middle_leaves_the_longer_part() {
        let mut function = Function::virtio_net(3);
        // Table at 0x1000 of register 4, as if it were an NVMe controller's.
        function.words[0x9c / 4] = 0x1000 | 4;
        let all = devices([function]);
        let expected = Block { address: 0x7_0000_2000, length: 0x2000 };
        assert_eq!(block(&all[0], 4, all.iter()), Ok(expected));
        assert_eq!((expected.first_frame(), expected.frames()), (0x70_0002, 2));
    }

    #[test]
    fn a_page_with_registers_of_another_device_is_left_out() {
        let small = |device, address: u32| {
            let mut function = Function::empty(Function::address(device), 1, 1, 0);
            function.words[4] = address;
            function.masks[0] = 0xffff_ff00;
            function
        };
        let all = devices([small(1, 0xfeb0_0000), small(2, 0xfeb0_0100), small(3, 0xfeb0_1100)]);
        assert_eq!(block(&all[0], 0, all.iter()), Err(Refusal::NotAlone));
        assert_eq!(block(&all[1], 0, all.iter()), Err(Refusal::NotAlone));
        let alone = Block { address: 0xfeb0_1100, length: 0x100 };
        assert_eq!(block(&all[2], 0, all.iter()), Ok(alone));
        assert_eq!((alone.first_frame(), alone.frames()), (0xf_eb01, 1));
    }

    proptest! {
        #[test]
        fn what_remains_is_within_and_apart(a in 0u64..99, b in 0u64..99, c in 0u64..99, d in 0u64..99) {
            let (range, taken) = (a.min(b)..a.max(b), c.min(d)..c.max(d));
            let rest = longest(range.clone(), &taken);
            prop_assert!(rest.start >= range.start && rest.end <= range.end && rest.start <= rest.end);
            let overlap = rest.clone().find(|byte| taken.contains(byte));
            prop_assert_eq!(overlap, None);
        }
    }
}
