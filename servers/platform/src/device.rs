//! What a PCI function says of itself, and which of its configuration a driver may write.

use crate::{
    bars::{BARS, Lengths, bars},
    config::{Access, BAR, COMMAND, Config, LENGTH, PciAddress, command, location, set_command},
};
use alloc::vec::Vec;
use core::ops::Range;
use pci_types::{
    CommandRegister, EndpointHeader, PciHeader,
    capability::{MsiCapability, MsixCapability, PciCapability},
};
use protocol::service::platform::{Bar, DeviceInfo};

/// Offset of the interrupt line (bits 0-7) and pin (bits 8-15).
const INTERRUPT: u16 = 0x3c;
/// First byte behind the header, where capabilities lie.
const CAPABILITIES: u16 = 0x40;
/// Capabilities that fit.
const CAPABILITIES_MAX: usize = (LENGTH - CAPABILITIES) as usize / 4;
/// Vendor of virtio devices.
const VIRTIO: u16 = 0x1af4;
/// The virtio capability that opens a way through configuration space to all registers, the MSI-X table included.
const VIRTIO_CONFIG_ACCESS: u8 = 5;
/// In the device capabilities of PCI Express: the function can be reset by itself.
const FUNCTION_LEVEL_RESET: u32 = 1 << 28;
/// In the device control register of PCI Express: reset it.
const INITIATE_RESET: u32 = 1 << 15;
/// The bits of the command register that a driver may change.
const DRIVERS_COMMAND: CommandRegister =
    CommandRegister::MEMORY_ENABLE.union(CommandRegister::BUS_MASTER_ENABLE).union(CommandRegister::INTERRUPT_DISABLE);

/// A PCI function with a header of type 0.
#[derive(Clone, Debug)]
pub struct Device {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class (bits 16-23), subclass (8-15), programming interface (0-7).
    pub class: u32,
    /// How long its registers are.
    pub lengths: Lengths,
    /// Its base address registers that are in use.
    pub bars: Vec<Bar>,
    /// Its MSI-X capability.
    pub msix: Option<MsixCapability>,
    /// Its MSI capability.
    pub msi: Option<MsiCapability>,
    /// Its interrupt pin: 1 to 4 for INTA to INTD; 0: none.
    pub pin: u8,
    /// ISA number of its INTx line as the firmware has set it; `None` if it has set none.
    pub interrupt_line: Option<u8>,
    /// Base address registers that the firmware has given no address.
    pub unplaced: Vec<u8>,
    /// Offset of its PCI Express capability if it can be reset by itself.
    reset: Option<u16>,
    /// Capabilities that its driver must not write.
    protected: Vec<Range<u16>>,
}

impl Device {
    /// Reads a function's header and capabilities. Nothing is written if the lengths of its registers are known; else nobody may use it meanwhile.
    pub fn read(config: &impl Config, address: PciAddress, lengths: Option<Lengths>) -> Option<Device> {
        let access = Access(config);
        let header = PciHeader::new(address);
        let (vendor, device) = header.id(&access);
        let (_, class, subclass, interface) = header.revision_and_class(&access);
        let endpoint = EndpointHeader::from_header(header, &access)?;
        let (pin, line) = endpoint.interrupt(&access);
        let lengths = lengths.unwrap_or_else(|| Lengths::probe(config, address));
        let (bars, unplaced) = bars(config, address, &lengths);
        let mut found = Device {
            address,
            vendor,
            device,
            class: u32::from(class) << 16 | u32::from(subclass) << 8 | u32::from(interface),
            lengths,
            bars,
            unplaced,
            msix: None,
            msi: None,
            pin: if pin <= crate::wiring::PINS { pin } else { 0 },
            interrupt_line: (pin != 0 && line < 16).then_some(line),
            reset: None,
            protected: Vec::new(),
        };
        if has_sound_capabilities(config, &endpoint) {
            for capability in endpoint.capabilities(&access).take(CAPABILITIES_MAX) {
                found.add_capability(config, capability);
            }
        }
        Some(found)
    }

