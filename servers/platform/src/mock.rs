//! A PCI bus for the tests.

use crate::config::{Config, LENGTH, PciAddress};
use core::cell::{Cell, RefCell};
use std::{collections::BTreeMap, vec::Vec};

/// A function: its configuration space and what its base address registers decode.
#[derive(Clone)]
pub struct Function {
    pub address: PciAddress,
    pub words: [u32; LENGTH as usize / 4],
    pub masks: [u32; 6],
}

impl Function {
    pub fn address(device: u8) -> PciAddress {
        PciAddress::new(0, 0, device, 0)
    }

    pub fn empty(address: PciAddress, vendor: u16, device: u16, class: u16) -> Function {
        let mut words = [0; 64];
        words[0] = u32::from(device) << 16 | u32::from(vendor);
        words[2] = u32::from(class) << 16;
        Function { address, words, masks: [0; 6] }
    }

    /// As QEMU's, on bus 0.
    pub fn virtio_net(device: u8) -> Function {
        let mut function = Function::empty(Function::address(device), 0x1af4, 0x1041, 0x0200);
        let words = &mut function.words;
        words[1] = 0x0010_0003;
        words[4] = 0xc041;
        words[5] = 0xfeb9_1000;
        words[8] = 0x0000_000c;
        words[9] = 0x7;
        words[0x34 / 4] = 0x98;
        words[0x3c / 4] = 0x010b;
        // MSI-X with 4 entries in register 1, then the virtio capability for access through configuration space, then
        // PCI Express.
        words[0x98 / 4] = 0x0003_8411;
        words[0x9c / 4] = 1;
        words[0xa0 / 4] = 0x801;
        words[0x84 / 4] = 0x0514_4009;
        words[0x40 / 4] = 0x0002_0010;
        words[0x44 / 4] = 1 << 28;
        function.masks = [0xffff_ffe1, 0xffff_f000, 0, 0, 0xffff_c00c, 0xffff_ffff];
        function
    }

    /// A bridge from bus `from` to bus `to`.
    pub fn bridge(from: u8, device: u8, to: u8) -> Function {
        let mut function = Function::empty(PciAddress::new(0, from, device, 0), 0x8086, 0x1234, 0x0604);
        function.words[3] = 0x0001_0000;
        function.words[6] = u32::from(to) << 16 | u32::from(to) << 8 | u32::from(from);
        function
    }
}

/// All functions.
#[derive(Default)]
pub struct Bus {
    functions: RefCell<BTreeMap<PciAddress, Function>>,
    resets: Cell<u32>,
    writes: Cell<u32>,
}

impl Bus {
    pub fn new(functions: impl IntoIterator<Item = Function>) -> Bus {
        let functions = functions.into_iter().map(|function| (function.address, function)).collect();
        Bus { functions: RefCell::new(functions), resets: Cell::new(0), writes: Cell::new(0) }
    }

    pub fn resets(&self) -> u32 {
        self.resets.get()
    }

    /// Writes to the configuration of any.
    pub fn writes(&self) -> u32 {
        self.writes.get()
    }

    /// Sets the bits of `mask` in a word to those of `value`.
    pub fn set(&self, address: PciAddress, offset: u16, mask: u32, value: u32) {
        if let Some(function) = self.functions.borrow_mut().get_mut(&address) {
            let word = &mut function.words[usize::from(offset / 4)];
            *word = *word & !mask | value & mask;
        }
    }

    pub fn addresses(&self) -> Vec<PciAddress> {
        self.functions.borrow().keys().copied().collect()
    }
}

impl Config for Bus {
    fn read(&self, address: PciAddress, offset: u16) -> u32 {
        assert!(offset < LENGTH && offset.is_multiple_of(4));
        self.functions.borrow().get(&address).map_or(!0, |function| function.words[usize::from(offset / 4)])
    }

    fn read_extended(&self, _: PciAddress, _: u16) -> Option<u32> {
        None
    }

    fn write(&self, address: PciAddress, offset: u16, value: u32) {
        assert!(offset < LENGTH && offset.is_multiple_of(4));
        self.writes.set(self.writes.get() + 1);
        let mut functions = self.functions.borrow_mut();
        let Some(function) = functions.get_mut(&address) else {
            return;
        };
        let word = usize::from(offset / 4);
        match offset {
            0x04 => function.words[1] = function.words[1] & 0xffff_0000 | value & 0xffff,
            0x10..0x28 => {
                let mask = function.masks[word - 4];
                let flags = if value == !0 { mask } else { function.words[word] };
                let fixed = if mask & 1 != 0 { 3 } else { 0xf };
                function.words[word] = value & mask & !fixed | flags & fixed;
                if word % 2 == 1 && function.words[word - 1] >> 1 & 3 == 2 {
                    function.words[word] = value & mask;
                }
            }
            // PCI Express device control of `Function::virtio_net`: a reset loses what was set.
            0x48 if value & 1 << 15 != 0 => {
                self.resets.set(self.resets.get() + 1);
                function.words[1] &= 0xffff_0000;
                for (word, mask) in function.words[4..10].iter_mut().zip(function.masks) {
                    *word &= if mask & 1 != 0 { 3 } else { 0xf };
                }
                function.words[0x3c / 4] &= !0xff;
            }
            _ => function.words[word] = value,
        }
    }
}
