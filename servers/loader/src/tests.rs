//! The loader among servers of the tests' own.

mod clones;
mod world;

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
    abi::{Error, LONG_MESSAGE},
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
use world::*;

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

#[test]
fn what_is_said_of_a_batch_fits_into_a_message() {
    let (at, number, most) = (VmRef { frame: u32::MAX, generation: u32::MAX }, u64::MAX, crate::loader::MANY_AT_ONCE);
    let fits = |bytes: Result<Vec<u8>, postcard::Error>| assert!(bytes.unwrap().len() <= LONG_MESSAGE);
    let port = switch::Attachment { vm: number, at, mac: [255; 6], address: [255; 4], queue: number, length: number };
    fits(postcard::to_allocvec(&switch::Request::Attach(vec![port; most])));
    let name = "n".repeat(console::NAME_MAX);
    let with_console = console::Attachment { vm: number, at, name: &name, page: number };
    fits(postcard::to_allocvec(&console::Request::Attach(vec![with_console; most])));
    fits(postcard::to_allocvec(&pager::Request::Clone { template: u32::MAX, vms: vec![number; most] }));
}
