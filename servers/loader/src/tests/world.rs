//! The servers that the loader calls, as doubles, and images and VMs for them.

use super::*;

pub const MEMORY: u64 = 256 * 1024;

/// A guest image: a page of code, then 5 bytes of data and a page of zeros, a NIC window and a console page there.
pub fn elf(nic: bool, version: u32) -> Vec<u8> {
    let mut file = vec![0; 2 * PAGE as usize + 5];
    let put16 = |file: &mut Vec<u8>, at: usize, v: u16| file[at..at + 2].copy_from_slice(&v.to_le_bytes());
    let put32 = |file: &mut Vec<u8>, at: usize, v: u32| file[at..at + 4].copy_from_slice(&v.to_le_bytes());
    let put64 = |file: &mut Vec<u8>, at: usize, v: u64| file[at..at + 8].copy_from_slice(&v.to_le_bytes());
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    put16(&mut file, 16, 2);
    put16(&mut file, 18, 62);
    put32(&mut file, 20, 1);
    put64(&mut file, 24, IMAGE_BASE + 16);
    put64(&mut file, 32, 64);
    for (at, value) in [(52, 64), (54, 56), (56, 3), (58, 64)] {
        put16(&mut file, at, value);
    }
    // Type, flags, offset, address, bytes in the file, bytes in memory.
    let note = 300;
    let data = IMAGE_BASE + PAGE;
    let headers = [(1, 5, PAGE, IMAGE_BASE, PAGE, PAGE), (1, 6, 2 * PAGE, data, 5, 4 * PAGE), (4, 4, note, 0, 88, 88)];
    for (index, (kind, flags, offset, address, length, memory)) in headers.into_iter().enumerate() {
        let at = 64 + 56 * index;
        put32(&mut file, at, kind);
        put32(&mut file, at + 4, flags);
        for (place, value) in [(8, offset), (16, address), (24, address), (32, length), (40, memory), (48, PAGE)] {
            put64(&mut file, at + place, value);
        }
    }
    let at = note as usize;
    for (place, value) in [(0, OWNER_LENGTH), (4, 64), (8, TYPE), (24, version)] {
        put32(&mut file, at + place, value);
    }
    file[at + 12..at + 24].copy_from_slice(&OWNER);
    put64(&mut file, at + 32, MEMORY);
    if nic {
        put64(&mut file, at + 40, data);
        put64(&mut file, at + 48, 2 * PAGE);
    }
    put64(&mut file, at + 72, data + 3 * PAGE);
    put64(&mut file, at + 80, PAGE);
    file
}

