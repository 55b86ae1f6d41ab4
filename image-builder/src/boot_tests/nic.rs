//! Network cards and their drivers.

use std::time::Duration;

use miette::{Result, miette};

use super::BootTest;
use super::harness::Context;
use super::{echo, restart};
use crate::machine::qemu::{Network, Nic};
use crate::machine::qmp::Qmp;

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "nic-e1000",
        about: "an Intel 82540EM: pages, a megabyte there and back, the driver killed under load, the cable out and in",
        limit: Duration::from_secs(180),
        long: false,
        run: |context| card(context, Nic::E1000),
    },
    BootTest {
        name: "nic-e1000e",
        about: "the same with an Intel 82574L",
        limit: Duration::from_secs(180),
        long: false,
        run: |context| card(context, Nic::E1000e),
    },
    BootTest {
        name: "nic-rtl8139",
        about: "the same with a Realtek RTL8139C+",
        limit: Duration::from_secs(180),
        long: false,
        run: |context| card(context, Nic::Rtl8139),
    },
    BootTest {
        name: "nic-cable",
        about: "with the cable out from the start the system comes up and says so, and pages are served once it is in",
        limit: Duration::from_secs(180),
        long: false,
        run: cable,
    },
    BootTest {
        name: "nic-none",
        about: "without a network card the system comes up with what it has, and says so",
        limit: Duration::from_secs(60),
        long: false,
        run: none,
    },
];

/// A web server of the default system.
const WEB: &str = "httpd-1";
/// Bytes sent to the echo VM and back.
const MEGABYTE: usize = 1 << 20;

/// The server that drives the card, whichever it is: the default system has programs for all.
const SERVER: &str = "nic";

/// The program for a card.
fn program(nic: Nic) -> &'static str {
    match nic {
        Nic::Virtio => "virtio-net",
        Nic::E1000 | Nic::E1000e => "e1000",
        Nic::Rtl8139 => "rtl8139",
    }
}

/// Boots the default system with a card. With `cable` out it is so before the first instruction.
fn boot(context: &mut Context<'_>, nic: Nic, cable: bool) -> Result<Qmp> {
    let (system, built) = context.build(None)?;
    let mut socket = None;
    context.boot_changed(&system, &built, |context, machine| {
        machine.nic = nic;
        // Stopped until told to go.
        machine.extra = vec!["-S".into()];
        machine.qmp = Some(socket.insert(context.socket()?).clone());
        Ok(())
    })?;
    let mut qmp = Qmp::connect(&socket.ok_or_else(|| miette!("there is no control socket"))?)?;
    if !cable {
        qmp.set_cable(false)?;
    }
    qmp.go()?;
    Ok(qmp)
}

fn card(context: &mut Context<'_>, nic: Nic) -> Result<()> {
    let driver = SERVER;
    let mut qmp = boot(context, nic, true)?;
    context.page(WEB, "/")?;
    context.line(0, &["init: server nic: no device for virtio-net", "trying e1000"])?;
    if program(nic) != "e1000" {
        context.line(0, &["init: server nic: no device for e1000", program(nic)])?;
    }
    context.line(0, &[driver, "52:54:00:12:34:56: link up"])?;
    echo::come_back(context, MEGABYTE)?;
    restart::kill_while_serving(context, driver, WEB)?;
    for _ in 0..2 {
        let position = context.running()?.serial.position();
        qmp.set_cable(false)?;
        context.line(position, &[driver, "link down"])?;
        let position = context.running()?.serial.position();
        qmp.set_cable(true)?;
        context.line(position, &[driver, "link up"])?;
        context.page(WEB, "/")?;
    }
    echo::come_back(context, MEGABYTE / 8)?;
    context.healthy()
}

fn cable(context: &mut Context<'_>) -> Result<()> {
    for nic in [Nic::Virtio, Nic::E1000, Nic::E1000e, Nic::Rtl8139] {
        let driver = SERVER;
        let mut qmp = boot(context, nic, false)?;
        context.line(0, &[driver, "link down"])?;
        context.line(0, &["vm httpd-1|", "serving http://"])?;
        qmp.set_cable(true)?;
        context.line(0, &[driver, "link up"])?;
        context.page(WEB, "/")?;
        context.healthy()?;
    }
    Ok(())
}

fn none(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(None)?;
    context.boot_on_frames(&system, &built, Network::None, |_, _| Ok(()))?;
    context.line(0, &[SERVER, "no device"])?;
    context.line(0, &["vswitch", "no way to the network"])?;
    context.line(0, &["vm httpd-1|", "serving http://"])?;
    context.healthy()
}
