//! The firmware's program: AML, interpreted by the crate `acpi` (ACPI 6.5, 5.5 and 20).
//!
//! Wanted of it are the sleep types of \_S5 and the wiring of interrupt pins (_PRT). The interpreter panics on much that it does not expect, and knows
//! no limits: it runs once, at the first start of the server, with a meter; see `platform::memo` for what comes after a panic.

use crate::pc::{Io, pause};
use acpi::{
    Handle, Handler, PciAddress, PhysicalMapping,
    address::{AddressSpace, GenericAddress, MappedGas},
    aml::{
        AmlError, Interpreter,
        namespace::{AmlName, NameSeg, NamespaceLevelKind},
        object::{Object, WrappedObject},
    },
    registers::{FixedRegisters, Pm1ControlRegisterBlock, Pm1EventRegisterBlock},
};
use alloc::{
    format,
    string::{String, ToString},
    sync::Arc,
    vec,
    vec::Vec,
};
use core::{
    str::FromStr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};
use platform::{
    tables::{HEADER, Tables},
    wiring::{self, Bridge, Findings, Line, Route},
};
use protocol::memory::Access;
use server_runtime::clock;

/// Steps of the interpreter, as it reports them, before it is ended.
const STEPS_MAX: u32 = 3_000_000;
/// Nanoseconds that the program may sleep in one go.
const SLEEP_MAX: u64 = 100_000_000;
/// Nanoseconds that it may stall in one go.
const STALL_MAX: u64 = 1_000_000;
/// Argument of \_PIC: interrupts come by I/O APICs.
const APIC_MODE: u64 = 1;
/// PCI host bridges, as numbers (EISA identifiers) and as text.
const HOSTS: [(u64, &str); 2] = [(0x030a_d041, "PNP0A03"), (0x080a_d041, "PNP0A08")];

/// Counts the steps: the interpreter reports each to the log, and there is no other way to end a loop in the firmware's program.
struct Meter(AtomicU32);

static METER: Meter = Meter(AtomicU32::new(0));

/// Whether the program asked for configuration space. The crate (6.1) leaves out where in it a region begins, so that it reads other registers than
/// the program means; and it takes every device for one on bus 0. What depends on that is not believed, and nothing is written there.
static CONFIG_USED: AtomicBool = AtomicBool::new(false);

impl log::Log for Meter {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, _: &log::Record<'_>) {
        assert!(self.0.fetch_add(1, Ordering::Relaxed) < STEPS_MAX, "the firmware's AML does not come to an end");
    }
    fn flush(&self) {}
}

/// Runs what is needed of the program in the tables, and tells `so_far` what it has found whenever there is more. What fails is told in
/// `problems`; the rest goes on.
pub fn evaluate(
    io: Io,
    tables: &Tables,
    bridges: &[Bridge],
    problems: &mut Vec<String>,
    so_far: impl Fn(&Findings),
) -> Findings {
    // Only the first call does anything, and there is only one.
    let _ = log::set_logger(&METER);
    log::set_max_level(log::LevelFilter::Trace);
    let mut findings = Findings::default();
    let Some(first) = tables.get(b"DSDT") else { return findings };
    let Some(registers) = registers(io) else { return findings };
    // One thread is all there is; the interpreter wants it so.
    #[allow(clippy::arc_with_non_send_sync)]
    let registers = Arc::new(registers);
    let interpreter = Interpreter::new(io, first[8], registers, None);
    for table in [first].into_iter().chain(tables.all(b"SSDT")) {
        if let Err(error) = interpreter.load_table(&table[HEADER..]) {
            problems.push(format!("{}: {error:?}", table[..4].escape_ascii()));
        }
    }
    let mode = vec![Object::Integer(APIC_MODE).wrap()];
    if let Err(error) = name("\\_PIC").and_then(|path| interpreter.evaluate_if_present(path, mode)) {
        problems.push(format!("\\_PIC: {error:?}"));
    }
    match name("\\_S5").and_then(|path| interpreter.evaluate(path, vec![])) {
        Ok(package) => {
            findings.sleep = sleep(&package);
            so_far(&findings);
        }
        Err(error) => problems.push(format!("\\_S5: {error:?}")),
    }
    let program = Program { interpreter, bridges };
    for device in program.devices() {
        match program.routes(&device) {
            Ok(routes) => {
                findings.routes.extend(routes);
                so_far(&findings);
            }
            Err(error) => problems.push(format!("{device}._PRT: {error}")),
        }
    }
    findings
}

/// Registers that only a program with a global lock uses; they must be said.
fn registers(io: Io) -> Option<FixedRegisters<Io>> {
    let nowhere = GenericAddress {
        address_space: AddressSpace::SystemIo,
        bit_width: 16,
        bit_offset: 0,
        access_size: 2,
        address: 0,
    };
    // SAFETY: a port is nothing to map, and this one is not used: without a FACS the interpreter takes the lock without registers.
    let map = || unsafe { MappedGas::map_gas(nowhere, &io) }.ok();
    Some(FixedRegisters {
        pm1_event_registers: Pm1EventRegisterBlock { pm1_event_length: 4, pm1a: map()?, pm1b: None },
        pm1_control_registers: Pm1ControlRegisterBlock { pm1a: map()?, pm1b: None },
    })
}

