//! The switch, seen from the network: Ethernet frames instead of QEMU's user-mode network.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use miette::{Result, miette};
use smoltcp::wire::{ArpOperation, EthernetAddress};

use super::BootTest;
use super::harness::Context;
use crate::machine::lan::link::{arp, arp_reply};
use crate::machine::lan::wire::Wire;
use crate::system::types::Mac;

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "frames",
    about: "VMs answer ARP with their own addresses, foreign and malformed frames are dropped",
    limit: Duration::from_secs(60),
    long: false,
    run: frames,
}];

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