    fn add_capability(&mut self, config: &impl Config, capability: PciCapability) {
        let offset = capability.address().offset;
        match capability {
            PciCapability::MsiX(msix) => {
                self.msix = Some(msix);
                self.protected.push(offset..offset + 12);
            }
            PciCapability::Msi(msi) => {
                self.msi = Some(msi);
                self.protected.push(offset..offset + 24);
            }
            PciCapability::PciExpress(_) => {
                let can_reset = config.read(self.address, offset + 4) & FUNCTION_LEVEL_RESET != 0;
                self.reset = can_reset.then_some(offset);
                // A driver that resets its device would lose its registers' addresses.
                self.protected.push(offset + 8..offset + 12);
            }
            PciCapability::Vendor(_) if self.vendor == VIRTIO => {
                let kind = (config.read(self.address, offset) >> 24) as u8;
                if kind == VIRTIO_CONFIG_ACCESS {
                    self.protected.push(offset..offset + 20);
                }
            }
            _ => {}
        }
    }

    /// As in a list.
    pub fn info(&self, claimed: bool) -> DeviceInfo {
        DeviceInfo {
            location: location(self.address),
            vendor: self.vendor,
            device: self.device,
            class: self.class,
            claimed,
        }
    }

    /// A base address register in use.
    pub fn bar(&self, number: u8) -> Option<Bar> {
        self.bars.iter().find(|bar| bar.number == number).copied()
    }

    /// Physical addresses of the MSI-X table.
    pub fn msix_table(&self) -> Option<Range<u64>> {
        let msix = self.msix.as_ref()?;
        let bar = self.bar(msix.table_bar()).filter(|bar| bar.memory)?;
        let first = bar.address.checked_add(u64::from(msix.table_offset()))?;
        let end = first + u64::from(msix.table_size()) * 16;
        (end <= bar.address + bar.length).then_some(first..end)
    }

    /// Entries of the MSI-X table; 0 if there is none, or none that can be used.
    pub fn msix_entries(&self) -> u16 {
        match (&self.msix, self.msix_table()) {
            (Some(msix), Some(_)) => msix.table_size(),
            _ => 0,
        }
    }

    /// Whether the firmware may go on using it: the keyboard behind a USB controller may be made to look like one of old, by
    /// system management code.
    pub fn is_firmwares(&self) -> bool {
        const USB: u32 = 0x0c03;
        const BRIDGES: u32 = 0x06;
        self.class >> 8 == USB || self.class >> 16 == BRIDGES
    }

    /// Whether it can interrupt by messages.
    pub fn has_messages(&self) -> bool {
        self.msix_entries() > 0 || self.msi.is_some()
    }

    /// Writes for the driver. `false` if that is not for a driver to write.
    pub fn write(&self, config: &impl Config, offset: u16, value: u32) -> bool {
        if !offset.is_multiple_of(4) || offset >= LENGTH {
            return false;
        }
        if offset == COMMAND {
            let old = command(config, self.address);
            let new = CommandRegister::from_bits_retain(value as u16);
            set_command(config, self.address, old.difference(DRIVERS_COMMAND) | new.intersection(DRIVERS_COMMAND));
            return true;
        }
        let word = offset..offset + 4;
        let overlaps = |range: &Range<u16>| range.start < word.end && word.start < range.end;
        if offset < CAPABILITIES || self.protected.iter().any(overlaps) {
            return false;
        }
        config.write(self.address, offset, value);
        true
    }

    /// Sets and clears bits of the command register.
    pub fn change_command(&self, config: &impl Config, set: CommandRegister, clear: CommandRegister) {
        set_command(config, self.address, (command(config, self.address) | set).difference(clear));
    }

