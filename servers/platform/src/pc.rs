//! The machine, by system calls.

use alloc::{format, vec::Vec};
use core::{cell::RefCell, fmt::Arguments};
use platform::{
    config::{Config, LENGTH, PciAddress, location},
    ecam::Window,
    fadt::Register,
    platform::{Machine, Message},
    power, processors,
    registers::Block,
    rtc,
    tables::Physical,
};
use protocol::{
    abi::{Error, Target},
    capability::Narrow,
    domain::{InterruptSource, ProcessorStep},
    layout::PAGE,
    memory::Access,
    service::init::{self, Init},
};
use server_runtime::{Client, clock, hypercall, memory, mmio::Region, slots};

/// Ports of the access to configuration space.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// Ports of the clock.
const CLOCK_INDEX: u16 = 0x70;
const CLOCK_DATA: u16 = 0x71;
/// Nanoseconds that a function may take to reset (PCI Express Base 6.0, 6.6.2).
const RESET_TIME: u64 = 100_000_000;
/// Bytes of an MSI-X table entry, in words of 4: address low and high, data, control (bit 0: masked).
const MSIX_CONTROL: usize = 12;
const MSIX_MASKED: u32 = 1;

/// Ports and physical addresses.
#[derive(Clone, Copy)]
pub struct Io {
    /// Slot of all device registers.
    pub devices: u8,
    /// Slot of all ports.
    pub ports: u8,
}

impl Io {
    /// Reads a port of `width` bytes.
    pub fn read_port(&self, port: u16, width: u8) -> u32 {
        hypercall::port_read(self.ports, port, width).unwrap_or(!0)
    }
    /// Writes a port of `width` bytes.
    pub fn write_port(&self, port: u16, width: u8, value: u32) {
        let _ = hypercall::port_write(self.ports, port, width, value);
    }

    /// Lets `work` use `length` bytes at a physical address; `None` if they cannot be mapped so.
    pub fn with_memory<R>(
        &self,
        address: u64,
        length: usize,
        access: Access,
        work: impl FnOnce(Region) -> R,
    ) -> Option<R> {
        let offset = address % PAGE;
        let pages = (offset.checked_add(length as u64)?).div_ceil(PAGE);
        let base = memory::map_extent(self.devices, address / PAGE, pages, access).ok()?;
        // SAFETY: mapped just now, and unmapped only after `work` is done; `work` cannot keep the region's memory alive, and does not use
        // a copy of the region: no caller in this crate returns one.
        let result = work(unsafe { Region::new(base, (pages * PAGE) as usize) }.part(offset as usize, length));
        // SAFETY: the mapping made above; its only user has returned.
        unsafe { memory::unmap(base, pages) };
        Some(result)
    }
}

impl Physical for Io {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.with_memory(address, bytes.len(), Access::empty(), |memory| memory.copy_out(0, bytes)).is_some()
    }
}

impl Config for Io {
    fn read(&self, address: PciAddress, offset: u16) -> u32 {
        self.write_port(CONFIG_ADDRESS, 4, config_address(address, offset));
        self.read_port(CONFIG_DATA, 4)
    }
    fn write(&self, address: PciAddress, offset: u16, value: u32) {
        self.write_port(CONFIG_ADDRESS, 4, config_address(address, offset));
        self.write_port(CONFIG_DATA, 4, value);
    }
    fn read_extended(&self, _: PciAddress, _: u16) -> Option<u32> {
        None
    }
}

fn config_address(address: PciAddress, offset: u16) -> u32 {
    1 << 31 | u32::from(location(address)) << 8 | u32::from(offset & 0xfc)
}

