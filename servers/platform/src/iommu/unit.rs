//! The registers of a remapping unit (VT-d 4.1, 11.4).

use crate::platform::Message;
use alloc::vec::Vec;
use server_runtime::mmio::Region;

const CAPABILITIES: usize = 0x08;
const MORE_CAPABILITIES: usize = 0x10;
const COMMAND: usize = 0x18;
const STATUS: usize = 0x1c;
const ROOT: usize = 0x20;
const CONTEXT_COMMAND: usize = 0x28;
const FAULT_STATUS: usize = 0x34;
const FAULT_CONTROL: usize = 0x38;
const FAULT_DATA: usize = 0x3c;
const FAULT_ADDRESS: usize = 0x40;
const FAULT_ADDRESS_HIGH: usize = 0x44;
const PROTECTED: usize = 0x64;

/// Command and status: translate; take the root table; flush the write buffer; take invalidations from a queue.
const TRANSLATE: u32 = 1 << 31;
const SET_ROOT: u32 = 1 << 30;
const FLUSH: u32 = 1 << 27;
const QUEUE: u32 = 1 << 26;
/// Of the status register: what stays on, as opposed to what was done once.
const LASTING: u32 = 0x96ff_ffff;
/// Invalidation of all contexts, and of all translations with writes and reads under way drained; the top bit is cleared when it is done.
const ALL_CONTEXTS: u64 = 1 << 63 | 1 << 61;
const ALL_TRANSLATIONS: u64 = 1 << 63 | 1 << 60 | 1 << 49 | 1 << 48;
const PENDING: u64 = 1 << 63;
/// Fault status, all that is cleared by writing ones.
const FAULT_STATUS_ALL: u32 = 0x7d;
/// Fault control: no message is sent.
const FAULT_MASKED: u32 = 1 << 31;
/// Bytes of a fault record; in its last word: it is one; the device wanted to read.
const RECORD: usize = 16;
const RECORD_VALID: u32 = 1 << 31;
const RECORD_READ: u32 = 1 << 30;
/// Reads of a register that a unit may take for anything.
const PATIENCE: u32 = 1_000_000;

/// The unit did not do in time what it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stuck;

/// Memory that a device wanted to reach and must not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The function: bus in bits 8-15, device in 3-7, function in 0-2.
    pub function: u16,
    /// Physical address, of the page.
    pub address: u64,
    /// Whether it wanted to read, not to write.
    pub read: bool,
    /// Why not (VT-d 4.1, 7.1.3).
    pub reason: u8,
}

/// A unit.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    registers: Region,
    capabilities: u64,
    more: u64,
}

/// Bytes of registers that a unit with these two capability registers has; its first page has the capabilities.
pub fn length(registers: &Region) -> usize {
    let unit = Unit::new(*registers);
    (unit.translations() + RECORD).max(unit.records() + unit.record_count() * RECORD)
}

impl Unit {
    /// From its registers, mapped: all that [`length`] says.
    pub fn new(registers: Region) -> Unit {
        let (capabilities, more) = (registers.read_u64(CAPABILITIES), registers.read_u64(MORE_CAPABILITIES));
        Unit { registers, capabilities, more }
    }

    /// Whether page tables of 3 or 4 levels can be used.
    pub fn has_levels(&self, levels: u32) -> bool {
        self.capabilities >> (8 + levels - 2) & 1 != 0
    }

    /// Domains that it tells apart.
    pub fn domains(&self) -> u64 {
        1 << (4 + 2 * (self.capabilities & 7))
    }

    /// Whether it sees what the processor has written without its being flushed.
    pub fn is_coherent(&self) -> bool {
        self.more & 1 != 0
    }

    /// Offset of the registers that invalidate translations.
    fn translations(&self) -> usize {
        (self.more >> 8 & 0x3ff) as usize * 16
    }

    fn records(&self) -> usize {
        (self.capabilities >> 24 & 0x3ff) as usize * 16
    }

    fn record_count(&self) -> usize {
        (self.capabilities >> 40 & 0xff) as usize + 1
    }

    fn wait(&self, done: impl Fn(&Region) -> bool) -> Result<(), Stuck> {
        if (0..PATIENCE).any(|_| done(&self.registers)) { Ok(()) } else { Err(Stuck) }
    }

    fn command(&self, set: u32, clear: u32) {
        let lasting = self.registers.read_u32(STATUS) & LASTING;
        self.registers.write_u32(COMMAND, lasting & !clear | set);
    }

