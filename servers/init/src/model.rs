//! A model of the kernel and a small manifest, for the tests.

use crate::{
    extents::Place,
    grants::Holdings,
    machine::{Capability, Machine},
};
use alloc::collections::BTreeMap;
use core::fmt::Arguments;
use hypercall::MapError;
use protocol::{
    abi::{Error, Target},
    boot,
    capability::Narrow,
    domain::{Control, DomainParameters, Event, Usage},
    layout::PAGE,
    manifest::{Channel, MANIFEST_VERSION, Manifest, PciMatch, Program, Resource, Restart, Server, Startup},
    memory::{Access, MapKind, MapOperation},
};

/// A domain of the model.
#[derive(Default, Debug)]
pub struct Domain {
    pub parameters: DomainParameters,
    pub pages: BTreeMap<u64, (u64, Access)>,
    pub tables: BTreeMap<(u8, u64), u64>,
    pub slots: BTreeMap<u8, (Capability, Option<Narrow>)>,
    pub started: Option<[u64; 3]>,
    pub raised: Vec<u8>,
    /// Steps that a reset or destruction still takes.
    pub steps: u32,
}

/// The kernel as `init` sees it.
#[derive(Default, Debug)]
pub struct Model {
    pub memory: BTreeMap<u64, Box<[u8; 4096]>>,
    pub domains: BTreeMap<u64, Domain>,
    pub generation: u32,
    pub events: Vec<Event>,
    pub now: u64,
    pub lines: Vec<String>,
    /// The next operations of this kind fail.
    pub refuse_start: bool,
}

impl Model {
    /// The domain behind a target.
    pub fn domain(&mut self, target: Target) -> Result<&mut Domain, Error> {
        self.domains.get_mut(&target.0).ok_or(Error::Gone)
    }

    /// The domain with this tag.
    pub fn tagged(&mut self, tag: u64) -> &mut Domain {
        self.domains.values_mut().find(|domain| domain.parameters.tag == tag).expect("a domain")
    }

    /// The startup page that a domain would read.
    pub fn startup(&mut self, tag: u64) -> Startup {
        let frame = self.tagged(tag).pages[&protocol::layout::STARTUP].0;
        Startup::decode(&self.memory[&frame][..]).expect("a startup page")
    }

    fn write(&mut self, physical: u64, byte: u8) {
        self.memory.entry(physical / PAGE).or_insert_with(|| Box::new([0xcc; 4096]))[(physical % PAGE) as usize] = byte;
    }
}

impl Machine for Model {
    fn create(&mut self, slot: u8, frame: u64, parameters: &DomainParameters) -> Result<Target, Error> {
        self.generation += 1;
        let target = Target::pool(slot, frame as u32, self.generation);
        assert!(!self.domains.keys().any(|key| *key as u32 == frame as u32), "the frame is in use");
        self.domains.insert(target.0, Domain { parameters: *parameters, ..Domain::default() });
        Ok(target)
    }

    fn control(&mut self, target: Target, control: Control, arguments: [u64; 3]) -> Result<(), Error> {
        let refuse = core::mem::take(&mut self.refuse_start);
        let domain = self.domain(target)?;
        match control {
            Control::Start if refuse => return Err(Error::Exhausted),
            Control::Start => domain.started = Some(arguments),
            Control::Reset | Control::Destroy if domain.steps > 0 => {
                domain.steps -= 1;
                return Err(Error::Again);
            }
            Control::Reset => *domain = Domain { parameters: domain.parameters, ..Domain::default() },
            Control::Destroy => drop(self.domains.remove(&target.0)),
            _ => {}
        }
        Ok(())
    }

    fn map(&mut self, target: Target, operations: &[MapOperation]) -> Result<(), MapError> {
        let domain = self.domain(target).map_err(|error| MapError { error, operations: 0, pages: 0 })?;
        let [operation] = operations else { panic!("one operation at a time") };
        if operation.kind == MapKind::Table as u8 {
            let level = if domain.tables.contains_key(&(2, operation.address >> 30)) { 1 } else { 2 };
            let key = (level, operation.address >> if level == 2 { 30 } else { 21 });
            assert_eq!(domain.tables.insert(key, operation.frame), None);
            return Ok(());
        }
        for page in 0..operation.count {
            let address = operation.address + u64::from(page) * PAGE;
            let tables = [(2, address >> 30), (1, address >> 21)];
            if !tables.iter().all(|key| domain.tables.contains_key(key)) {
                return Err(MapError { error: Error::NoTable, operations: 0, pages: page });
            }
            let entry = (operation.frame + u64::from(page), Access::from_bits(operation.access).unwrap());
            assert_eq!(domain.pages.insert(address, entry), None);
        }
        Ok(())
    }

