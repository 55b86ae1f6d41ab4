//! The switch, seen from the network: Ethernet frames instead of QEMU's user-mode network.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use miette::{Result, miette};
use smoltcp::wire::{ArpOperation, EthernetAddress};

use super::BootTest;
use super::harness::Context;
use super::pages::PATIENCE;
use super::swap::{Shown, memory};
use crate::machine::lan::link::{arp, arp_reply};
use crate::machine::lan::wire::Wire;
use crate::machine::lan::{Ask, Lan};
use crate::system::types::Mac;

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "frames",
        about: "ARP for VMs is answered with their own addresses, foreign and malformed frames are dropped",
        limit: Duration::from_secs(60),
        long: false,
        run: frames,
    },
    BootTest {
        name: "arp",
        about: "ARP for VMs that have left memory is answered, and neither that nor broadcasts bring them back",
        limit: Duration::from_secs(120),
        long: false,
        run: arp_of_the_absent,
    },
];

/// Pause between two looks at a system that comes to rest.
const LOOK: Duration = Duration::from_millis(700);
/// Looks in a row that show the same.
const SAME: usize = 4;

fn frames(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(None)?;
    let mut wire = Wire::open()?;
    context.boot_on_frames(&system, &built, wire.network(), |_, _| Ok(()))?;
    let gateway = Ipv4Addr::from(system.manifest.network.gateway);
    let known: Vec<[u8; 6]> = system.manifest.vms.iter().map(|vm| vm.mac).collect();

    let deadline = context.deadline();
    for vm in &system.manifest.vms {
        let mac = who_has(&mut wire, gateway, vm.address.into(), deadline)?;
        let mac = mac.ok_or_else(|| miette!("VM `{}` does not answer an ARP request", vm.name))?;
        if mac.0 != vm.mac {
            return Err(miette!("VM `{}` answers ARP with {mac}, not with {}", vm.name, Mac(vm.mac)));
        }
    }

    // Nobody answers for an address that no VM has.
    let nobody = Ipv4Addr::from_bits(u32::from(Ipv4Addr::from(system.manifest.network.address)) | 200);
    let soon = Instant::now() + Duration::from_secs(1);
    if let Some(mac) = who_has(&mut wire, gateway, nobody, soon)? {
        return Err(miette!("{mac} answers ARP for {nobody}, which no VM has"));
    }

    // Malformed frames of every length up to a header, and one longer than Ethernet allows.
    for length in (1..=60).chain([1514, 1600, 4000]) {
        wire.send(&vec![0xa5; length])?;
    }
    // A frame for somebody else on the network does not come back, nor does it reach a VM.
    let first = system.manifest.vms[0].address.into();
    let mut foreign = arp(ArpOperation::Request, gateway, EthernetAddress::BROADCAST, first);
    foreign[..6].copy_from_slice(&[0x02, 0xee, 0, 0, 0, 2]);
    wire.send(&foreign)?;
    let soon = Instant::now() + Duration::from_secs(1);
    while let Some(frame) = wire.receive(soon)? {
        let Some(source) = frame.get(6..12) else {
            return Err(miette!("a frame of {} bytes came out of the machine", frame.len()));
        };
        if !known.iter().any(|mac| mac == source) {
            return Err(miette!("a frame with a foreign source address came out of the machine: {source:02x?}"));
        }
        if frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
            return Err(miette!("a VM answered an ARP request that was addressed to somebody else"));
        }
    }
    let first = &system.manifest.vms[0];
    let again = who_has(&mut wire, gateway, first.address.into(), deadline)?;
    if again.map(|mac| mac.0) != Some(first.mac) {
        return Err(miette!("after malformed frames VM `{}` does not answer ARP any more", first.name));
    }
    context.healthy()
}

/// Asks by ARP, a few times a second, who has an address.
fn who_has(wire: &mut Wire, own: Ipv4Addr, address: Ipv4Addr, deadline: Instant) -> Result<Option<Mac>> {
    while Instant::now() < deadline {
        crate::interrupt::check()?;
        wire.send(&arp(ArpOperation::Request, own, EthernetAddress::BROADCAST, address))?;
        let pause = deadline.min(Instant::now() + Duration::from_millis(300));
        while let Some(frame) = wire.receive(pause)? {
            if let Some(mac) = arp_reply(&frame, address) {
                return Ok(Some(Mac(mac.0)));
            }
        }
    }
    Ok(None)
}

/// Waits until nothing is swapped any more.
fn at_rest(context: &mut Context<'_>) -> Result<Shown> {
    let (mut last, mut same) = (memory(context)?, 0);
    while same < SAME {
        if Instant::now() >= context.deadline() {
            return Err(miette!("the system does not come to rest: {last:?}"));
        }
        std::thread::sleep(LOOK);
        let shown = memory(context)?;
        same = if shown == last { same + 1 } else { 0 };
        last = shown;
    }
    Ok(last)
}

fn arp_of_the_absent(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some("sleeping"))?;
    let mut wire = Wire::open()?;
    context.boot_on_frames(&system, &built, wire.network(), |_, _| Ok(()))?;
    context.line(0, &["Type help"])?;
    let before = at_rest(context)?;
    let count = system.manifest.vms.len() as u64;
    if before.vms != count || before.suspended < count / 4 {
        return Err(miette!("of {count} VMs a good part should have left memory: {before:?}"));
    }
    // Ask for all: whichever are away, they are among those.
    let gateway = Ipv4Addr::from(system.manifest.network.gateway);
    let deadline = context.deadline();
    for vm in &system.manifest.vms {
        let mac = who_has(&mut wire, gateway, vm.address.into(), deadline)?;
        if mac.map(|mac| mac.0) != Some(vm.mac) {
            return Err(miette!("for VM `{}` {mac:?} is answered, not {}", vm.name, Mac(vm.mac)));
        }
    }
    // To everybody, and to a group: IPv4 that says nothing, for a start.
    for group in [[0xff; 6], [1, 0, 0x5e, 0, 0, 251]] {
        let mut frame = vec![0x45; 60];
        frame[..6].copy_from_slice(&group);
        frame[6..14].copy_from_slice(&[0x02, 0xee, 0, 0, 0, 1, 8, 0]);
        wire.send(&frame)?;
    }
    let after = at_rest(context)?;
    if (after.page_ins, after.suspended) != (before.page_ins, before.suspended) {
        return Err(miette!("ARP and broadcasts have brought VMs into memory: {before:?}, then {after:?}"));
    }
    println!("  {} of {count} VMs were out of memory, and stayed there", after.suspended);
    // One that is really wanted comes.
    let vm = &system.manifest.vms[0];
    let mut lan = Lan::on(wire, gateway, system.manifest.network.prefix);
    lan.ask(Ask::line(vm.address.into(), 7, "are you there?"), PATIENCE)?;
    context.healthy()
}