pub fn cpio(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let end = [(bundle::TRAILER, Vec::new())];
    for (name, data) in files.iter().chain(&end) {
        let zeros = "0".repeat(8);
        let mut header = format!("070701{}", zeros.repeat(6));
        header += &format!("{:08x}{}{:08x}{}", data.len(), zeros.repeat(4), name.len() + 1, zeros);
        out.extend(header.as_bytes());
        out.extend(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(data);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

pub fn the_bundle() -> Vec<u8> {
    cpio(&[
        ("web", elf(true, ARCHITECTURE_VERSION)),
        ("quiet", elf(false, ARCHITECTURE_VERSION)),
        ("ready", {
            let mut file = elf(true, ARCHITECTURE_VERSION);
            // The flag of its note.
            file[300 + 28] = 1;
            file
        }),
        ("old", elf(true, ARCHITECTURE_VERSION + 1)),
        ("junk", b"not an image".to_vec()),
    ])
}

pub fn vm(name: &str, image: &str, last: u8) -> Vm {
    Vm {
        name: name.into(),
        image: image.into(),
        memory: 0,
        mac: [2, 0, 0, 0, 0, last],
        address: [10, 0, 0, last],
        arguments: String::new(),
        disks: Vec::new(),
    }
}

/// All VMs are started; the time passes that some wait for.
pub fn start_all(loader: &mut Loader, world: &mut World) {
    loader.start_all(world);
    while let Some(at) = loader.start_some(world) {
        world.now = world.now.max(at);
    }
}

/// A server was restarted, and all VMs get back what they have lost.
pub fn all_attached(loader: &mut Loader, world: &mut World) {
    loader.peer_restarted();
    while loader.attach_some(world) {}
}

pub fn table(vms: Vec<Vm>) -> VmTable<'static> {
    let manifest = Manifest { vms, ..Manifest::default() };
    VmTable::decode(postcard::to_allocvec(&manifest).unwrap().leak()).unwrap().1
}

/// The other servers.
#[derive(Default)]
pub struct World {
    pub bundle: Vec<u8>,
    pub log: Vec<String>,
    pub now: u64,
    pub next: u32,
    pub images: u32,
    /// Numbers of images that are given out again, and whether the loader is told that the pager was restarted.
    pub free: Vec<u32>,
    pub restarted: bool,
    pub defined: Vec<Vec<u8>>,
    /// Number, and whether it was started.
    pub vms: BTreeMap<VmNumber, bool>,
    pub seeds: Vec<[u8; 32]>,
    pub disk_registers: Vec<[protocol::registers::DiskRegister; 4]>,
    /// VMs that were created: number, image, clone generation.
    pub made: Vec<(VmNumber, u32, u32)>,
    pub templates: Vec<u32>,
    /// How many clones were asked for in one call.
    pub batches: Vec<usize>,
    pub no_template: bool,
    /// Images that the pager does not know any more.
    pub forgotten: Vec<u32>,
    /// Images of which it makes no VMs.
    pub refused: Vec<u32>,
    pub stops: VecDeque<(VmNumber, Stop)>,
    pub list: Vec<VmEntry>,
    pub ports: BTreeMap<VmNumber, [u8; 6]>,
    pub consoles: BTreeMap<VmNumber, String>,
    pub memory: u32,
    pub switch_error: Option<CallError>,
    pub switch_calls: usize,
    /// Blocks of virtual disks; the disks of VMs.
    pub disks: BTreeMap<String, u64>,
    pub attached: BTreeMap<VmNumber, Vec<vdisk::Wanted>>,
    pub vdisk_error: Option<CallError>,
}

impl World {
    pub fn new() -> World {
        World { bundle: the_bundle(), now: 77, next: 100, memory: 100, ..World::default() }
    }

    pub fn loader(&self, vms: Vec<Vm>, incarnation: u32) -> Loader<'static> {
        let random = Random::new([1, u64::from(incarnation)]);
        Loader::new(self.bundle.clone().leak(), table(vms), Machine::default(), random, incarnation)
    }

    pub fn list(&mut self, loader: &mut Loader) -> Vec<VmInfo> {
        match loader.request(self, &Request::List { from: 0 }) {
            Response::Vms(vms, None) => vms,
            other => panic!("{other:?}"),
        }
    }

    pub fn create(&mut self, vm: VmNumber, image: u32, page: &RegisterPage, start: bool) -> pager::Response {
        if image >= self.images || self.forgotten.contains(&image) || self.free.contains(&image) {
            return pager::Response::NotFound;
        }
        if self.refused.contains(&image) {
            return pager::Response::BadArgument;
        }
        if self.memory == 0 {
            return pager::Response::OutOfMemory;
        }
        assert_eq!(page.vm, vm);
        self.memory -= 1;
        self.next += 1;
        self.seeds.push(page.seed);
        self.disk_registers.push(page.disks);
        self.vms.insert(vm, start);
        self.made.push((vm, image, page.clone_generation));
        pager::Response::Created(VmRef { frame: self.next, generation: 1 })
    }

    pub fn attach_port(&mut self, port: &switch::Attachment) -> switch::Attached {
        assert_eq!((port.queue, port.length), (IMAGE_BASE + PAGE, 2 * PAGE));
        if self.ports.values().any(|other| *other == port.mac) {
            return switch::Attached::Clash;
        }
        self.ports.insert(port.vm, port.mac);
        switch::Attached::Done
    }

    pub fn new_image(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.images += 1;
            self.images - 1
        })
    }

    pub fn image_of(&self, vm: VmNumber) -> u32 {
        self.made.iter().rfind(|made| made.0 == vm).map_or(0, |made| made.1)
    }

    /// The pager is restarted: images that no VM uses go, and their numbers are given out again.
    pub fn restart_pager(&mut self) {
        let used: Vec<_> = self.vms.keys().map(|vm| self.image_of(*vm)).collect();
        self.free = (0..self.images).rev().filter(|image| !used.contains(image)).collect();
        self.templates.retain(|image| used.contains(image));
        self.restarted = true;
    }

    pub fn take_log(&mut self) -> Vec<String> {
        core::mem::take(&mut self.log)
    }
}

