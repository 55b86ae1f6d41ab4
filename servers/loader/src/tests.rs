//! The loader among servers of the tests' own.

mod clones;

use crate::{
    guest::{Guest, Refused},
    loader::Loader,
    peers::{Lent, Peers},
    registers::Machine,
};
use core::fmt;
use entropy::Random;
use protocol::{
    ARCHITECTURE_VERSION,
    abi::Error,
    bundle,
    image::ImageError,
    layout::{IMAGE_BASE, PAGE},
    manifest::{Disk, Manifest, Vm, VmTable},
    note::{OWNER, OWNER_LENGTH, TYPE},
    registers::RegisterPage,
    service::{
        VmNumber, VmRef, console,
        loader::{MemoryInfo, Request, Response, VmInfo},
        pager::{self, Stop, VmEntry},
        switch, vdisk,
    },
};
use server_runtime::CallError;
use std::{collections::BTreeMap, collections::VecDeque, format, string::String, vec, vec::Vec};

const MEMORY: u64 = 256 * 1024;

/// A guest image: a page of code, then 5 bytes of data and a page of zeros, a NIC window and a console page there.
fn elf(nic: bool, version: u32) -> Vec<u8> {
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

fn cpio(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
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

fn the_bundle() -> Vec<u8> {
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

fn vm(name: &str, image: &str, last: u8) -> Vm {
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
fn start_all(loader: &mut Loader, world: &mut World) {
    loader.start_all(world);
    while let Some(at) = loader.start_some(world) {
        world.now = world.now.max(at);
    }
}

/// A server was restarted, and all VMs get back what they have lost.
fn all_attached(loader: &mut Loader, world: &mut World) {
    loader.peer_restarted();
    while loader.attach_some(world) {}
}

fn table(vms: Vec<Vm>) -> VmTable<'static> {
    let manifest = Manifest { vms, ..Manifest::default() };
    VmTable::decode(postcard::to_allocvec(&manifest).unwrap().leak()).unwrap().1
}

/// The other servers.
#[derive(Default)]
struct World {
    bundle: Vec<u8>,
    log: Vec<String>,
    now: u64,
    next: u32,
    images: u32,
    /// Numbers of images that are given out again, and whether the loader is told that the pager was restarted.
    free: Vec<u32>,
    restarted: bool,
    defined: Vec<Vec<u8>>,
    /// Number, and whether it was started.
    vms: BTreeMap<VmNumber, bool>,
    seeds: Vec<[u8; 32]>,
    disk_registers: Vec<[protocol::registers::DiskRegister; 4]>,
    /// VMs that were created: number, image, clone generation.
    made: Vec<(VmNumber, u32, u32)>,
    templates: Vec<u32>,
    /// How many clones were asked for in one call.
    batches: Vec<usize>,
    no_template: bool,
    /// Images that the pager does not know any more.
    forgotten: Vec<u32>,
    /// Images of which it makes no VMs.
    refused: Vec<u32>,
    stops: VecDeque<(VmNumber, Stop)>,
    list: Vec<VmEntry>,
    ports: BTreeMap<VmNumber, [u8; 6]>,
    consoles: BTreeMap<VmNumber, String>,
    memory: u32,
    switch_error: Option<CallError>,
    switch_calls: usize,
    /// Blocks of virtual disks; the disks of VMs.
    disks: BTreeMap<String, u64>,
    attached: BTreeMap<VmNumber, Vec<vdisk::Wanted>>,
    vdisk_error: Option<CallError>,
}

impl World {
    fn new() -> World {
        World { bundle: the_bundle(), now: 77, next: 100, memory: 100, ..World::default() }
    }

    fn loader(&self, vms: Vec<Vm>, incarnation: u32) -> Loader<'static> {
        let random = Random::new([1, u64::from(incarnation)]);
        Loader::new(self.bundle.clone().leak(), table(vms), Machine::default(), random, incarnation)
    }

    fn list(&mut self, loader: &mut Loader) -> Vec<VmInfo> {
        match loader.request(self, &Request::List { from: 0 }) {
            Response::Vms(vms, None) => vms,
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, vm: VmNumber, image: u32, page: &RegisterPage, start: bool) -> pager::Response {
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

    fn attach_port(&mut self, port: &switch::Attachment) -> switch::Attached {
        assert_eq!((port.queue, port.length), (IMAGE_BASE + PAGE, 2 * PAGE));
        if self.ports.values().any(|other| *other == port.mac) {
            return switch::Attached::Clash;
        }
        self.ports.insert(port.vm, port.mac);
        switch::Attached::Done
    }

    fn new_image(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.images += 1;
            self.images - 1
        })
    }

    fn image_of(&self, vm: VmNumber) -> u32 {
        self.made.iter().rfind(|made| made.0 == vm).map_or(0, |made| made.1)
    }

    /// The pager is restarted: images that no VM uses go, and their numbers are given out again.
    fn restart_pager(&mut self) {
        let used: Vec<_> = self.vms.keys().map(|vm| self.image_of(*vm)).collect();
        self.free = (0..self.images).rev().filter(|image| !used.contains(image)).collect();
        self.templates.retain(|image| used.contains(image));
        self.restarted = true;
    }

    fn take_log(&mut self) -> Vec<String> {
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
fn with_disk() -> Vec<u8> {
    let mut file = elf(true, ARCHITECTURE_VERSION);
    file.copy_within(340..356, 356);
    file[340..356].fill(0);
    file
}

fn disk_vm(name: &str, last: u8, disks: &[(&str, bool, u64)]) -> Vm {
    let disk = |(name, read_only, blocks): &(&str, bool, u64)| Disk {
        name: (*name).into(),
        read_only: *read_only,
        blocks: *blocks,
    };
    Vm { disks: disks.iter().map(disk).collect(), ..vm(name, "disk", last) }
}

#[test]
fn vms_get_their_disks_or_are_refused() {
    let mut world = World::new();
    world.bundle = cpio(&[("disk", with_disk()), ("web", elf(true, ARCHITECTURE_VERSION))]);
    world.disks.insert("content".into(), 50);
    // The first call meets a server that is being restarted.
    world.vdisk_error = Some(CallError::Restarted);
    let vms = vec![
        disk_vm("one", 1, &[("data", false, 16), ("content", true, 0)]),
        disk_vm("two", 2, &[("content", true, 99)]),
        disk_vm("none", 3, &[("other", true, 0)]),
        disk_vm("large", 4, &[("large", false, 2000)]),
        disk_vm("second", 5, &[("data", false, 16)]),
        Vm { image: "web".into(), ..disk_vm("blind", 6, &[("content", true, 0)]) },
        disk_vm("many", 7, &[("content", true, 0); 5]),
        disk_vm("without", 8, &[]),
    ];
    let mut loader = world.loader(vms, 0);
    start_all(&mut loader, &mut world);
    let log = world.take_log();
    let expected = [
        "vm none refused: there is no virtual disk `other`",
        "vm large refused: no room for virtual disk `large` of 8000 KiB",
        "vm blind refused: it has virtual disks, but its image `web` uses none",
        "vm many refused: it has 5 disks; at most 4 are possible",
        "vm second refused: another VM has one of its virtual disks (data)",
        "3 VMs started, 5 refused, in 0 ms",
    ];
    assert_eq!(log, expected);
    assert_eq!(world.vms.keys().copied().collect::<Vec<_>>(), [1, 2, 8]);
    let registers: Vec<_> = world.disk_registers[0].iter().map(|disk| (disk.blocks, disk.flags)).collect();
    assert_eq!(registers, [(16, 0), (50, 1), (0, 0), (0, 0)]);
    assert_eq!(world.attached.keys().copied().collect::<Vec<_>>(), [1, 2]);

    // The server of virtual disks was restarted and knows nobody.
    world.attached.clear();
    all_attached(&mut loader, &mut world);
    assert_eq!(world.attached.len(), 2);
    assert_eq!(loader.request(&mut world, &Request::Stop("one")), Response::Done);
    assert_eq!(world.attached.keys().copied().collect::<Vec<_>>(), [2]);
    world.take_log();
    world.attached.clear();
    world.vdisk_error = Some(CallError::Gone);
    all_attached(&mut loader, &mut world);
    let log = world.take_log();
    let lost = "vm two has no disks now: it does not get its virtual disks (content): the server is gone";
    assert_eq!(log, [lost]);
    assert!(
        matches!(loader.request(&mut world, &Request::Start("one")), Response::Failed(why) if why.contains("gone"))
    );
}

const fn reference(frame: u32) -> VmRef {
    VmRef { frame, generation: 1 }
}

#[test]
fn starts_what_it_can_and_says_what_it_cannot() {
    let mut world = World::new();
    let vms = vec![
        vm("one", "web", 1),
        vm("missing", "none", 2),
        vm("bad", "junk", 3),
        vm("old", "old", 4),
        Vm { memory: 12_345, ..vm("odd", "web", 5) },
        vm("clash", "web", 1),
        vm("two", "web", 6),
        vm("three", "quiet", 7),
        Vm { arguments: "a".repeat(600), ..vm("wordy", "quiet", 8) },
    ];
    let mut loader = world.loader(vms, 0);
    start_all(&mut loader, &mut world);
    let log = world.take_log();
    let expected = [
        ("missing", "no such image"),
        ("bad", "not an ELF file"),
        ("old", "version"),
        ("odd", "12345 bytes"),
        ("clash", "MAC or IP address"),
        ("wordy", "too long"),
    ];
    assert_eq!(log.len(), expected.len() + 1, "{log:?}");
    assert!(log[expected.len()].starts_with("3 VMs started, 6 refused, in "), "{log:?}");
    for (line, (name, reason)) in log.iter().zip(expected) {
        assert!(line.starts_with(&format!("vm {name} refused: ")) && line.contains(reason), "{line}");
    }
    let running: Vec<_> = world.vms.iter().map(|(vm, started)| (*vm, *started)).collect();
    assert_eq!(running, [(1, true), (7, true), (8, true)], "the VM that clashed was not created");
    assert_eq!((world.ports.len(), world.consoles.len()), (2, 3));
    // Each image once, code and data.
    assert_eq!(world.images, 2);
    let web = elf(true, ARCHITECTURE_VERSION);
    assert_eq!(world.defined[0], web[4096..8192]);
    assert_eq!(world.defined[1], web[8192..]);
    world.seeds.sort_unstable();
    world.seeds.dedup();
    assert_eq!(world.seeds.len(), 3, "a seed for each VM");
    let list = world.list(&mut loader);
    assert_eq!(list.len(), 9);
    assert_eq!((list[0].used, list[0].memory, list[0].cpu_time, &list[0].stopped), (28, 256, 5, &None));
    assert!(list[1].stopped.as_ref().unwrap().starts_with("refused: "));
    assert_eq!(
        (list[5].memory, list[1].memory),
        (256, 0),
        "a VM that is not there has the memory that its image wants"
    );
}

#[test]
fn stopped_vms_are_reported_cleaned_up_and_started_again() {
    let mut world = World::new();
    let mut loader = world.loader(vec![vm("one", "web", 1), vm("two", "web", 2)], 0);
    start_all(&mut loader, &mut world);
    world.stops.push_back((1, Stop::Exit(3)));
    world.stops.push_back((2, Stop::Ready));
    world.stops.push_back((9, Stop::Ready));
    world.vms.insert(2, false);
    assert_eq!(world.take_log(), ["2 VMs started, 0 refused, in 0 ms"]);
    assert!(!loader.take_stops(&mut world));
    assert_eq!(world.take_log(), ["vm one ended with code 3", "destroying VM 9, which nobody has started"]);
    assert_eq!(world.vms.get(&2), Some(&true), "`ready` lets it go on");
    assert!(!world.vms.contains_key(&1) && !world.ports.contains_key(&1) && !world.consoles.contains_key(&1));
    assert_eq!(world.list(&mut loader)[0].stopped.as_deref(), Some("ended with code 3"));

    assert_eq!(loader.request(&mut world, &Request::Start("two")), Response::WrongState);
    assert_eq!(loader.request(&mut world, &Request::Start("none")), Response::Unknown);
    assert_eq!(loader.request(&mut world, &Request::Stop("none")), Response::Unknown);
    assert_eq!(loader.request(&mut world, &Request::Stop("one")), Response::WrongState);
    assert_eq!(loader.request(&mut world, &Request::Start("one")), Response::Done);
    let list = world.list(&mut loader);
    assert_eq!((list[0].number, &list[0].stopped), (1 << 24 | 1, &None), "a new VM, a new number");
    assert_eq!(loader.request(&mut world, &Request::Stop("one")), Response::Done);
    assert_eq!(world.take_log(), ["vm one stopped by the operator"]);
    assert_eq!(world.vms.len(), 1);
    world.memory = 0;
    let Response::Failed(reason) = loader.request(&mut world, &Request::Start("one")) else { panic!() };
    assert_eq!(reason, "not enough memory for its 256 KiB");
    let memory = MemoryInfo {
        total: 400,
        free: 200,
        swap_total: 4000,
        swap_free: 40,
        vms: 2,
        suspended: 1,
        waiting: 3,
        page_ins: 20,
        page_outs: 30,
    };
    assert_eq!(loader.request(&mut world, &Request::Memory), Response::Memory(memory));
}

#[test]
fn many_stops_leave_room_for_others() {
    let mut world = World::new();
    let mut loader = world.loader(vec![vm("one", "web", 1)], 0);
    start_all(&mut loader, &mut world);
    world.stops.extend((0..50).map(|_| (1, Stop::Ready)));
    assert!(loader.take_stops(&mut world));
    assert!(!world.stops.is_empty());
    assert!(!loader.take_stops(&mut world));
}

#[test]
fn an_image_that_the_pager_forgot_is_given_again() {
    let mut world = World::new();
    let mut loader = world.loader(vec![vm("one", "web", 1)], 0);
    start_all(&mut loader, &mut world);
    loader.request(&mut world, &Request::Stop("one"));
    world.images = 0;
    assert_eq!(loader.request(&mut world, &Request::Start("one")), Response::Done);
    assert_eq!(world.images, 1);
}

#[test]
fn many_are_ended_and_started_some_at_a_time() {
    let mut world = World::new();
    let vms = (1..=40).map(|n| vm(&format!("{}-{n}", if n == 7 { "other" } else { "web" }), "web", n)).collect();
    let mut loader = world.loader(vms, 0);
    start_all(&mut loader, &mut world);
    world.take_log();
    let all = |loader: &mut Loader, world: &mut World, request: fn(u64) -> Request<'static>| {
        let (mut from, mut sum, mut answers) = (0, 0, 0);
        loop {
            answers += 1;
            match loader.request(world, &request(from)) {
                Response::Many { done, refused: 0, next } => {
                    sum += done;
                    match next {
                        Some(next) => from = next,
                        None => return (sum, answers),
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let stop = |from| Request::StopAll { prefix: "web-", from };
    let start = |from| Request::StartAll { prefix: "web-", from };
    assert_eq!(all(&mut loader, &mut world, stop), (39, 2));
    assert_eq!(world.vms.keys().copied().collect::<Vec<_>>(), [7], "one has another name");
    assert_eq!(all(&mut loader, &mut world, stop), (0, 1), "they are not running any more");
    assert_eq!(all(&mut loader, &mut world, start), (39, 2));
    assert_eq!(world.vms.len(), 40);
    assert_eq!(world.take_log(), [] as [String; 0]);
    let beyond = loader.request(&mut world, &Request::StopAll { prefix: "", from: u64::MAX });
    assert_eq!(beyond, Response::Many { done: 0, refused: 0, next: None });
}

#[test]
fn restarted_servers_get_their_vms_back() {
    let mut world = World::new();
    let mut loader = world.loader(vec![vm("one", "web", 1), vm("two", "quiet", 2)], 0);
    world.switch_error = Some(CallError::Restarted);
    start_all(&mut loader, &mut world);
    assert_eq!(world.ports.len(), 1, "asked again after a restart in the middle");
    world.take_log();
    world.ports.clear();
    world.consoles.clear();
    all_attached(&mut loader, &mut world);
    assert_eq!((world.ports.len(), world.consoles.len()), (1, 2));
    all_attached(&mut loader, &mut world);
    assert_eq!((world.ports.len(), world.take_log().len()), (1, 0), "what is there is left alone");
    // No switch at all is said once.
    world.switch_error = Some(CallError::Kernel(Error::NoCapability));
    loader.request(&mut world, &Request::Stop("one"));
    world.ports.clear();
    assert_eq!(loader.request(&mut world, &Request::Start("one")), Response::Done);
    all_attached(&mut loader, &mut world);
    let log = world.take_log();
    assert_eq!(log, ["vm one stopped by the operator", "vm one has no network: there is no switch"]);
    // A switch that is gone: the VM runs without it, and gets it later.
    world.switch_error = Some(CallError::Gone);
    loader.request(&mut world, &Request::Stop("one"));
    world.ports.clear();
    assert_eq!(loader.request(&mut world, &Request::Start("one")), Response::Done);
    let log = world.take_log();
    assert_eq!(log, ["vm one stopped by the operator", "vm one has no network now: the server is gone"]);
    world.switch_error = None;
    all_attached(&mut loader, &mut world);
    assert_eq!(world.ports.len(), 1);
}

#[test]
fn a_restarted_loader_finds_its_vms() {
    let mut world = World::new();
    let vms = || vec![vm("one", "web", 1), vm("two", "web", 2), vm("three", "quiet", 3), vm("four", "quiet", 4)];
    start_all(&mut world.loader(vms(), 0), &mut world);
    world.take_log();
    world.vms.insert(3, false);
    let again = 1 << 24 | 1;
    world.vms.remove(&4);
    world.vms.insert(again, true);
    let entry = |vm, image, started, stop| VmEntry { vm, at: Some(reference(9)), image, clone: false, started, stop };
    world.list = vec![
        entry(1, 0, true, None),
        entry(2, 0, true, Some(Stop::Exit(1))),
        VmEntry { at: None, ..entry(3, 1, false, None) },
        // Of the same entry of the manifest as the first: no loader leaves that behind.
        entry(again, 0, true, None),
        // Of an entry that the manifest does not have.
        entry(77, 0, true, None),
    ];
    let mut loader = world.loader(vms(), 1);
    loader.adopt_all(&mut world);
    let expected = [
        "vm two ended with code 1",
        "destroying VM 16777217, of which the manifest knows nothing",
        "destroying VM 77, of which the manifest knows nothing",
        "2 VMs found again",
        "not running after a restart of the loader: two, four",
    ];
    assert_eq!(world.take_log(), expected);
    assert_eq!(world.vms.keys().copied().collect::<Vec<_>>(), [1, 3]);
    assert!(world.vms[&3], "the one that was not started yet is");
    let images = world.images;
    assert_eq!(loader.request(&mut world, &Request::Start("two")), Response::Done);
    assert_eq!(world.images, images, "its image is known");
    let list = world.list(&mut loader);
    assert_eq!(list[0].number, 1);
    assert_eq!(list[1].number, 1 << 24 | 2, "a number that the loader before it never gave");
}

#[test]
fn long_lists_go_on() {
    let mut world = World::new();
    let vms: Vec<_> = (0..60).map(|n| vm(&format!("{n:060}"), "none", n)).collect();
    let mut loader = world.loader(vms, 0);
    start_all(&mut loader, &mut world);
    let (mut from, mut names, mut answers) = (0, Vec::new(), 0);
    loop {
        let Response::Vms(vms, more) = loader.request(&mut world, &Request::List { from }) else { panic!() };
        names.extend(vms.into_iter().map(|info| info.name));
        answers += 1;
        match more {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(names.len(), 60);
    assert!(answers > 1);
    assert_eq!(loader.request(&mut world, &Request::List { from: u64::MAX }), Response::Vms(vec![], None));
}

#[test]
fn guests_are_laid_out_for_the_pager() {
    let bundle = the_bundle();
    let guest = Guest::find(&bundle, "web", 0).unwrap();
    assert_eq!((guest.memory, guest.entry), (MEMORY, IMAGE_BASE + 16));
    assert_eq!(guest.nic(), Some((IMAGE_BASE + PAGE, 2 * PAGE)));
    assert_eq!(guest.console(), Some(IMAGE_BASE + 4 * PAGE));
    assert!(guest.parts[0].execute && !guest.parts[0].write && guest.parts[1].write && !guest.parts[1].execute);
    assert_eq!(Guest::find(&bundle, "web", 1 << 20).unwrap().memory, 1 << 20);
    assert_eq!(Guest::find(&bundle, "quiet", 0).unwrap().nic(), None);
    assert_eq!(Guest::find(&bundle, "none", 0), Err(Refused::Missing));
    assert_eq!(Guest::find(&bundle, "junk", 0), Err(Refused::Image(ImageError::NotElf)));
    assert!(matches!(Guest::find(&bundle[..200], "quiet", 0), Err(Refused::Bundle(_))));
    // Whatever is damaged, nothing worse than a refusal comes of it.
    let mut damaged = bundle.clone();
    for at in 0..600 {
        damaged[at] ^= 0xff;
        let _ = Guest::find(&damaged, "web", 0);
        damaged[at] ^= 0xff;
    }
}