impl power::Registers for Io {
    fn read_u8(&mut self, register: Register) -> u8 {
        match register {
            Register::Port(port) => self.read_port(port, 1) as u8,
            Register::Memory(address) => {
                self.with_memory(address, 1, Access::empty(), |memory| memory.read_u8(0)).unwrap_or(!0)
            }
            Register::Config(device, function, offset) => {
                let address = PciAddress::new(0, 0, device, function);
                (Config::read(self, address, offset & !3) >> (offset % 4 * 8)) as u8
            }
        }
    }
    fn write_u8(&mut self, register: Register, value: u8) {
        match register {
            Register::Port(port) => self.write_port(port, 1, value.into()),
            Register::Memory(address) => {
                self.with_memory(address, 1, Access::WRITE, |memory| memory.write_u8(0, value));
            }
            Register::Config(device, function, offset) => {
                // By the port, so that the bytes beside it are left alone.
                let address = PciAddress::new(0, 0, device, function);
                self.write_port(CONFIG_ADDRESS, 4, config_address(address, offset));
                self.write_port(CONFIG_DATA + offset % 4, 1, value.into());
            }
        }
    }
    fn read_u16(&mut self, register: Register) -> u16 {
        match register {
            Register::Port(port) => self.read_port(port, 2) as u16,
            Register::Memory(address) if address.is_multiple_of(2) => {
                self.with_memory(address, 2, Access::empty(), |memory| memory.read_u16(0)).unwrap_or(!0)
            }
            Register::Memory(_) | Register::Config(..) => !0,
        }
    }
    fn write_u16(&mut self, register: Register, value: u16) {
        match register {
            Register::Port(port) => self.write_port(port, 2, value.into()),
            Register::Memory(address) if address.is_multiple_of(2) => {
                self.with_memory(address, 2, Access::WRITE, |memory| memory.write_u16(0, value));
            }
            Register::Memory(_) | Register::Config(..) => {}
        }
    }
    fn wait(&mut self, nanoseconds: u64) {
        pause(nanoseconds);
    }
}

/// The clock's registers.
impl rtc::Registers for Io {
    fn read(&mut self, register: u8) -> u8 {
        // The top bit of the index would mask non-maskable interrupts.
        self.write_port(CLOCK_INDEX, 1, u32::from(register & 0x7f));
        self.read_port(CLOCK_DATA, 1) as u8
    }
}

/// Lets nanoseconds pass.
pub fn pause(nanoseconds: u64) {
    let end = clock::now().saturating_add(nanoseconds);
    while clock::now() < end {
        hypercall::idle(end);
    }
}

/// All that this server holds.
pub struct Pc {
    /// Ports and memory.
    pub io: Io,
    /// The interrupt authority.
    pub authority: u8,
    /// A slot for what is given away.
    pub given: Option<u8>,
    /// Memory-mapped configuration space.
    pub windows: Vec<Window>,
    /// Pages that stay mapped, by frame: those with MSI-X tables, and configuration space.
    pages: RefCell<Vec<(u64, Region)>>,
    /// Who kills servers.
    init: Option<Client<Init>>,
}

impl Pc {
    /// With these slots; `init`: of a channel to it, if there is one.
    pub fn new(io: Io, authority: u8, windows: Vec<Window>, init: Option<u8>) -> Pc {
        let (pages, init) = (RefCell::new(Vec::new()), init.map(Client::new));
        Pc { io, authority, given: slots::alloc(), windows, pages, init }
    }

    fn page(&self, frame: u64) -> Option<Region> {
        let mut pages = self.pages.borrow_mut();
        if let Some((_, page)) = pages.iter().find(|(known, _)| *known == frame) {
            return Some(*page);
        }
        let page = memory::map_region(self.io.devices, frame, 1, Access::WRITE).ok()?;
        pages.push((frame, page));
        Some(page)
    }
}

impl Config for Pc {
    fn read(&self, address: PciAddress, offset: u16) -> u32 {
        Config::read(&self.io, address, offset)
    }
    fn write(&self, address: PciAddress, offset: u16, value: u32) {
        Config::write(&self.io, address, offset, value);
    }
    fn read_extended(&self, address: PciAddress, offset: u16) -> Option<u32> {
        let frame = self.windows.iter().find_map(|window| window.function(address))?;
        let page = self.page(frame)?;
        // A table that is wrong about the place is not believed.
        let same = page.read_u32(0) == Config::read(&self.io, address, 0);
        (same && offset >= LENGTH).then(|| page.read_u32(usize::from(offset)))
    }
}

