//! Many VMs of the guest `pages`, asked by a host on their network: what they have in memory must be what they have written.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use miette::{Result, miette};
use pages::pattern::Pattern;
use pages::{PORT, SECRET, arguments::Arguments};

use super::BootTest;
use super::harness::Context;
use crate::machine::lan::{Answer, Ask, Lan, Outcome};
use crate::machine::qemu::Machine;
use crate::system::{System, disks};

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "pages",
    about: "many VMs fill their memory, keep it while others write, and all of it is what it must be",
    limit: Duration::from_secs(120),
    long: false,
    run: |context| {
        let mut vms = Vms::boot(context, "pages")?;
        let all = vms.all();
        vms.check(&all)?;
        vms.touch(&all, |index| 300 + index as u32)?;
        vms.check(&all)?;
        vms.compare(&all)?;
        context.healthy()
    },
}];

/// How long a VM may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Connections at once.
pub const AT_ONCE: usize = 12;

/// A host at the place of the network's gateway, connected to a machine that it boots, which `change` has changed.
pub fn boot_changed<'a>(
    context: &mut Context<'a>,
    name: Option<&str>,
    change: impl FnOnce(&mut Context<'a>, &mut Machine) -> Result<()>,
) -> Result<(System, Lan)> {
    let (system, built) = context.build(name)?;
    let network = system.manifest.network;
    let lan = Lan::open(network.gateway.into(), network.prefix)?;
    context.boot_on_frames(&system, &built, lan.network(), change)?;
    Ok((system, lan))
}

/// A VM.
struct Subject {
    name: String,
    address: Ipv4Addr,
    memory: u64,
    arguments: Arguments,
    /// Pages that it was told to write again.
    touched: u32,
}

/// The VMs of a system that are made from the guest `pages`, named by their position in the system file.
pub struct Vms {
    /// The host that asks them.
    lan: Lan,
    vms: Vec<Subject>,
    /// How long each may take to answer.
    pub patience: Duration,
}

impl Vms {
    /// Boots a system and finds its VMs.
    pub fn boot(context: &mut Context<'_>, name: &str) -> Result<Vms> {
        Vms::boot_changed(context, name, |_, _| Ok(()))
    }

    /// The same on a machine that `change` has changed.
    pub fn boot_changed<'a>(
        context: &mut Context<'a>,
        name: &str,
        change: impl FnOnce(&mut Context<'a>, &mut Machine) -> Result<()>,
    ) -> Result<Vms> {
        let (system, lan) = boot_changed(context, Some(name), change)?;
        let vms = system.manifest.vms.iter().filter(|vm| vm.image == "pages").map(|vm| {
            let arguments = Arguments::parse(&vm.arguments).map_err(|word| miette!("{}: {word}", vm.name))?;
            let (name, address, memory) = (vm.name.clone(), vm.address.into(), vm.memory);
            Ok(Subject { name, address, memory, arguments, touched: 0 })
        });
        Ok(Vms { lan, vms: vms.collect::<Result<_>>()?, patience: PATIENCE })
    }

    /// All of them.
    pub fn all(&self) -> Vec<usize> {
        (0..self.vms.len()).collect()
    }

    /// A VM's name.
    pub fn name(&self, vm: usize) -> &str {
        &self.vms[vm].name
    }

    /// Where a VM's region of swap space lies: first byte and bytes. For systems with one swap disk and no other VMs: regions are
    /// given out from the first on, as VMs are created.
    pub fn region(&self, vm: usize) -> (u64, u64) {
        let before = self.vms[..vm].iter().map(|vm| disks::region(vm.memory)).sum();
        (before, disks::region(self.vms[vm].memory))
    }

    /// Asks some VMs; what became of each question.
    pub fn try_ask(&mut self, which: &[usize], line: impl Fn(usize) -> String) -> Result<Vec<Outcome>> {
        let asks: Vec<_> = which.iter().map(|vm| Ask::line(self.vms[*vm].address, PORT, &line(*vm))).collect();
        self.lan.ask_all(&asks, AT_ONCE, self.patience)
    }

    /// Asks some VMs, all of which must answer.
    pub fn ask(&mut self, which: &[usize], line: impl Fn(usize) -> String) -> Result<Vec<String>> {
        let outcomes = self.try_ask(which, &line)?;
        let answers = outcomes.into_iter().zip(which).map(|(outcome, vm)| {
            let failed = |failure| miette!("VM `{}` does not answer `{}`: {failure}", self.name(*vm), line(*vm));
            outcome.map(|answer| answer.text()).map_err(failed)
        });
        answers.collect()
    }

    fn expect(&self, which: &[usize], answers: &[String], expected: impl Fn(usize) -> String) -> Result<()> {
        for (vm, answer) in which.iter().zip(answers) {
            if *answer != expected(*vm) {
                return Err(miette!("VM `{}` answers {answer:?} instead of {:?}", self.name(*vm), expected(*vm)));
            }
        }
        Ok(())
    }

    fn good(&self, vm: usize) -> String {
        format!("ok {}", self.vms[vm].arguments.pages)
    }

    /// Has VMs look at all their pages.
    pub fn check(&mut self, which: &[usize]) -> Result<()> {
        let answers = self.ask(which, |_| "check".into())?;
        self.expect(which, &answers, |vm| self.good(vm))
    }

    /// The same, of which some may not answer: those that did not. What is answered must be right.
    pub fn try_check(&mut self, which: &[usize]) -> Result<Vec<usize>> {
        let mut silent = Vec::new();
        for (outcome, vm) in self.try_ask(which, |_| "check".into())?.iter().zip(which) {
            match outcome.as_ref().map(Answer::text) {
                Ok(text) => self.expect(&[*vm], &[text], |vm| self.good(vm))?,
                Err(_) => silent.push(*vm),
            }
        }
        Ok(silent)
    }

    /// Has VMs write so many of their pages again.
    pub fn touch(&mut self, which: &[usize], count: impl Fn(usize) -> u32) -> Result<()> {
        let answers = self.ask(which, |vm| format!("touch {}", count(vm)))?;
        which.iter().for_each(|vm| self.vms[*vm].touched += count(*vm));
        self.expect(which, &answers, |_| "ok".into())
    }

    /// The host knows what must be in memory without asking, but for the numbers of the VMs: compares.
    pub fn compare(&mut self, which: &[usize]) -> Result<()> {
        let who = self.ask(which, |_| "who".into())?;
        let sums = self.ask(which, |_| "sum".into())?;
        let mut numbers = BTreeMap::new();
        for ((index, who), found) in which.iter().zip(who).zip(sums) {
            let Subject { name, arguments: Arguments { pages, seed, entropy }, touched, .. } = &self.vms[*index];
            let wrong = || miette!("VM `{name}` says that it is {who:?}");
            let vm = who.strip_prefix("vm ").and_then(|rest| rest.split(' ').next()?.parse().ok());
            let vm: u64 = vm.ok_or_else(wrong)?;
            let expected = format!("vm {vm} pages {pages} seed {seed} touched {touched}");
            if who != expected || numbers.insert(vm, index).is_some() {
                return Err(wrong());
            }
            let sum = Pattern { vm, seed: *seed, entropy: *entropy }.sum(*pages, (*touched).into());
            if found != format!("sum {sum:016x}") {
                return Err(miette!("VM `{name}` has the {found}, not {sum:016x}"));
            }
        }
        let secret = format!("secret {}", String::from_utf8_lossy(SECRET).trim_end());
        let answers = self.ask(which, |_| "secret".into())?;
        self.expect(which, &answers, |_| secret.clone())
    }
}
