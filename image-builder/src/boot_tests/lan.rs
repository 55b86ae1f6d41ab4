//! VMs reached by their own addresses, from a host on their network.

use std::net::Ipv4Addr;
use std::time::Duration;

use miette::{Result, WrapErr, miette};
use pages::pattern::Pattern;
use pages::{PORT, SECRET, arguments::Arguments};

use super::BootTest;
use super::harness::Context;
use crate::machine::lan::{Answer, Ask, End, Lan, Outcome};
use crate::system::System;

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "lan",
        about: "a host on the VMs' network reaches each VM by its address, many connections at once",
        limit: Duration::from_secs(60),
        long: false,
        run: lan,
    },
    BootTest {
        name: "pages",
        about: "many VMs fill their memory, keep it while others write, and all of it is what it must be",
        limit: Duration::from_secs(120),
        long: false,
        run: |context| pages(context, "pages"),
    },
    BootTest {
        name: "many-pages",
        about: "the same with as many VMs as a machine of 2 GiB holds",
        limit: Duration::from_secs(600),
        long: true,
        run: |context| pages(context, "swap"),
    },
];

/// How long a VM may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests to each web server.
const REQUESTS: usize = 30;
/// Connections at once.
const AT_ONCE: usize = 12;

/// A host at the place of the network's gateway, connected to a machine that it boots.
pub fn boot(context: &mut Context<'_>, name: Option<&str>) -> Result<(System, Lan)> {
    let (system, built) = context.build(name)?;
    let network = system.manifest.network;
    let lan = Lan::open(network.gateway.into(), network.prefix)?;
    context.boot_on_frames(&system, &built, lan.network())?;
    Ok((system, lan))
}

/// The answers, if all VMs gave one.
fn all(outcomes: Vec<Outcome>, asks: &[Ask]) -> Result<Vec<Answer>> {
    let answers = outcomes.into_iter().zip(asks);
    answers
        .map(|(outcome, ask)| outcome.map_err(|failure| miette!("{} port {}: {failure}", ask.address, ask.port)))
        .collect()
}

fn lan(context: &mut Context<'_>) -> Result<()> {
    let (system, mut lan) = boot(context, None)?;
    let addresses = |image: &str| -> Vec<(String, Ipv4Addr)> {
        let vms = system.manifest.vms.iter().filter(|vm| vm.image == image);
        vms.map(|vm| (vm.name.clone(), vm.address.into())).collect()
    };
    let (web, echo) = (addresses("httpd"), addresses("echo"));
    // Page by page, each VM in turn: the page says which VM it comes from.
    let asks: Vec<_> =
        (0..REQUESTS).flat_map(|_| web.iter().map(|(_, address)| Ask::page(*address, 80, "/"))).collect();
    let answers = all(lan.ask_all(&asks, AT_ONCE, PATIENCE)?, &asks)?;
    for (answer, (name, address)) in answers.iter().zip(web.iter().cycle()) {
        let text = answer.text();
        if !text.starts_with("HTTP/1.1 200") || !text.contains(name) {
            return Err(miette!("{address} answers with something else than the page of VM `{name}`: {text:.200}"));
        }
    }
    // More than any buffer on the way holds comes back whole.
    let sent: Vec<u8> = (0..60_000usize).map(|index| (index * 31 + index / 251) as u8).collect();
    for (name, address) in &echo {
        let ask = Ask { address: *address, port: 7, request: sent.clone(), end: End::Bytes(sent.len()) };
        let answer = lan.ask(ask, PATIENCE).wrap_err_with(|| miette!("echo VM `{name}`"))?;
        if answer.bytes != sent {
            return Err(miette!("of {} bytes, {} came back, or not the same", sent.len(), answer.bytes.len()));
        }
    }
    // Nobody answers at a port that no VM serves, and the next request is answered all the same.
    let nobody = Ask::line(web[0].1, 9, "x");
    if let Ok(answer) = lan.ask(nobody, Duration::from_millis(500)) {
        return Err(miette!("port 9 answers {:?}", answer.text()));
    }
    lan.ask(Ask::page(web[0].1, 80, "/"), PATIENCE)?;
    context.healthy()
}

/// A VM of the guest `pages`.
struct Subject {
    name: String,
    address: Ipv4Addr,
    arguments: Arguments,
}

fn subjects(system: &System) -> Result<Vec<Subject>> {
    let vms = system.manifest.vms.iter().filter(|vm| vm.image == "pages");
    vms.map(|vm| {
        let arguments = Arguments::parse(&vm.arguments).map_err(|word| miette!("{}: {word}", vm.name))?;
        Ok(Subject { name: vm.name.clone(), address: vm.address.into(), arguments })
    })
    .collect()
}

fn pages(context: &mut Context<'_>, name: &str) -> Result<()> {
    let (system, mut lan) = boot(context, Some(name))?;
    let subjects = subjects(&system)?;
    let mut ask = |line: &dyn Fn(usize) -> String| -> Result<Vec<String>> {
        let asks: Vec<_> =
            subjects.iter().enumerate().map(|(index, vm)| Ask::line(vm.address, PORT, &line(index))).collect();
        let answers = all(lan.ask_all(&asks, AT_ONCE, PATIENCE)?, &asks)?;
        Ok(answers.iter().map(Answer::text).collect())
    };
    let expect = |answers: &[String], expected: &dyn Fn(usize) -> String| -> Result<()> {
        for (index, answer) in answers.iter().enumerate() {
            if *answer != expected(index) {
                let name = &subjects[index].name;
                return Err(miette!("VM `{name}` answers {answer:?} instead of {:?}", expected(index)));
            }
        }
        Ok(())
    };
    let count = |index: usize| subjects[index].arguments.pages;
    // Everybody has what it must have, then writes a different number of pages again, and has what it must have.
    expect(&ask(&|_| "check".into())?, &|index| format!("ok {}", count(index)))?;
    let touched = |index: usize| count(index) + index as u32;
    expect(&ask(&|index| format!("touch {}", touched(index)))?, &|_| "ok".into())?;
    expect(&ask(&|_| "check".into())?, &|index| format!("ok {}", count(index)))?;
    // The host knows what must be there without asking, but for the numbers of the VMs.
    let who = ask(&|_| "who".into())?;
    let sums = ask(&|_| "sum".into())?;
    let mut numbers = Vec::new();
    for (index, who) in who.iter().enumerate() {
        let Arguments { pages, seed, entropy } = subjects[index].arguments;
        let vm = who.strip_prefix("vm ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let vm: u64 = vm.ok_or_else(|| miette!("VM `{}` says that it is {who:?}", subjects[index].name))?;
        if *who != format!("vm {vm} pages {pages} seed {seed} touched {}", touched(index)) || numbers.contains(&vm) {
            return Err(miette!("VM `{}` says that it is {who:?}", subjects[index].name));
        }
        numbers.push(vm);
        let sum = Pattern { vm, seed, entropy }.sum(pages, touched(index).into());
        if sums[index] != format!("sum {sum:016x}") {
            return Err(miette!("VM `{}` has the {}, not {sum:016x}", subjects[index].name, sums[index]));
        }
    }
    let secret = format!("secret {}", String::from_utf8_lossy(SECRET).trim_end());
    expect(&ask(&|_| "secret".into())?, &|_| secret.clone())?;
    context.healthy()
}
