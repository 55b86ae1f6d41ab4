//! Web servers that are clones of the first.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, miette};
use serde::Deserialize;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, TcpTimestampRepr,
};

use super::BootTest;
use super::harness::Context;
use super::pages::PATIENCE;
use crate::machine::lan::link::{Incoming, Link};
use crate::machine::lan::wire::Wire;
use crate::machine::lan::{Ask, Lan};

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "clones",
    about: "web servers that are clones share neither names, addresses, random numbers, connections nor what they write",
    limit: Duration::from_secs(120),
    long: false,
    run: clones,
}];

/// VMs that are asked; the others are left in peace.
const ASKED: usize = 5;
/// KiB that a clone may have which nobody has asked for anything.
const IDLE_MAX: u64 = 32;
/// Longer than any time limit that a connection was within.
const LIMITS: Duration = Duration::from_secs(5);
/// Generations of clones that a restarted loader makes are beyond.
const AFTER_RESTART: u32 = 1 << 20;

/// What a VM says of itself.
#[derive(Clone, Debug, Deserialize)]
struct Status {
    id: u64,
    name: String,
    address: String,
    mac: String,
    clone_generation: u32,
    requests: u64,
    waits: u64,
    random: u64,
}

fn clones(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some("clones"))?;
    let mut wire = Wire::open()?;
    context.boot_on_frames(&system, &built, wire.network(), |_, _| Ok(()))?;
    let vms: Vec<(String, Ipv4Addr)> =
        system.manifest.vms.iter().map(|vm| (vm.name.clone(), vm.address.into())).collect();
    context.line(0, &[&format!("loader: {} VMs started, 0 refused", vms.len())])?;
    let network = system.manifest.network;
    let deadline = context.deadline();

    // All begin their connections with other numbers, though all are asked from the same port.
    let mut numbers = BTreeSet::new();
    let mut link = Link::new(network.gateway.into());
    for (name, address) in &vms[..ASKED] {
        let number = first_number(&mut wire, &mut link, network.gateway.into(), *address, deadline)?;
        if !numbers.insert(number) {
            return Err(miette!("{name} begins a connection with the number {number}, as another VM does"));
        }
    }

    let mut lan = Lan::on(wire, network.gateway.into(), network.prefix);
    let mut seen = Vec::new();
    for (index, (name, address)) in vms[..ASKED].iter().enumerate() {
        let status = status(&mut lan, *address)?;
        let clone = status.clone_generation > 0;
        let own = status.name == *name && status.address == format!("{address}/{}", network.prefix);
        if !own || status.requests != 1 || clone != (index > 0) {
            return Err(miette!("{name} at {address} says {status:?}"));
        }
        seen.push(status);
    }
    let different = |what: &str, count: usize| match count {
        ASKED => Ok(()),
        _ => Err(miette!("of {ASKED} VMs {count} have a {what} of their own: {seen:?}")),
    };
    different("number", seen.iter().map(|status| status.id).collect::<BTreeSet<_>>().len())?;
    different("MAC address", seen.iter().map(|status| &status.mac).collect::<BTreeSet<_>>().len())?;
    different("generation", seen.iter().map(|status| status.clone_generation).collect::<BTreeSet<_>>().len())?;
    different("random number", seen.iter().map(|status| status.random).collect::<BTreeSet<_>>().len())?;
    // What one counts no other does.
    for count in 2..=4 {
        expect(&mut lan, vms[1].1, |status| status.requests == count)?;
    }
    expect(&mut lan, vms[2].1, |status| status.requests == 2)?;
    idle_cost(context, &vms[ASKED].0)?;

    // They outlive the pager, and the loader knows afterwards what they are made from.
    for server in ["swap", "loader"] {
        let position = context.command(&format!("kill {server}"))?;
        context.line(position, &[&format!("init: server {server} restarted (")])?;
    }
    context.line(0, &["loader: 8 VMs found again"])?;
    expect(&mut lan, vms[1].1, |status| status.requests == 5)?;
    // A command that changes something is carried out by the loader that is there now, though the operator has not spoken to it yet.
    let position = context.command(&format!("stop {}", vms[1].0))?;
    context.line(position, &[&format!("vm {} stopped", vms[1].0)])?;
    context.command(&format!("start {}", vms[1].0))?;
    expect(&mut lan, vms[1].1, |status| status.requests == 1 && status.clone_generation > AFTER_RESTART)?;
    expect(&mut lan, vms[ASKED].1, |status| status.requests == 1 && status.name == vms[ASKED].0)?;
    all_of_a_kind(context, &mut lan, &vms)?;
    // Nobody has begun a connection with these and left it there.
    runs_when_asked_only(&mut lan, &vms)?;
    context.healthy()
}