    /// Stops the device's DMA and interrupts.
    pub fn quiesce(&self, config: &impl Config) {
        self.change_command(config, CommandRegister::INTERRUPT_DISABLE, CommandRegister::BUS_MASTER_ENABLE);
        if let Some(mut msix) = self.msix {
            msix.set_enabled(false, Access(config));
        }
        if let Some(msi) = &self.msi {
            msi.set_enabled(false, Access(config));
        }
    }

    /// Resets the function, if it can be, and puts back what the firmware had set. `wait` lets the device finish, which it
    /// must within 100 ms. Returns whether it was reset.
    pub fn reset(&self, config: &impl Config, wait: impl FnOnce()) -> bool {
        let Some(capability) = self.reset else {
            return false;
        };
        let bars: Vec<_> = (0..u16::from(BARS)).map(|bar| config.read(self.address, BAR + bar * 4)).collect();
        let (cache, interrupt) = (config.read(self.address, 0x0c), config.read(self.address, INTERRUPT));
        let old = command(config, self.address);
        let control = config.read(self.address, capability + 8);
        config.write(self.address, capability + 8, control & 0xffff | INITIATE_RESET);
        wait();
        for (bar, value) in (0..).zip(bars) {
            config.write(self.address, BAR + bar * 4, value);
        }
        config.write(self.address, 0x0c, cache);
        config.write(self.address, INTERRUPT, interrupt);
        config.write(self.address, capability + 8, control & 0xffff & !INITIATE_RESET);
        set_command(config, self.address, old.difference(CommandRegister::BUS_MASTER_ENABLE));
        true
    }
}

/// Whether the list of capabilities ends and lies within configuration space, so that it can be walked.
fn has_sound_capabilities(config: &impl Config, endpoint: &EndpointHeader) -> bool {
    let mut offset = endpoint.capability_pointer(Access(config));
    for _ in 0..=CAPABILITIES_MAX {
        match offset {
            0 => return true,
            1..CAPABILITIES => return false,
            // The lowest two bits are reserved, and not masked by who walks the list.
            _ if !offset.is_multiple_of(4) => return false,
            _ => {
                let header = config.read(endpoint.header().address(), offset);
                if offset + capability_length(header) > LENGTH {
                    return false;
                }
                offset = (header >> 8) as u16 & 0xff;
            }
        }
    }
    false
}