impl Machine for Pc {
    fn interrupt(&mut self, source: InterruptSource) -> Option<(u8, Message)> {
        let slot = slots::alloc()?;
        match hypercall::interrupt_create(self.authority, slot, source) {
            Ok((address, data)) => Some((slot, Message { address, data: data as u32 })),
            Err(error) => {
                self.log(format_args!("no interrupt for {source:?}: {error}"));
                slots::free(slot);
                None
            }
        }
    }

    fn registers(&mut self, block: Block) -> Option<u8> {
        let slot = self.given?;
        let rights = hypercall::capability_info(self.io.devices).ok()?.rights;
        let count = u32::try_from(block.frames()).ok()?;
        let narrow = Narrow { rights, count, first: block.first_frame(), ..Narrow::default() };
        match hypercall::capability_copy(Target::OWN, slot, self.io.devices, Some(&narrow)) {
            Ok(()) => Some(slot),
            Err(error) => {
                self.log(format_args!("no capability for {block:x?}: {error}"));
                None
            }
        }
    }

    fn write_msix(&mut self, entry: u64, message: Option<Message>) -> bool {
        let Some(page) = self.page(entry / PAGE) else {
            return false;
        };
        let offset = (entry % PAGE) as usize;
        page.write_u32(offset + MSIX_CONTROL, MSIX_MASKED);
        if let Some(Message { address, data }) = message {
            page.write_u32(offset, address as u32);
            page.write_u32(offset + 4, (address >> 32) as u32);
            page.write_u32(offset + 8, data);
            page.write_u32(offset + MSIX_CONTROL, 0);
        }
        true
    }

    fn bind(&mut self, slot: u8, line: u8) -> bool {
        match hypercall::interrupt_bind(slot, line) {
            Ok(()) => true,
            Err(error) => {
                self.log(format_args!("an interrupt cannot be bound: {error}"));
                false
            }
        }
    }

    fn acknowledge(&mut self, slot: u8) {
        let _ = hypercall::interrupt_acknowledge(slot);
    }

    fn raise(&mut self, slot: u8) {
        // A driver that is being restarted asks for the interrupt again.
        let _ = hypercall::raise(Target::slot(slot));
    }

    fn kill(&mut self, server: &str) -> bool {
        let init = self.init.as_mut();
        init.is_some_and(|init| matches!(init.call(&init::Request::Kill(server)), Ok(init::Response::Done)))
    }

    fn now(&self) -> u64 {
        clock::now()
    }

    fn wait_for_reset(&self) {
        pause(RESET_TIME);
    }

    fn log(&self, text: Arguments<'_>) {
        server_runtime::log!("{text}");
    }
}

impl processors::Starter for Pc {
    fn step(&mut self, apic: u32, step: ProcessorStep) -> Result<usize, Error> {
        hypercall::processor_start(self.authority, apic, step)
    }
    fn now(&self) -> u64 {
        clock::now()
    }
    fn wait(&mut self, nanoseconds: u64) {
        pause(nanoseconds);
    }
    fn log(&self, text: Arguments<'_>) {
        server_runtime::log!("{text}");
    }
}

/// The windows of memory-mapped configuration space, for the log.
pub fn describe(windows: &[Window]) -> alloc::string::String {
    let window = |window: &Window| {
        let Window { segment, first, last, frame } = window;
        let note = if *segment == 0 { "" } else { " (not used)" };
        format!("segment {segment} buses {first:02x}-{last:02x} at {:#x}{note}", frame * PAGE)
    };
    windows.iter().map(window).collect::<Vec<_>>().join(", ")
}
