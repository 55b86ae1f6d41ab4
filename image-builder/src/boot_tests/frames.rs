//! The switch, seen from the network: Ethernet frames instead of QEMU's user-mode network.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, miette};

use super::BootTest;
use super::harness::Context;
use crate::machine::qemu::Network;
use crate::system::types::Mac;

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "frames",
    about: "VMs answer ARP with their own addresses, foreign and malformed frames are dropped",
    limit: Duration::from_secs(60),
    long: false,
    run: frames,
}];

const OWN_MAC: [u8; 6] = [0x02, 0xee, 0, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];

fn frames(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(None)?;
    let lan = Lan::open()?;
    context.boot_on_frames(&system, &built, lan.network())?;
    let gateway = Ipv4Addr::from(system.manifest.network.gateway);
    let known: Vec<[u8; 6]> = system.manifest.vms.iter().map(|vm| vm.mac).collect();

    let deadline = context.deadline();
    for vm in &system.manifest.vms {
        let mac = lan.who_has(gateway, vm.address.into(), deadline)?;
        let mac = mac.ok_or_else(|| miette!("VM `{}` does not answer an ARP request", vm.name))?;
        if mac != vm.mac {
            return Err(miette!("VM `{}` answers ARP with {}, not with {}", vm.name, Mac(mac), Mac(vm.mac)));
        }
    }

    // Nobody answers for an address that no VM has.
    let nobody = Ipv4Addr::from_bits(u32::from(Ipv4Addr::from(system.manifest.network.address)) | 200);
    let soon = Instant::now() + Duration::from_secs(1);
    if let Some(mac) = lan.who_has(gateway, nobody, soon)? {
        return Err(miette!("{} answers ARP for {nobody}, which no VM has", Mac(mac)));
    }

    // Malformed frames of every length up to a header, and one longer than Ethernet allows.
    for length in (1..=60).chain([1514, 1600, 4000]) {
        lan.send(&vec![0xa5; length])?;
    }
    // A frame for somebody else on the network does not come back, nor does it reach a VM.
    let mut foreign = arp(1, gateway, system.manifest.vms[0].address.into());
    foreign[..6].copy_from_slice(&[0x02, 0xee, 0, 0, 0, 2]);
    lan.send(&foreign)?;
    let soon = Instant::now() + Duration::from_secs(1);
    while let Some(frame) = lan.receive(soon)? {
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
    let again = lan.who_has(gateway, first.address.into(), deadline)?;
    if again != Some(first.mac) {
        return Err(miette!("after malformed frames VM `{}` does not answer ARP any more", first.name));
    }
    context.healthy()
}

/// The network outside the machine.
struct Lan {
    socket: UdpSocket,
    own: u16,
    machine: u16,
}

impl Lan {
    fn open() -> Result<Lan> {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).into_diagnostic();
        let socket = bind()?;
        let own = socket.local_addr().into_diagnostic()?.port();
        // QEMU binds this one itself; nobody else takes it in the moment between.
        let machine = bind()?.local_addr().into_diagnostic()?.port();
        Ok(Lan { socket, own, machine })
    }

    fn network(&self) -> Network {
        Network::Frames { local: self.machine, remote: self.own }
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        match self.socket.send_to(frame, (Ipv4Addr::LOCALHOST, self.machine)) {
            // Refused: QEMU has not opened its socket yet; like a cable that is not plugged in.
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionRefused => Err(error).into_diagnostic(),
            _ => Ok(()),
        }
    }

    fn receive(&self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        let mut buffer = [0; 65536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left)).into_diagnostic()?;
            match self.socket.recv_from(&mut buffer) {
                Ok((length, _)) => return Ok(Some(buffer[..length].to_vec())),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error).into_diagnostic(),
            }
        }
    }

    /// Asks by ARP, a few times a second, who has an address.
    fn who_has(&self, own: Ipv4Addr, address: Ipv4Addr, deadline: Instant) -> Result<Option<[u8; 6]>> {
        while Instant::now() < deadline {
            crate::interrupt::check()?;
            self.send(&arp(1, own, address))?;
            let pause = deadline.min(Instant::now() + Duration::from_millis(300));
            while let Some(frame) = self.receive(pause)? {
                if let Some(mac) = arp_reply(&frame, address) {
                    return Ok(Some(mac));
                }
            }
        }
        Ok(None)
    }
}

/// An ARP request as a frame to everybody.
fn arp(operation: u8, own: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = [&BROADCAST[..], &OWN_MAC, &[8, 6], &[0, 1, 8, 0, 6, 4, 0, operation]].concat();
    frame.extend(OWN_MAC);
    frame.extend(own.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame.resize(60, 0);
    frame
}

/// The hardware address in an ARP reply from `address`.
fn arp_reply(frame: &[u8], address: Ipv4Addr) -> Option<[u8; 6]> {
    let body = frame.get(14..42)?;
    let is_reply = frame[12..14] == [8, 6] && body[6..8] == [0, 2] && body[14..18] == address.octets();
    is_reply.then(|| [body[8], body[9], body[10], body[11], body[12], body[13]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_from_requests() {
        let (own, other) = (Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(arp_reply(&arp(1, other, own), other), None);
        assert_eq!(arp_reply(&arp(2, other, own), other), Some(OWN_MAC));
        assert_eq!(arp_reply(&arp(2, other, own), own), None);
        assert_eq!(arp_reply(&[0; 20], own), None);
    }
}