/// Bytes of a capability that are looked at, by its first word (PCI Local Bus 3.0, 6.8; PCI Express Base 6.0, 7.5.3).
fn capability_length(header: u32) -> u16 {
    const MSI: u32 = 0x05;
    const EXPRESS: u32 = 0x10;
    const MSIX: u32 = 0x11;
    let long_address = header >> 16 & 1 << 7 != 0;
    match header & 0xff {
        MSI if long_address => 16,
        MSI | EXPRESS | MSIX => 12,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{Bus, Function};
    use proptest::prelude::*;

    #[test]
    fn finds_registers_and_capabilities() {
        let bus = Bus::new([Function::virtio_net(3)]);
        let device = Device::read(&bus, Function::address(3), None).unwrap();
        assert_eq!((device.vendor, device.device, device.class), (0x1af4, 0x1041, 0x02_0000));
        let bar = |number, address, length, memory| Bar { number, address, length, memory };
        let expected =
            [bar(0, 0xc040, 0x20, false), bar(1, 0xfeb9_1000, 0x1000, true), bar(4, 0x7_0000_0000, 0x4000, true)];
        assert_eq!(device.bars, expected);
        assert_eq!(device.msix_entries(), 4);
        assert_eq!(device.msix_table(), Some(0xfeb9_1000..0xfeb9_1040));
        assert_eq!((device.pin, device.interrupt_line), (1, Some(11)));
        // Sizing left everything as it was.
        assert_eq!(bus.read(device.address, BAR + 4), 0xfeb9_1000);
        assert_eq!(bus.read(device.address, COMMAND) & 0xffff, 0x0003);

        let writes = bus.writes();
        let again = Device::read(&bus, Function::address(3), Some(device.lengths)).unwrap();
        assert_eq!((&again.bars[..], again.msix_table()), (&expected[..], device.msix_table()));
        assert_eq!(bus.writes(), writes);
    }

    #[test]
    fn a_driver_writes_its_own_registers_only() {
        let bus = Bus::new([Function::virtio_net(3)]);
        let device = Device::read(&bus, Function::address(3), None).unwrap();
        for offset in [0x00, 0x08, 0x0c, 0x10, 0x14, 0x24, 0x30, 0x3c] {
            assert!(!device.write(&bus, offset, !0), "{offset:#x}");
        }
        // MSI-X, the virtio capability that reaches the MSI-X table, PCI Express device control.
        for offset in [0x98, 0x9c, 0xa0, 0x84, 0x94, 0x48, 0x100, 0x41] {
            assert!(!device.write(&bus, offset, !0), "{offset:#x}");
        }
        assert!(device.write(&bus, 0x70, 0x1234));
        assert!(device.write(&bus, COMMAND, 0xffff_ffff));
        assert_eq!(bus.read(device.address, COMMAND) & 0xffff, 0x0407);
        assert!(device.write(&bus, COMMAND, 0));
        assert_eq!(bus.read(device.address, COMMAND) & 0xffff, 0x0001);
    }

    #[test]
    fn a_reset_keeps_what_the_firmware_set() {
        let bus = Bus::new([Function::virtio_net(3)]);
        let device = Device::read(&bus, Function::address(3), None).unwrap();
        device.change_command(&bus, CommandRegister::BUS_MASTER_ENABLE, CommandRegister::empty());
        let mut waited = false;
        assert!(device.reset(&bus, || waited = true));
        assert!(waited && bus.resets() == 1);
        assert_eq!(bus.read(device.address, BAR + 16), 0x0000_000c);
        assert_eq!(bus.read(device.address, BAR + 20), 0x7);
        assert_eq!(bus.read(device.address, COMMAND) & 0xffff, 0x0003);
        assert_eq!(bus.read(device.address, INTERRUPT) & 0xff, 11);
    }

    #[test]
    fn registers_without_an_address_are_told() {
        let mut function = Function::virtio_net(3);
        function.words[5] = 0;
        (function.words[8], function.words[9]) = (0xc, 0);
        let device = Device::read(&Bus::new([function]), Function::address(3), None).unwrap();
        assert_eq!((device.bars.len(), &device.unplaced[..]), (1, &[1, 4][..]));
        assert_eq!((device.msix_entries(), device.has_messages()), (0, false));
    }

    #[test]
    fn circular_capabilities_are_passed_over() {
        let mut function = Function::virtio_net(3);
        function.words[0x98 / 4] = 0x0003_9800 | 0x11;
        let bus = Bus::new([function]);
        let device = Device::read(&bus, Function::address(3), None).unwrap();
        assert!(device.msix.is_none());
    }

    #[test]
    fn capabilities_that_do_not_fit_are_passed_over() {
        for header in [0x10, 0x11, 0x05] {
            let mut function = Function::virtio_net(3);
            function.words[0x34 / 4] = 0xfc;
            function.words[0xfc / 4] = header;
            let bus = Bus::new([function]);
            let device = Device::read(&bus, Function::address(3), None).unwrap();
            assert!(device.msix.is_none() && device.msi.is_none() && device.reset.is_none());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_configuration_space_can_be_read(words in prop::collection::vec(any::<u32>(), 64), masks: [u32; 6]) {
            let mut function = Function::virtio_net(3);
            function.words.copy_from_slice(&words);
            function.words[3] &= 0xff00_ffff;
            function.masks = masks;
            let bus = Bus::new([function]);
            if let Some(device) = Device::read(&bus, Function::address(3), None) {
                let _ = (device.msix_table(), device.msix_entries());
                for bar in device.bars {
                    prop_assert!(bar.length.is_power_of_two());
                    prop_assert!(bar.address.checked_add(bar.length).is_some());
                }
            }
        }
    }
}
