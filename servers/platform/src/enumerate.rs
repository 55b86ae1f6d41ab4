//! Finding all PCI functions, bridges followed.

use crate::{
    bars::Lengths,
    config::{Access, Config, PciAddress, location},
    device::Device,
    wiring::Bridge,
};
use alloc::{collections::BTreeMap, vec::Vec};
use pci_types::{HeaderType, PciHeader, PciPciBridgeHeader};

/// Functions that are looked for; a machine with more has the rest ignored.
pub const DEVICES_MAX: usize = 256;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// All functions with a header of type 0, by address.
    pub devices: Vec<Device>,
    /// The bridges that lead to them.
    pub bridges: Vec<Bridge>,
}

/// What is behind host bridge 0 and the bridges that the firmware has set up. `known`: how long the registers of those are that were
/// found before.
pub fn enumerate(config: &impl Config, known: &BTreeMap<u16, Lengths>) -> Found {
    let mut devices = Vec::new();
    let mut bridges = Vec::new();
    let mut seen = [false; 256];
    let mut buses = Vec::from([0u8]);
    // A host bridge with several functions has a root bus behind each.
    if PciHeader::new(PciAddress::new(0, 0, 0, 0)).has_multiple_functions(Access(config)) {
        buses.extend((1..8).filter(|function| exists(config, PciAddress::new(0, 0, 0, *function))));
    }
    while let Some(bus) = buses.pop() {
        if core::mem::replace(&mut seen[usize::from(bus)], true) {
            continue;
        }
        for device in 0..32 {
            let first = PciAddress::new(0, bus, device, 0);
            if !exists(config, first) {
                continue;
            }
            let functions = if PciHeader::new(first).has_multiple_functions(Access(config)) { 8 } else { 1 };
            for function in 0..functions {
                let address = PciAddress::new(0, bus, device, function);
                if !exists(config, address) {
                    continue;
                }
                match PciHeader::new(address).header_type(Access(config)) {
                    HeaderType::Endpoint if devices.len() < DEVICES_MAX => {
                        devices.extend(Device::read(config, address, known.get(&location(address)).copied()))
                    }
                    HeaderType::PciPciBridge => {
                        let Some(behind) = secondary(config, address) else { continue };
                        if !seen[usize::from(behind)] && !buses.contains(&behind) {
                            bridges.push((address, behind));
                            buses.push(behind);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    devices.sort_by_key(|device: &Device| device.address);
    Found { devices, bridges }
}

fn exists(config: &impl Config, address: PciAddress) -> bool {
    PciHeader::new(address).id(Access(config)).0 != 0xffff
}

/// The bus behind a bridge; `None` if the firmware has given it none.
fn secondary(config: &impl Config, address: PciAddress) -> Option<u8> {
    let bridge = PciPciBridgeHeader::from_header(PciHeader::new(address), Access(config))?;
    Some(bridge.secondary_bus_number(Access(config))).filter(|bus| *bus != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{Bus, Function};

    #[test]
    fn follows_bridges_each_once() {
        let mut behind = Function::virtio_net(0);
        behind.address = PciAddress::new(0, 2, 0, 0);
        // Bridges 0 → 1 → 2, one back to 1, one that was not set up.
        let bridges =
            [(0, 1, 1), (1, 0, 2), (2, 3, 1), (2, 4, 0)].map(|(from, device, to)| Function::bridge(from, device, to));
        let bus = Bus::new(bridges.into_iter().chain([behind, Function::virtio_net(5)]));
        let Found { devices, bridges } = enumerate(&bus, &BTreeMap::new());
        assert_eq!(bridges, [(PciAddress::new(0, 0, 1, 0), 1), (PciAddress::new(0, 1, 0, 0), 2)]);
        let found: Vec<_> = devices.iter().map(|device| device.address).collect();
        assert_eq!(found, [PciAddress::new(0, 0, 5, 0), PciAddress::new(0, 2, 0, 0)]);
        assert_eq!(bus.addresses().len(), 6);
    }

    #[test]
    fn looks_at_functions_only_where_there_are_several() {
        let function = |number, several: bool| {
            let mut function = Function::empty(PciAddress::new(0, 0, 31, number), 0x8086, 0x2922, 0x0106);
            function.words[3] = u32::from(several) << 23;
            function
        };
        assert_eq!(enumerate(&Bus::new([function(0, true), function(3, false)]), &BTreeMap::new()).devices.len(), 2);
        assert_eq!(enumerate(&Bus::new([function(0, false), function(3, false)]), &BTreeMap::new()).devices.len(), 1);
    }

    #[test]
    fn a_machine_without_pci_has_no_devices() {
        assert!(enumerate(&Bus::default(), &BTreeMap::new()).devices.is_empty());
    }

    #[test]
    fn endless_functions_are_bounded() {
        let functions = (0..=255).flat_map(|bus| (0..32).map(move |device| PciAddress::new(0, bus, device, 0)));
        let bridge = |bus: u8| Function::bridge(bus, 31, bus.wrapping_add(1));
        let bus = Bus::new(functions.map(|address| Function::empty(address, 1, 1, 0)).chain((0..=255).map(bridge)));
        assert_eq!(enumerate(&bus, &BTreeMap::new()).devices.len(), DEVICES_MAX);
    }
}
