//! The IOMMU: what a driver's device may reach (Intel VT-d 4.1).
//!
//! Each device that a driver has claimed reaches the shared memories of that driver and nothing else, at their physical addresses. All units use
//! the same tables. Messages of interrupts pass: they are not remapped, and what a device could do with a forged one is to interrupt.

mod dmar;
mod tables;
mod unit;

pub use dmar::Dmar;
pub use unit::{Fault, Unit, length};

use crate::{config::location, platform::Message};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::ops::Range;
use pci_types::PciAddress;
use protocol::layout::PAGE;
use server_runtime::mmio::Region;
use tables::Tables;

/// Name of the shared memory for the tables in the system file.
pub const NAME: &str = "iommu";

/// All units and their tables.
#[derive(Debug)]
pub struct Iommu {
    units: Vec<Unit>,
    tables: Tables,
    reserved: Vec<(u16, Range<u64>)>,
}

impl Iommu {
    /// Begins to translate: from here on nobody's device reaches anything, but those that firmware goes on using. `memory`, at a physical address:
    /// for the tables. If the units use them already, from an earlier life of this server, devices keep what they have.
    pub fn new(
        units: Vec<Unit>,
        reserved: &[(PciAddress, Range<u64>)],
        (memory, physical): (Region, u64),
    ) -> Result<Iommu, String> {
        let has = |levels: &u32| units.iter().all(|unit| unit.has_levels(*levels));
        let levels = [3, 4].into_iter().find(has).ok_or("it has neither 3 nor 4 levels of tables")?;
        let pages = memory.length() as u64 / PAGE;
        if units.iter().any(|unit| unit.domains() < pages) {
            return Err("it tells too few domains apart".to_string());
        }
        let coherent = units.iter().all(Unit::is_coherent);
        let fresh = !units.iter().all(|unit| unit.translates(physical)) || units.is_empty();
        let mut tables = Tables::new(memory, physical, levels, coherent, fresh);
        let reserved: Vec<_> = reserved.iter().map(|(device, frames)| (location(*device), frames.clone())).collect();
        if fresh {
            for (index, (function, _)) in reserved.iter().enumerate() {
                if reserved[..index].iter().any(|(other, _)| other == function) {
                    continue;
                }
                let frames = reserved_for(&reserved, *function);
                tables.attach(*function, &frames).map_err(|_| "its tables have no room for reserved memory")?;
            }
            for unit in &units {
                unit.enable(tables.root()).map_err(|_| "a unit does not take its tables")?;
            }
        }
        Ok(Iommu { units, tables, reserved })
    }

    /// Has the units send this message when a device reaches for what is not its own.
    pub fn report(&self, message: Message) {
        self.units.iter().for_each(|unit| unit.report(message));
    }

    /// Lets a function reach these frames, and those that firmware reserves for it, and nothing else.
    pub fn attach(&mut self, function: u16, frames: &[Range<u64>]) -> Result<(), String> {
        self.detach(function, false)?;
        let mut frames = frames.to_vec();
        frames.extend(reserved_for(&self.reserved, function));
        self.tables.attach(function, &frames).map_err(|_| {
            format!("the shared memory {NAME:?} has too few pages for its tables: {} are in use", self.tables.used())
        })?;
        // A unit may have kept that there was nothing.
        self.invalidate()
    }

    /// Takes everything from a function. `silent`: it is not told any more what it reaches for.
    pub fn detach(&mut self, function: u16, silent: bool) -> Result<(), String> {
        let detached = self.tables.detach(function, silent);
        self.invalidate()?;
        if let Some(detached) = detached {
            self.tables.release(detached);
        }
        Ok(())
    }

    fn invalidate(&self) -> Result<(), String> {
        self.units
            .iter()
            .try_for_each(Unit::invalidate)
            .map_err(|_| "a unit does not forget its old tables".to_string())
    }

    /// Pages of tables in use.
    pub fn pages(&self) -> usize {
        self.tables.used()
    }

    /// What devices reached for since the last time.
    pub fn faults(&self) -> Vec<Fault> {
        self.units.iter().flat_map(Unit::faults).collect()
    }
}

fn reserved_for(reserved: &[(u16, Range<u64>)], function: u16) -> Vec<Range<u64>> {
    reserved.iter().filter(|(other, _)| *other == function).map(|(_, frames)| frames.clone()).collect()
}