fn name(path: &str) -> Result<AmlName, AmlError> {
    AmlName::from_str(path)
}

/// The first two numbers of \_S5.
fn sleep(package: &WrappedObject) -> Option<[u8; 2]> {
    let Object::Package(elements) = &**package else { return None };
    let number = |index: usize| match **elements.get(index)? {
        Object::Integer(number) => u8::try_from(number).ok().filter(|kind| *kind < 8),
        _ => None,
    };
    let first = number(0)?;
    Some([first, number(1).unwrap_or(first)])
}

struct Program<'a> {
    interpreter: Interpreter<Io>,
    bridges: &'a [Bridge],
}

impl Program<'_> {
    /// Devices that say how pins are wired.
    fn devices(&self) -> Vec<AmlName> {
        let mut found = Vec::new();
        let Ok(routing) = NameSeg::from_bytes(*b"_PRT") else { return found };
        let _ = self.interpreter.namespace.lock().traverse(|path, level| {
            if level.kind == NamespaceLevelKind::Device && level.values.contains_key(&routing) {
                found.push(path.clone());
            }
            Ok(true)
        });
        found
    }

    /// Evaluates what a device has under a name of four letters.
    fn of(&self, device: &AmlName, what: &str) -> Result<Option<WrappedObject>, String> {
        let path = name(what).and_then(|name| name.resolve(device)).map_err(|error| format!("{error:?}"))?;
        if self.interpreter.namespace.lock().get(path.clone()).is_err() {
            return Ok(None);
        }
        CONFIG_USED.store(false, Ordering::Relaxed);
        let value = self.interpreter.evaluate(path, vec![]).map_err(|error| format!("{what}: {error:?}"))?;
        if CONFIG_USED.load(Ordering::Relaxed) {
            return Err(format!("{what} reads configuration space, which the interpreter cannot"));
        }
        Ok(Some(value.unwrap_transparent_reference()))
    }

    fn number(&self, device: &AmlName, what: &str) -> Result<Option<u64>, String> {
        let value = self.of(device, what)?;
        Ok(value.and_then(|value| if let Object::Integer(number) = *value { Some(number) } else { None }))
    }

    fn is_host(&self, device: &AmlName) -> bool {
        let is = |value: &Object| match value {
            Object::Integer(id) => HOSTS.iter().any(|(host, _)| host == id),
            Object::String(id) => HOSTS.iter().any(|(_, host)| host == id),
            _ => false,
        };
        ["_HID", "_CID"].iter().filter_map(|what| self.of(device, what).ok().flatten()).any(|value| match &*value {
            Object::Package(ids) => ids.iter().any(|id| is(id)),
            id => is(id),
        })
    }

    /// The bus of a host bridge, or behind a bridge, that the program calls `device`. Each step goes to its parent.
    fn bus(&self, device: &AmlName) -> Result<u8, String> {
        if self.is_host(device) {
            let bus = self.number(device, "_BBN")?.unwrap_or(0);
            return u8::try_from(bus).map_err(|_| format!("bus {bus}"));
        }
        let parent = device.parent().map_err(|_| "it is behind no host bridge".to_string())?;
        if parent == AmlName::root() {
            return Err("it is behind no host bridge".to_string());
        }
        let bus = self.bus(&parent)?;
        let address = self.number(device, "_ADR")?.ok_or("it has no address")?;
        let (number, function) = ((address >> 16) as u8 & 31, address as u8 & 7);
        let here = PciAddress::new(0, bus, number, function);
        let behind = self.bridges.iter().find(|(bridge, _)| *bridge == here).map(|(_, bus)| *bus);
        behind.ok_or_else(|| format!("{here} is no bridge with a bus behind it"))
    }

    /// The wiring behind `device`. A pin whose link says nothing is left out.
    fn routes(&self, device: &AmlName) -> Result<Vec<Route>, String> {
        let bus = self.bus(device)?;
        let table = self.of(device, "_PRT")?.ok_or("it is gone")?;
        let Object::Package(entries) = &*table else { return Err("it is no package".to_string()) };
        Ok(entries.iter().filter_map(|entry| self.route(device, bus, entry)).collect())
    }

    /// An entry: address, pin, link or 0, number.
    fn route(&self, device: &AmlName, bus: u8, entry: &Object) -> Option<Route> {
        let Object::Package(fields) = entry else { return None };
        let number = |index: usize| match **fields.get(index)? {
            Object::Integer(number) => Some(number),
            _ => None,
        };
        let (address, pin) = (number(0)?, u8::try_from(number(1)?).ok().filter(|pin| *pin < wiring::PINS)?);
        let line = match &**fields.get(2)? {
            Object::Integer(0) => Line::pci(u32::try_from(number(3)?).ok()?),
            Object::String(link) => {
                let link = self.interpreter.namespace.lock().search_for_level(&name(link).ok()?, device).ok()?;
                let resources = self.of(&link, "_CRS").ok().flatten()?;
                wiring::interrupt(resources.as_buffer().ok()?)?
            }
            _ => return None,
        };
        Some(Route { bus, device: (address >> 16) as u8 & 31, pin: pin + 1, line })
    }
}

