//! Configuration space as `virtio-drivers` wants it.
//!
//! The transport finds the size of a base address register by writing ones to it, which no driver may do here. The
//! answers that it would get are made up from what the platform server says of the registers.

use alloc::{rc::Rc, vec::Vec};
use core::cell::RefCell;
use protocol::service::platform::Bar;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

/// Offset of the command register.
const COMMAND: u8 = 0x04;
/// Offset of the first base address register, and the one behind the last.
const BAR: u8 = 0x10;
const BAR_END: u8 = 0x28;
/// In a base address register: memory of 64 bits.
const MEMORY_64: u32 = 0b100;

/// Reads 32 bits of the device's configuration space.
pub type Read = dyn FnMut(u16) -> u32;

/// The configuration space of one device.
#[derive(Clone)]
pub struct Config {
    read: Rc<RefCell<Read>>,
    bars: Vec<Bar>,
    /// Registers that ones were written to.
    sizing: [bool; 6],
}

impl Config {
    /// The configuration space that `read` reads, of a device with these registers.
    pub fn new(read: impl FnMut(u16) -> u32 + 'static, bars: Vec<Bar>) -> Config {
        Config { read: Rc::new(RefCell::new(read)), bars, sizing: [false; 6] }
    }

    /// Reads 32 bits.
    pub fn read(&self, offset: u16) -> u32 {
        (self.read.borrow_mut())(offset)
    }

    /// What base address register `number` reads as after ones were written to it.
    fn size_mask(&self, number: u8) -> u32 {
        let flags =
            |number: u8| self.read(u16::from(BAR + number * 4)) & if self.is_memory(number) { 0xf } else { 0x3 };
        if let Some(bar) = self.bars.iter().find(|bar| bar.number == number) {
            return !(bar.length as u32).wrapping_sub(1) & !0xf | flags(number);
        }
        let below = number.checked_sub(1).and_then(|below| self.bars.iter().find(|bar| bar.number == below));
        match below {
            Some(bar) if bar.memory && flags(bar.number) & MEMORY_64 != 0 => (!(bar.length - 1) >> 32) as u32,
            _ => 0,
        }
    }

    fn is_memory(&self, number: u8) -> bool {
        self.bars.iter().any(|bar| bar.number == number && bar.memory)
    }
}

fn bar_number(offset: u8) -> Option<u8> {
    (BAR..BAR_END).contains(&offset).then(|| (offset - BAR) / 4)
}

impl ConfigurationAccess for Config {
    fn read_word(&self, _: DeviceFunction, offset: u8) -> u32 {
        match bar_number(offset) {
            Some(number) if self.sizing[usize::from(number)] => self.size_mask(number),
            _ => self.read(u16::from(offset & 0xfc)),
        }
    }

    fn write_word(&mut self, _: DeviceFunction, offset: u8, value: u32) {
        match bar_number(offset) {
            Some(number) => self.sizing[usize::from(number)] = value == !0,
            // Decoding is switched off and on again around that; the platform server has it on already.
            None => debug_assert_eq!(offset, COMMAND),
        }
    }

    unsafe fn unsafe_clone(&self) -> Config {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_drivers::transport::pci::bus::{BarInfo, PciRoot};

    const HERE: DeviceFunction = DeviceFunction { bus: 0, device: 3, function: 0 };

    #[test]
    fn sizes_come_out_right_without_a_write() {
        let bar = |number, address, length, memory| Bar { number, address, length, memory };
        let bars = Vec::from([
            bar(0, 0xc040, 0x20, false),
            bar(1, 0xfeb9_1000, 0x1000, true),
            bar(4, 0x7_0000_0000, 0x4000, true),
        ]);
        let words = |offset| match offset {
            0x04 => 0x0010_0003,
            0x10 => 0xc041,
            0x14 => 0xfeb9_1000,
            0x20 => 0x0000_000c,
            0x24 => 0x7,
            _ => 0,
        };
        let mut root = PciRoot::new(Config::new(words, bars));
        let found = root.bars(HERE).unwrap();
        assert_eq!(found[0], Some(BarInfo::IO { address: 0xc040, size: 0x20 }));
        assert_eq!(found[1].as_ref().and_then(|bar| bar.memory_address_size()), Some((0xfeb9_1000, 0x1000)));
        assert_eq!(found[4].as_ref().and_then(|bar| bar.memory_address_size()), Some((0x7_0000_0000, 0x4000)));
        assert_eq!((&found[2], &found[3], &found[5]), (&None, &None, &None));
    }
}