/// A VM does not run because of time limits that were kept. How often one runs for a request depends on when its packets come, so the least of several counts.
fn runs_when_asked_only(lan: &mut Lan, vms: &[(String, Ipv4Addr)]) -> Result<()> {
    let Some(((_, other), vms)) = vms.split_first() else { return Ok(()) };
    let waits =
        |lan: &mut Lan| vms.iter().map(|(_, address)| Ok(status(lan, *address)?.waits)).collect::<Result<Vec<_>>>();
    let (first, second) = (waits(lan)?, waits(lan)?);
    // The client has to take part in the end of the connections.
    let until = Instant::now() + LIMITS;
    while Instant::now() < until {
        status(lan, *other)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    let third = waits(lan)?;
    let least = |before: &[u64], after: &[u64]| before.iter().zip(after).map(|(before, after)| after - before).min();
    match (least(&first, &second), least(&second, &third)) {
        (at_once, later) if later <= at_once => Ok(()),
        (at_once, later) => {
            Err(miette!("a VM runs {at_once:?} times for a request, and {later:?} times if some time has passed"))
        }
    }
}

/// All VMs of a kind are stopped and started with one command each.
fn all_of_a_kind(context: &mut Context<'_>, lan: &mut Lan, vms: &[(String, Ipv4Addr)]) -> Result<()> {
    let (kind, _) = vms[0].0.rsplit_once('-').ok_or_else(|| miette!("{} is one of a kind", vms[0].0))?;
    for (command, done) in [("stop", "stopped"), ("start", "started")] {
        let position = context.command(&format!("{command} {kind}-*"))?;
        context.line(position, &[&format!("{} VMs {done}", vms.len())])?;
    }
    for (name, address) in vms {
        expect(lan, *address, |status| status.requests == 1 && status.name == *name)?;
    }
    Ok(())
}

fn status(lan: &mut Lan, address: Ipv4Addr) -> Result<Status> {
    let answer = lan.ask(Ask::page(address, 80, "/status.json"), PATIENCE)?;
    let text = answer.text();
    let (_, body) = text.split_once("\r\n\r\n").ok_or_else(|| miette!("{address} answers {text:?}"))?;
    serde_json::from_str(body).into_diagnostic()
}

/// Asks a VM, which must say what is expected.
fn expect(lan: &mut Lan, address: Ipv4Addr, wanted: impl Fn(&Status) -> bool) -> Result<()> {
    let status = status(lan, address)?;
    if wanted(&status) { Ok(()) } else { Err(miette!("{address} says {status:?}")) }
}

/// What the operator is told that a VM has in memory, of which nobody has asked anything.
fn idle_cost(context: &mut Context<'_>, name: &str) -> Result<()> {
    let position = context.command("vms")?;
    let line = context.line(position, &[&format!(" {name} ")])?.text;
    // Number, name, image, address, memory with its unit, what is used with its unit.
    let used = line.split_whitespace().nth(6).and_then(|word| word.parse::<u64>().ok());
    match used {
        Some(used) if used <= IDLE_MAX => Ok(()),
        _ => Err(miette!("a clone that does nothing has more than {IDLE_MAX} KiB: {line:?}")),
    }
}

/// The sequence number with which a VM answers a request for a connection.
fn first_number(wire: &mut Wire, link: &mut Link, own: Ipv4Addr, address: Ipv4Addr, deadline: Instant) -> Result<u32> {
    let again = Duration::from_millis(500);
    let mut send = Instant::now();
    while Instant::now() < deadline {
        if Instant::now() >= send {
            for frame in link.outgoing(request(own, address), Instant::now()) {
                wire.send(&frame)?;
            }
            send = Instant::now() + again;
        }
        match wire.receive(send)?.map(|frame| link.incoming(&frame)) {
            Some(Incoming::Frames(frames)) => frames.iter().try_for_each(|frame| wire.send(frame))?,
            Some(Incoming::Packet(packet)) => {
                if let Some(number) = answer(&packet, address) {
                    return Ok(number);
                }
            }
            Some(Incoming::Nothing) | None => {}
        }
    }
    Err(miette!("{address} does not answer a request for a connection"))
}

const PORT: u16 = 40_000;

/// An IP packet with a request for a connection to the web server.
fn request(own: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    let tcp = TcpRepr {
        src_port: PORT,
        dst_port: 80,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1000),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None::<TcpTimestampRepr>,
        payload: &[],
    };
    let ip = Ipv4Repr {
        src_addr: own,
        dst_addr: address,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; ip.buffer_len() + tcp.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    ip.emit(&mut packet, &checksums);
    let (from, to) = (IpAddress::Ipv4(own), IpAddress::Ipv4(address));
    tcp.emit(&mut TcpPacket::new_unchecked(packet.payload_mut()), &from, &to, &checksums);
    bytes
}

/// The number in the answer to it.
fn answer(packet: &[u8], from: Ipv4Addr) -> Option<u32> {
    let ip = Ipv4Packet::new_checked(packet).ok().filter(|ip| ip.src_addr() == from)?;
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    (tcp.syn() && tcp.ack() && tcp.dst_port() == PORT).then(|| tcp.seq_number().0 as u32)
}
