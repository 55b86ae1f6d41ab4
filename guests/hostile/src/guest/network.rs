//! Misuse of the NIC.

use super::{broken, random::Random, storming};
use hostile::Network;
use ilwaco::{
    clock, hypercall, nic, println,
    protocol::{domain::Device, nic::QueuePage},
    vm,
};

const BROADCAST: [u8; 6] = [0xff; 6];
/// Ethernet type for local experiments.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];

fn nic() -> nic::Nic {
    nic::take().unwrap_or_else(|| broken("the VM has no NIC"))
}

/// Sends a frame made by `make`, which returns its length; waits while no buffer is free.
fn send(nic: &mut nic::Nic, make: impl FnOnce(&mut [u8]) -> usize) {
    loop {
        if let Some(mut packet) = nic.outgoing() {
            let length = make(packet.bytes());
            nic.send(packet, length);
            return;
        }
        nic.flush();
        hypercall::idle(clock::now() + 100_000);
    }
}

fn header(frame: &mut [u8], to: [u8; 6], from: [u8; 6], kind: [u8; 2]) {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&kind);
}

fn flood(nic: &mut nic::Nic) -> ! {
    let mac = vm::mac().0;
    loop {
        for length in [60, 1514] {
            send(nic, |frame| {
                header(frame, BROADCAST, mac, EXPERIMENTAL);
                length
            });
        }
    }
}

fn forge(nic: &mut nic::Nic, random: &mut Random) {
    let own = vm::mac().0;
    let gateway = vm::network().and_then(|network| network.gateway).map_or([10, 0, 2, 2], |gateway| gateway.octets());
    let mut other = [0; 6];
    random.fill(&mut other);
    other[0] &= 0xfe;
    let choice = random.below(4);
    send(nic, |frame| {
        frame[..64].fill(0);
        match choice {
            // Another's hardware address.
            0 => header(frame, BROADCAST, other, EXPERIMENTAL),
            // "The gateway is here": an ARP reply that nobody asked for.
            1 => {
                header(frame, BROADCAST, own, ARP);
                frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
                frame[22..28].copy_from_slice(&own);
                frame[28..32].copy_from_slice(&gateway);
                frame[32..38].copy_from_slice(&BROADCAST);
                frame[38..42].copy_from_slice(&gateway);
            }
            // The gateway's IP address in an IPv4 packet.
            2 => {
                header(frame, BROADCAST, own, IPV4);
                frame[14..24].copy_from_slice(&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17]);
                frame[26..30].copy_from_slice(&gateway);
                frame[30..34].fill(0xff);
            }
            // A group address as the source.
            _ => header(frame, BROADCAST, BROADCAST, EXPERIMENTAL),
        }
        60
    });
}

fn garbage(nic: &mut nic::Nic, random: &mut Random) {
    let own = vm::mac().0;
    send(nic, |frame| {
        random.fill(frame);
        if random.below(2) == 0 {
            let kind = [ARP, IPV4][random.below(2) as usize];
            header(frame, BROADCAST, own, kind);
        }
        random.below(frame.len() as u64 + 1) as usize
    });
}

fn queues(random: &mut Random) {
    let Some((window, length)) = nic::window() else { broken("the VM has no NIC") };
    let mut page = [0u8; size_of::<QueuePage>()];
    random.fill(&mut page);
    for entry in page[64..].chunks_exact_mut(16) {
        // Some of the entries are nearly right.
        if random.below(2) == 0 {
            let address = window as u64 + random.below(length as u64 + 4096);
            entry[..8].copy_from_slice(&address.to_le_bytes());
            entry[8..12].copy_from_slice(&(random.below(4096) as u32).to_le_bytes());
            entry[12..].fill(0);
        }
    }
    // SAFETY: the queue page is a static of the guest that is made of atomics; the NIC was not taken, so nobody reads it.
    unsafe { core::ptr::copy_nonoverlapping(page.as_ptr(), window.cast_mut(), page.len()) };
    let _ = hypercall::doorbell(Device::Nic);
    hypercall::idle(clock::now() + random.below(200_000));
}

/// Misuse of the NIC.
pub async fn misuse(misuse: Network) {
    let mut random = Random::new();
    let start = clock::now();
    match misuse {
        Network::Flood => flood(&mut nic()),
        Network::Forge => {
            let mut nic = nic();
            while storming(start) {
                forge(&mut nic, &mut random);
            }
            nic.flush();
            hypercall::idle(clock::now() + 10_000_000);
        }
        Network::Garbage => {
            let mut nic = nic();
            while storming(start) {
                garbage(&mut nic, &mut random);
            }
            nic.flush();
            hypercall::idle(clock::now() + 10_000_000);
        }
        Network::Queues => {
            while storming(start) {
                queues(&mut random);
            }
        }
        Network::Deaf => {
            let _nic = nic();
            println!("offering buffers and not looking at them");
            core::future::pending::<()>().await;
        }
    }
    println!("{:?}", nic::counters());
}
