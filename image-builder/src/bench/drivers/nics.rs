//! Packets.
//!
//! Two network cards are connected to each other: the one that is measured, and a virtio one. A server sends packets from one to the other, in
//! batches.

use std::time::{Duration, Instant};

use miette::{Result, miette};

use super::over_virtio;
use crate::bench::build;
use crate::bench::result::{self, Measurement};
use crate::interrupt;
use crate::machine::qemu::Nic;
use crate::machine::{Running, is_last_word};
use crate::session::Session;
use crate::ui::Step;

/// What the measuring server says at its end.
const END: &str = "all is measured";
/// Measurements that it makes of a driver.
const COUNT: usize = 6;
const LIMIT: Duration = Duration::from_secs(180);

/// The cards, the names of their drivers, and their PCI devices. The first is what others are compared with.
const CARDS: [(Nic, &str, &str); 4] = [
    (Nic::Virtio, "virtio-net", "\"1af4:1041\", \"1af4:1000\""),
    (Nic::E1000, "e1000", "\"8086:100e\""),
    (Nic::E1000e, "e1000", "\"8086:10d3\""),
    (Nic::Rtl8139, "rtl8139", "\"10ec:8139\""),
];

/// Instructions of each driver for a packet, and each against the virtio driver's.
pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let mut all: Vec<Measurement> = Vec::new();
    for (nic, program, pci) in CARDS {
        let name = nic.device().split(',').next().unwrap_or_default();
        let step = Step::start(format!("Measuring {name}"));
        let mut measured = card(session, nic, program, pci)?;
        measured.iter_mut().for_each(|result| {
            result.name = "packet-instructions".into();
            result.params.insert("card".into(), name.into());
        });
        step.done("");
        all.extend(measured);
    }
    let (usual, others) = all.split_at(COUNT);
    let compared = others.chunks(COUNT).flat_map(|of_card| of_card.iter().zip(usual));
    let over: Vec<_> = compared.map(|(result, usual)| over_virtio("packet-over-virtio", result, usual)).collect();
    all.extend(over);
    Ok(all)
}

fn card(session: &mut Session, nic: Nic, program: &str, pci: &str) -> Result<Vec<Measurement>> {
    // Both servers in the file are of the virtio driver, and the one that is measured is the first.
    let usual = "name = \"nic\"\nprogram = \"virtio-net\"\nband = \"driver\"\nmemory = \"1 MiB\"\npci = [\"1af4:1041\", \"1af4:1000\"]";
    let changed =
        format!("name = \"nic\"\nprogram = \"{program}\"\nband = \"driver\"\nmemory = \"1 MiB\"\npci = [{pci}]");
    let (system, built) = build(session, "bench-drivers-nic", &[(usual, changed)])?;
    let mut machine = session.counting_machine(&system, &built);
    for (name, device) in [("nic", nic.device()), ("peer", Nic::Virtio.device())] {
        let netdev = format!("hubport,id={name}-port,hubid=0");
        let device = format!("{device},id={name},netdev={name}-port,romfile=");
        machine.extra.extend(["-netdev".into(), netdev.into(), "-device".into(), device.into()]);
    }
    let qemu = session.qemu()?;
    let mut running = Running::start(&qemu, &machine, &built.folder.join("serial.log"), Box::new(|_| {}))?;
    let end = running.serial.wait(0, Instant::now() + LIMIT, |line| {
        line.contains(END) || is_last_word(line) || line.contains("server bench died")
    });
    interrupt::check()?;
    let lines = running.serial.since(0);
    running.stop();
    let results: Vec<_> = lines.iter().filter_map(|line| result::parse(&line.text)).collect();
    if end.is_none_or(|line| !line.text.contains(END)) || results.len() != COUNT {
        let help = format!("its output is in {}", running.log.display());
        return Err(miette!(help = help, "the system has made {} measurements of {COUNT}", results.len()));
    }
    results.into_iter().map(|result| result.map_err(|error| miette!("{error}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measurement;
    use crate::bench::result::Better;

    #[test]
    fn cards_are_compared_under_the_same_conditions() {
        let of = |value, card: &str| {
            measurement("packet-instructions", value, "instructions", Better::Lower, &format!("card={card} batch=8"))
        };
        let over = over_virtio("packet-over-virtio", &of(230.0, "e1000"), &of(200.0, "virtio"));
        assert_eq!((over.name.as_str(), over.value.round(), over.unit.as_str()), ("packet-over-virtio", 115.0, "%"));
        assert_eq!(over.params["card"], "e1000");
    }
}
