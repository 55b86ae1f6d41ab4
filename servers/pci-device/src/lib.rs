//! A PCI device as its driver sees it: claimed, its registers, interrupts and configuration space reached through the
//! platform server, and the memory that it shares with its driver.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod hardware;

use alloc::{format, vec::Vec};
use protocol::{
    abi::Target,
    domain::line,
    layout::PAGE,
    manifest::{NO_DEVICE, Resource, Startup},
    memory::Access,
    service::platform::{Bar, DeviceInfo, DeviceNumber, Platform, Request, Response},
};
use server_runtime::{CallError, Client, hypercall, memory, mmio::Region, slots};

/// Why a device cannot be used; for the log.
pub type Problem = alloc::string::String;

/// Memory that a device reads and writes.
///
/// It is a shared memory of the system file, because a device may still write to it when its driver has died; the
/// driver's own memory is used for other things by then.
#[derive(Clone, Copy, Debug)]
pub struct Dma {
    /// The memory.
    pub memory: Region,
    /// Its physical address; it is contiguous.
    pub physical: u64,
}

impl Dma {
    /// The shared memory that is resource `index` of the startup page; `None` if that is something else.
    pub fn resource(startup: &Startup, index: usize) -> Option<Dma> {
        let held = startup.resources.get(index)?;
        match held.resource {
            Resource::Shared { .. } => Some(Dma { memory: memory::resource(index)?, physical: held.first * PAGE }),
            _ => None,
        }
    }

    /// A part of it. Panics if it is not within.
    #[track_caller]
    pub fn part(&self, offset: usize, length: usize) -> Dma {
        Dma { memory: self.memory.part(offset, length), physical: self.physical + offset as u64 }
    }
}

/// A device that this driver has claimed.
pub struct Device {
    platform: Client<Platform>,
    channel: u8,
    number: DeviceNumber,
    /// What it is.
    pub info: DeviceInfo,
    /// Its base address registers.
    pub bars: Vec<Bar>,
    /// Entries of its MSI-X table; 0: it interrupts by MSI or by its INTx line, and has one interrupt.
    pub msix: u16,
}

/// A block of device registers, mapped.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// The registers.
    pub memory: Region,
    /// Physical address of the first.
    pub physical: u64,
}

/// A hardware interrupt, bound to a line.
#[derive(Clone, Copy, Debug)]
pub enum Interrupt {
    /// The device's own: slot of its capability.
    Own(u8),
    /// On a line that devices of other drivers share: slot of the channel to the platform server.
    Shared(u8),
}

impl Interrupt {
    /// Lets the next interrupt come, if this is a level-triggered line that is masked; else does nothing. To be called after the device
    /// has stopped asking for it.
    pub fn acknowledge(&self) {
        let _ = match *self {
            Interrupt::Own(slot) => hypercall::interrupt_acknowledge(slot),
            Interrupt::Shared(platform) => hypercall::raise(Target::slot(platform)),
        };
    }
}

impl Device {
    /// Claims the next device of those that the system file names for this program.
    pub fn claim(startup: &Startup) -> Result<Device, Problem> {
        let platform = startup.channel("platform").ok_or("the system file gives no channel to the platform server")?;
        Device::claim_next(platform.slot, Client::new(platform.slot), startup)
    }

    /// Claims the next one in a session that has perhaps others already: a new session would give them back.
    fn claim_next(channel: u8, mut platform: Client<Platform>, startup: &Startup) -> Result<Device, Problem> {
        match platform.call(&Request::Claim { program: startup.program }) {
            Ok(Response::Device { device, info, bars, msix }) => {
                Ok(Device { platform, channel, number: device, info, bars, msix })
            }
            Ok(Response::NotFound) => {
                Err(absent(startup, "the machine has no device that the system file names for this driver"))
            }
            other => Err(unexpected("claim", other)),
        }
    }

    /// Claims devices one by one until `open` can use one, and says in the log why it cannot use the others. Those stay claimed: `open` must
    /// leave them quiet. It gets the line to bind the interrupt to.
    pub fn claim_first<D>(
        startup: &Startup,
        mut open: impl FnMut(&mut Device, u8) -> Result<D, Problem>,
    ) -> Result<D, Problem> {
        let mut line = line::HARDWARE_FIRST;
        let mut device = Device::claim(startup)?;
        loop {
            match open(&mut device, line) {
                Ok(opened) => return Ok(opened),
                Err(problem) => {
                    let place = device.info.location;
                    let (bus, number, function) = (place >> 8 & 0xff, place >> 3 & 31, place & 7);
                    server_runtime::log!("PCI {bus:02x}:{number:02x}.{function}: {problem}");
                }
            }
            // Only as many devices as there are lines are of use.
            line = if line + 1 < line::COUNT { line + 1 } else { line };
            device = Device::claim_next(device.channel, device.platform, startup)?;
        }
    }