/// Reads a number of so many bytes wherever it lies; ones where nothing can be read.
fn read(io: &Io, address: usize, bytes: &mut [u8]) {
    let length = bytes.len();
    let aligned = address.is_multiple_of(length);
    let done = io.with_memory(address as u64, length, Access::empty(), |memory| match length {
        2 if aligned => bytes.copy_from_slice(&memory.read_u16(0).to_le_bytes()),
        4 if aligned => bytes.copy_from_slice(&memory.read_u32(0).to_le_bytes()),
        8 if aligned => bytes.copy_from_slice(&memory.read_u64(0).to_le_bytes()),
        _ => memory.copy_out(0, bytes),
    });
    if done.is_none() {
        bytes.fill(!0);
    }
}

/// Writes one. The firmware's own memory is not to be written: then nothing happens.
fn write(io: &Io, address: usize, bytes: &[u8]) {
    let aligned = address.is_multiple_of(bytes.len());
    io.with_memory(address as u64, bytes.len(), Access::WRITE, |memory| match *bytes {
        [a, b] if aligned => memory.write_u16(0, u16::from_le_bytes([a, b])),
        [a, b, c, d] if aligned => memory.write_u32(0, u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] if aligned => memory.write_u64(0, u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => memory.copy_in(0, bytes),
    });
}

/// See [`CONFIG_USED`]: there is nothing that could be read.
fn no_config() -> u32 {
    CONFIG_USED.store(true, Ordering::Relaxed);
    !0
}

macro_rules! memory {
    ($($type:ty, $read:ident, $write:ident;)*) => {$(
        fn $read(&self, address: usize) -> $type {
            let mut bytes = [0; size_of::<$type>()];
            read(self, address, &mut bytes);
            <$type>::from_le_bytes(bytes)
        }
        fn $write(&self, address: usize, value: $type) {
            write(self, address, &value.to_le_bytes());
        }
    )*};
}

macro_rules! ports_and_config {
    ($($type:ty, $read:ident, $write:ident, $read_config:ident, $write_config:ident;)*) => {$(
        fn $read(&self, port: u16) -> $type {
            self.read_port(port, size_of::<$type>() as u8) as $type
        }
        fn $write(&self, port: u16, value: $type) {
            self.write_port(port, size_of::<$type>() as u8, value.into());
        }
        fn $read_config(&self, _: PciAddress, _: u16) -> $type {
            no_config() as $type
        }
        fn $write_config(&self, _: PciAddress, _: u16, _: $type) {
            no_config();
        }
    )*};
}

impl Handler for Io {
    unsafe fn map_physical_region<T>(&self, _: usize, _: usize) -> PhysicalMapping<Self, T> {
        // The tables were copied, and the interpreter maps nothing else.
        panic!("the interpreter maps memory");
    }
    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}

    memory! {
        u8, read_u8, write_u8;
        u16, read_u16, write_u16;
        u32, read_u32, write_u32;
        u64, read_u64, write_u64;
    }
    ports_and_config! {
        u8, read_io_u8, write_io_u8, read_pci_u8, write_pci_u8;
        u16, read_io_u16, write_io_u16, read_pci_u16, write_pci_u16;
        u32, read_io_u32, write_io_u32, read_pci_u32, write_pci_u32;
    }

    fn nanos_since_boot(&self) -> u64 {
        clock::now()
    }
    fn stall(&self, microseconds: u64) {
        METER.0.fetch_add(STEPS_MAX / 3000, Ordering::Relaxed);
        pause(microseconds.saturating_mul(1000).min(STALL_MAX));
    }
    fn sleep(&self, milliseconds: u64) {
        // A loop that sleeps takes as many steps as others, but each of them longer.
        METER.0.fetch_add(STEPS_MAX / 100, Ordering::Relaxed);
        pause(milliseconds.saturating_mul(1_000_000).min(SLEEP_MAX));
    }
    fn handle_fatal_error(&self, kind: u8, code: u32, argument: u64) {
        server_runtime::log!("the firmware's AML reports a fatal error: {kind:#x}, {code:#x}, {argument:#x}");
    }
    // The program is the only one that runs.
    fn create_mutex(&self) -> Handle {
        Handle(0)
    }
    fn acquire(&self, _: Handle, _: u16) -> Result<(), AmlError> {
        Ok(())
    }
    fn release(&self, _: Handle) {}
}