    fn copy(&mut self, bytes: &[u8], _slot: u8, physical: u64) -> Result<(), Error> {
        bytes.iter().zip(physical..).for_each(|(byte, at)| self.write(at, *byte));
        Ok(())
    }

    fn zero(&mut self, _slot: u8, physical: u64, length: u64) -> Result<(), Error> {
        assert!(physical.is_multiple_of(PAGE) && length.is_multiple_of(PAGE));
        for frame in physical / PAGE..(physical + length) / PAGE {
            self.memory.insert(frame, Box::new([0; 4096]));
        }
        Ok(())
    }

    fn grant(&mut self, target: Target, slot: u8, from: Capability, narrow: Option<&Narrow>) -> Result<(), Error> {
        if let Capability::Domain(from) = from {
            self.domain(from)?;
        }
        self.domain(target)?.slots.insert(slot, (from, narrow.copied()));
        Ok(())
    }

    fn raise(&mut self, target: Target, line: u8) -> Result<(), Error> {
        self.domain(target)?.raised.push(line);
        Ok(())
    }

    fn usage(&self, target: Target) -> Result<Usage, Error> {
        self.domains.get(&target.0).map(|_| Usage { cpu_time: 5, ..Usage::default() }).ok_or(Error::Gone)
    }

    fn collect(&mut self, events: &mut [Event]) -> Result<usize, Error> {
        let taken = self.events.len().min(events.len());
        for (to, from) in events.iter_mut().zip(self.events.drain(..taken)) {
            *to = from;
        }
        Ok(taken)
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn log(&mut self, line: Arguments) {
        self.lines.push(line.to_string());
    }
}

/// A server without anything.
pub fn server(name: &str) -> Server {
    Server {
        name: name.into(),
        programs: vec![Program { file: "program".into(), pci_devices: Vec::new() }],
        band: 1,
        memory: 1 << 20,
        restart: Restart::Always { pause: 10, most: 3, window: 60_000 },
        channels: Vec::new(),
        resources: Vec::new(),
        options: vec![("key".into(), "value".into())],
    }
}

fn channel(to: u16, line: u8, remote_line: u8) -> Channel {
    Channel { to, line, remote_line }
}

/// Four servers: platform; a driver; swap, which calls both; a supervisor, which calls swap and init.
pub fn manifest() -> Manifest {
    let mut servers = ["platform", "driver", "swap", "supervisor"].map(server).to_vec();
    servers[0].resources = vec![Resource::Platform, Resource::Ports { first: 0xcf8, count: 8 }, Resource::Debug];
    servers[1].channels = vec![channel(0, 8, 8)];
    servers[1].programs[0].pci_devices = vec![PciMatch::Id { vendor: 0x1af4, device: 0x1041 }];
    servers[1].resources =
        vec![Resource::IsaInterrupt { number: 4 }, Resource::Shared { name: "net0".into(), bytes: 3 * PAGE }];
    servers[2].channels = vec![channel(0, 8, 9), channel(1, 9, 9)];
    servers[2].resources = vec![Resource::Pool, Resource::Devices { device: 3 }, Resource::Bundle];
    servers[3].channels = vec![channel(2, 8, 10), channel(Channel::INIT, 9, 9)];
    Manifest { version: MANIFEST_VERSION, name: "test".into(), servers, ..Manifest::default() }
}

/// What there is to hold.
pub fn holdings() -> Holdings {
    Holdings {
        tsc_base: 7,
        tsc_multiplier: 1 << 32,
        rsdp: 0xe_0000,
        bundle: Place { slot: boot::slot::BUNDLE, first: 0x9000, count: 3 },
        bundle_length: 3 * PAGE - 7,
        devices: Place { slot: boot::slot::DEVICES, first: 0, count: 1 << 20 },
        shared: BTreeMap::from([("net0".into(), Place { slot: boot::slot::MEMORY, first: 0x8000, count: 3 })]),
        framebuffer: Default::default(),
        pool: vec![
            Place { slot: boot::slot::MEMORY, first: 0xa000, count: 1000 },
            Place { slot: boot::slot::MORE_MEMORY, first: 0x900, count: 300 },
        ],
    }
}