    /// Whether it translates by the tables at this physical address.
    pub fn translates(&self, root: u64) -> bool {
        self.registers.read_u32(STATUS) & TRANSLATE != 0 && self.registers.read_u64(ROOT) == root
    }

    /// Translates by the tables at this physical address from here on.
    pub fn enable(&self, root: u64) -> Result<(), Stuck> {
        // Firmware may have it take its commands from a queue; here there is none.
        if self.registers.read_u32(STATUS) & QUEUE != 0 {
            self.command(0, QUEUE);
            self.wait(|registers| registers.read_u32(STATUS) & QUEUE == 0)?;
        }
        self.registers.write_u64(ROOT, root);
        self.command(SET_ROOT, 0);
        self.wait(|registers| registers.read_u32(STATUS) & SET_ROOT != 0)?;
        self.invalidate()?;
        self.command(TRANSLATE, 0);
        self.wait(|registers| registers.read_u32(STATUS) & TRANSLATE != 0)?;
        // Memory that firmware has kept from all devices until now.
        if self.capabilities >> 5 & 3 != 0 {
            self.registers.write_u32(PROTECTED, 0);
        }
        Ok(())
    }

    /// Makes it forget what it knows of the tables.
    pub fn invalidate(&self) -> Result<(), Stuck> {
        if self.capabilities >> 4 & 1 != 0 {
            self.command(FLUSH, 0);
            self.wait(|registers| registers.read_u32(STATUS) & FLUSH == 0)?;
        }
        self.registers.write_u64(CONTEXT_COMMAND, ALL_CONTEXTS);
        self.wait(|registers| registers.read_u64(CONTEXT_COMMAND) & PENDING == 0)?;
        let translations = self.translations() + 8;
        self.registers.write_u64(translations, ALL_TRANSLATIONS);
        self.wait(|registers| registers.read_u64(translations) & PENDING == 0)
    }

    /// Sends this message when a fault is recorded.
    pub fn report(&self, message: Message) {
        self.registers.write_u32(FAULT_CONTROL, FAULT_MASKED);
        self.registers.write_u32(FAULT_DATA, message.data);
        self.registers.write_u32(FAULT_ADDRESS, message.address as u32);
        self.registers.write_u32(FAULT_ADDRESS_HIGH, (message.address >> 32) as u32);
        self.registers.write_u32(FAULT_CONTROL, 0);
    }

    /// The faults that were recorded; they are forgotten.
    pub fn faults(&self) -> Vec<Fault> {
        let record = |index: usize| {
            let offset = self.records() + index * RECORD;
            let last = self.registers.read_u32(offset + 12);
            if last & RECORD_VALID == 0 {
                return None;
            }
            let fault = Fault {
                function: self.registers.read_u32(offset + 8) as u16,
                address: self.registers.read_u64(offset) & !0xfff,
                read: last & RECORD_READ != 0,
                reason: last as u8,
            };
            self.registers.write_u32(offset + 12, RECORD_VALID);
            Some(fault)
        };
        let faults = (0..self.record_count()).filter_map(record).collect();
        self.registers.write_u32(FAULT_STATUS, FAULT_STATUS_ALL);
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    /// Registers as QEMU's: 3 levels, one record at 0x220, invalidation at 0xf0.
    fn registers() -> Region {
        let registers = Region::of(vec![0; 512].leak());
        registers.write_u64(CAPABILITIES, 0x2200_0206);
        registers.write_u64(MORE_CAPABILITIES, 0xf00);
        registers
    }

    #[test]
    fn capabilities_are_read() {
        let registers = registers();
        let unit = Unit::new(registers);
        assert!(unit.has_levels(3) && !unit.has_levels(4) && !unit.is_coherent());
        assert_eq!(unit.domains(), 1 << 16);
        assert!(length(&registers) >= 0x230);
    }

    #[test]
    fn a_unit_that_does_nothing_is_given_up() {
        assert_eq!(Unit::new(registers()).enable(0x1000), Err(Stuck));
    }

    #[test]
    fn a_fault_is_read_once_told() {
        let registers = registers();
        let unit = Unit::new(registers);
        let offset = unit.records();
        registers.write_u64(offset, 0x1234_5000);
        registers.write_u32(offset + 8, 0x0018);
        registers.write_u32(offset + 12, RECORD_VALID | 5);
        let fault = Fault { function: 0x18, address: 0x1234_5000, read: false, reason: 5 };
        assert_eq!(unit.faults()[0], fault);
        // A real one clears the record then; here the bit that clears it stands.
        assert_eq!(registers.read_u32(offset + 12), RECORD_VALID);
    }
}