    /// Takes and maps the registers behind base address register `bar`, which begin where the device's own do and are at least `length`
    /// bytes: for drivers that know where each register is.
    pub fn registers_from_start(&mut self, bar: u8, length: usize) -> Result<Region, Problem> {
        let start = self.bars.iter().find(|found| found.number == bar).map(|found| found.address);
        let registers = self.registers(bar)?.filter(|found| Some(found.physical) == start);
        let registers =
            registers.ok_or_else(|| format!("the registers in BAR {bar} are not there for the driver alone"))?;
        match registers.memory.length() {
            mapped if mapped >= length => Ok(registers.memory),
            mapped => Err(format!("{mapped} bytes of registers in BAR {bar}, which are too few")),
        }
    }

    /// Reads 32 bits of configuration space at `offset`, a multiple of 4.
    pub fn config_read(&mut self, offset: u16) -> Result<u32, Problem> {
        match self.platform.call(&Request::ConfigRead { device: self.number, offset }) {
            Ok(Response::Value(value)) => Ok(value),
            other => Err(unexpected("read of configuration space", other)),
        }
    }

    /// Writes 32 bits of configuration space at `offset`, a multiple of 4.
    pub fn config_write(&mut self, offset: u16, value: u32) -> Result<(), Problem> {
        match self.platform.call(&Request::ConfigWrite { device: self.number, offset, value }) {
            Ok(Response::Done) => Ok(()),
            other => Err(unexpected("write of configuration space", other)),
        }
    }

    /// Takes and maps the registers behind base address register `bar`. `None` if the driver may not have them: they are
    /// I/O ports, or share their pages with the MSI-X table.
    pub fn registers(&mut self, bar: u8) -> Result<Option<Registers>, Problem> {
        let slot = slots::alloc().ok_or("no capability slot is free")?;
        let request = Request::Registers { device: self.number, bar };
        let (address, length) = match self.platform.call_with(&request, Some(slot), Default::default()) {
            Ok((Response::Registers { address, length }, true)) => (address, length),
            Ok((Response::NotFound | Response::Denied, _)) => {
                slots::free(slot);
                return Ok(None);
            }
            other => {
                slots::free(slot);
                return Err(unexpected("registers", other.map(|(response, _)| response)));
            }
        };
        let offset = address % PAGE;
        let pages = (offset + length).div_ceil(PAGE);
        let mapped = memory::map_region(slot, address / PAGE, pages, Access::WRITE)
            .map_err(|error| format!("registers at {address:#x} cannot be mapped: {error}"))?;
        Ok(Some(Registers { memory: mapped.part(offset as usize, length as usize), physical: address }))
    }

    /// Takes interrupt `index` and binds it to the own line `line`, from [`protocol::domain::line::HARDWARE_FIRST`] up. If devices of
    /// other drivers share it, it comes on [`protocol::domain::line::SHARED_INTERRUPT`] instead.
    /// From here on the device may read and write memory.
    pub fn interrupt(&mut self, index: u16, line: u8) -> Result<Interrupt, Problem> {
        let slot = slots::alloc().ok_or("no capability slot is free")?;
        let request = Request::Interrupt { device: self.number, index };
        match self.platform.call_with(&request, Some(slot), Default::default()) {
            Ok((Response::Done, true)) => {}
            Ok((Response::Shared, _)) => {
                slots::free(slot);
                return Ok(Interrupt::Shared(self.channel));
            }
            other => return Err(unexpected("interrupt", other.map(|(response, _)| response))),
        }
        hypercall::interrupt_bind(slot, line).map_err(|error| format!("interrupt {index} cannot be bound: {error}"))?;
        Ok(Interrupt::Own(slot))
    }
}

/// Why there is no device for this program: returned if it is the server's only or last program, which goes on without a device. Else
/// the program ends here, and `init` starts the next one in its place.
pub fn absent(startup: &Startup, why: &str) -> Problem {
    if startup.more_programs {
        hypercall::exit(NO_DEVICE)
    }
    why.into()
}

fn unexpected(what: &str, answer: Result<Response, CallError>) -> Problem {
    match answer {
        Ok(response) => format!("{what}: the platform server answers {response:?}"),
        Err(error) => format!("{what}: no answer of the platform server ({error:?})"),
    }
}