impl Peers for World {
    fn pager(&mut self, request: &pager::Request, lent: Lent) -> Result<pager::Response, CallError> {
        Ok(match request {
            pager::Request::DefineImage { parts } => {
                let Lent::Bundle { offset, pages } = lent else { panic!("{lent:?}") };
                assert!(offset.is_multiple_of(PAGE) && pages <= 4095);
                for part in parts {
                    assert!(part.data_offset + part.data_length <= pages * PAGE);
                    let start = (offset + part.data_offset) as usize;
                    self.defined.push(self.bundle[start..start + part.data_length as usize].to_vec());
                }
                pager::Response::Image(self.new_image())
            }
            pager::Request::Create { vm, image, memory, entry, start, .. } => {
                let Lent::Registers([page]) = lent else { panic!("{lent:?}") };
                assert_eq!((page.memory, *entry), (*memory, IMAGE_BASE + 16));
                self.create(*vm, *image, page, *start)
            }
            pager::Request::Clone { template, vms } => {
                let Lent::Registers(pages) = lent else { panic!("{lent:?}") };
                assert!(pages.len() == vms.len() && vms.len() <= 32);
                if !self.templates.contains(template) {
                    return Ok(pager::Response::NotFound);
                }
                self.batches.push(vms.len());
                let made = vms.iter().zip(pages).take_while(|(vm, page)| {
                    matches!(self.create(**vm, *template, page, true), pager::Response::Created(_))
                });
                pager::Response::Cloned(made.count() as u32)
            }
            pager::Request::MakeTemplate(vm) => {
                self.stops.push_back((*vm, Stop::Ready));
                if self.no_template {
                    return Ok(pager::Response::NotWhole);
                }
                let number = self.new_image();
                self.templates.push(number);
                pager::Response::Image(number)
            }
            pager::Request::Start(vm) => {
                *self.vms.get_mut(vm).unwrap() = true;
                pager::Response::Done
            }
            pager::Request::Destroy(vm) => match self.vms.remove(vm) {
                Some(_) => {
                    self.memory += 1;
                    pager::Response::Done
                }
                None => pager::Response::NotFound,
            },
            pager::Request::NextStop => pager::Response::Stopped(self.stops.pop_front()),
            pager::Request::List { from } => {
                let from = *from as usize;
                let all = |(vm, started): (&VmNumber, &bool)| VmEntry {
                    vm: *vm,
                    at: Some(reference(*vm as u32)),
                    image: self.image_of(*vm),
                    clone: self.templates.contains(&self.image_of(*vm)),
                    started: *started,
                    stop: None,
                };
                let list = if self.list.is_empty() { self.vms.iter().map(all).collect() } else { self.list.clone() };
                let end = list.len().min(from + 2);
                pager::Response::Vms(list[from..end].to_vec(), (end < list.len()).then_some(end as u32))
            }
            pager::Request::Usage(_) => pager::Response::Usage { frames: 7, swapped: 0, faults: 4, cpu_time: 5 },
            pager::Request::Pool => pager::Response::Pool {
                total: 100,
                free: 50,
                vms: 2,
                suspended: 1,
                waiting: 3,
                swap_total: 1000,
                swap_free: 10,
                page_ins: 20,
                page_outs: 30,
                own: 0,
                most_reads: 0,
            },
            other => panic!("{other:?}"),
        })
    }

    fn take_pager_restarted(&mut self) -> bool {
        core::mem::take(&mut self.restarted)
    }

    fn switch(&mut self, request: &switch::Request) -> Result<switch::Response, CallError> {
        self.switch_calls += 1;
        match self.switch_error {
            Some(CallError::Restarted) => {
                self.switch_error = None;
                return Err(CallError::Restarted);
            }
            Some(error) => return Err(error),
            None => {}
        }
        Ok(match request {
            switch::Request::Attach(ports) => {
                assert!(ports.len() <= 32);
                switch::Response::Attached(ports.iter().map(|port| self.attach_port(port)).collect())
            }
            switch::Request::Detach(vm) => match self.ports.remove(vm) {
                Some(_) => switch::Response::Done,
                None => switch::Response::NotFound,
            },
            switch::Request::IsAttached(vm) if self.ports.contains_key(vm) => switch::Response::Done,
            switch::Request::IsAttached(_) => switch::Response::NotFound,
        })
    }

    fn console(&mut self, request: &console::Request) -> Result<console::Response, CallError> {
        match request {
            console::Request::Attach(vms) => {
                for console::Attachment { vm, name, page, .. } in vms {
                    assert_eq!(*page, IMAGE_BASE + 4 * PAGE);
                    self.consoles.insert(*vm, (*name).into());
                }
                return Ok(console::Response::Attached(vec![console::Attached::Done; vms.len()]));
            }
            console::Request::Detach(vm) => drop(self.consoles.remove(vm)),
            other => panic!("{other:?}"),
        }
        Ok(console::Response::Done)
    }

    fn vdisk(&mut self, request: &vdisk::Request) -> Result<vdisk::Response, CallError> {
        match self.vdisk_error {
            Some(CallError::Restarted) => {
                self.vdisk_error = None;
                return Err(CallError::Restarted);
            }
            Some(error) => return Err(error),
            None => {}
        }
        Ok(match request {
            vdisk::Request::Find(name) => match self.disks.get(name) {
                Some(blocks) => vdisk::Response::Disk(vdisk::DiskInfo {
                    name: name.clone(),
                    blocks: *blocks,
                    users: 0,
                    written: false,
                }),
                None => vdisk::Response::NotFound,
            },
            vdisk::Request::Create { blocks, .. } if *blocks > 1000 => vdisk::Response::Full,
            vdisk::Request::Create { name, blocks } => {
                assert_eq!(self.disks.insert(name.clone(), *blocks), None);
                vdisk::Response::Done
            }
            vdisk::Request::Attach { vm, queue, length, disks, .. } => {
                assert_eq!((*queue, *length), (IMAGE_BASE + PAGE, 2 * PAGE));
                assert!(disks.iter().all(|disk| self.disks.contains_key(&disk.name)));
                let written = |wanted: &vdisk::Wanted| {
                    self.attached.values().flatten().any(|other| other.name == wanted.name && !other.read_only)
                };
                if disks.iter().any(written) {
                    return Ok(vdisk::Response::InUse);
                }
                self.attached.insert(*vm, disks.clone());
                vdisk::Response::Done
            }
            vdisk::Request::IsAttached(vm) if self.attached.contains_key(vm) => vdisk::Response::Done,
            vdisk::Request::IsAttached(_) => vdisk::Response::NotFound,
            vdisk::Request::Detach(vm) => match self.attached.remove(vm) {
                Some(_) => vdisk::Response::Done,
                None => vdisk::Response::NotFound,
            },
            other => panic!("{other:?}"),
        })
    }

    fn now(&mut self) -> u64 {
        self.now
    }

    fn log(&mut self, text: fmt::Arguments) {
        self.log.push(format!("{text}"));
    }
}

/// An image with a disk window where others have their NIC window.
pub fn with_disk() -> Vec<u8> {
    let mut file = elf(true, ARCHITECTURE_VERSION);
    file.copy_within(340..356, 356);
    file[340..356].fill(0);
    file
}

pub fn disk_vm(name: &str, last: u8, disks: &[(&str, bool, u64)]) -> Vm {
    let disk = |(name, read_only, blocks): &(&str, bool, u64)| Disk {
        name: (*name).into(),
        read_only: *read_only,
        blocks: *blocks,
    };
    Vm { disks: disks.iter().map(disk).collect(), ..vm(name, "disk", last) }
}

pub const fn reference(frame: u32) -> VmRef {
    VmRef { frame, generation: 1 }
}
