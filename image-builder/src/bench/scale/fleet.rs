//! A machine with so many web servers, and a client of all of them.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use miette::{Result, miette};

use crate::bench::build;
use crate::bench::harness::Bench;
use crate::machine::lan::{Ask, Lan, page};
use crate::machine::qemu::Rest;
use crate::session::Session;
use crate::ui::Step;

/// Connections at once when all are asked.
pub(super) const AT_ONCE: usize = 32;
/// How long a VM may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds for each thousand VMs that their creation may take, and seconds besides.
const CREATION: (u64, u64) = (20, 120);
/// KiB of swap space that a web server has, rounded up.
const SWAP_KIB: u64 = 1536;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Web servers `httpd-1` and so on.
    pub vms: u64,
    /// More of them, named otherwise, behind those.
    pub serving: u64,
    /// MiB of memory of the machine.
    pub memory: u64,
    /// Processors of the machine.
    pub processors: u16,
    /// Its time counts instructions, and its figures are the processor's time and not the memory.
    pub counting: bool,
}

/// The machine.
pub(super) struct Fleet {
    /// It runs.
    pub bench: Bench,
    /// The client.
    pub lan: Lan,
    /// Names and addresses.
    pub vms: Vec<(String, Ipv4Addr)>,
    /// Seconds from the first creation to the last, by the machine's clock.
    pub created_in: f64,
}

impl Fleet {
    /// Starts a machine, and waits until all its VMs are created.
    pub fn start(session: &mut Session, size: Size) -> Result<Fleet> {
        let Size { vms, serving, memory, processors, counting } = size;
        let all = vms + serving;
        let swap = all * SWAP_KIB / 1024 + 16;
        // Servers keep some bytes of each VM.
        let server = format!("memory = \"{} MiB\"", 4 + vms / 2000);
        let more = match serving {
            0 => String::new(),
            _ => format!("\n\n[[vm]]\nname = \"serving\"\nimage = \"httpd\"\ncount = {serving}"),
        };
        let changes = [
            ("memory = \"256 MiB\"", format!("memory = \"{memory} MiB\"")),
            ("memory = \"2 MiB\"", format!("memory = \"{} MiB\"", 2 + vms / 10_000)),
            ("memory = \"4 MiB\"", server),
            ("cpus = 1", format!("cpus = {processors}")),
            ("size = \"1460 MiB\"", format!("size = \"{} MiB\"", swap + 16)),
            ("swap = \"1440 MiB\"", format!("swap = \"{swap} MiB\"")),
            ("heaps = \"true\"", format!("{} = \"true\"", if counting { "times" } else { "heaps" })),
            ("count = 1000", format!("count = {vms}{more}")),
        ];
        let (system, built) = build(session, "bench-scale", &changes)?;
        let network = system.manifest.network;
        let lan = Lan::open(network.gateway.into(), network.prefix)?;
        let mut machine = session.machine(&system, &built, lan.network());
        if counting {
            machine = machine.counting(Rest::Waited);
        }
        machine.extra.extend(["-name".into(), "denali,debug-threads=on".into()]);
        let step = Step::start(format!("Creating {all} VMs on {memory} MiB"));
        let mut bench = Bench::start(session, &system, &built, machine, None)?;
        let limit = Duration::from_secs(vms * CREATION.0 / 1000 + CREATION.1);
        let words = format!("{all} VMs started, 0 refused, in ");
        bench.wait(0, limit, "that all VMs are started", |line| line.contains(&words))?;
        let told = bench
            .running
            .serial
            .since(0)
            .into_iter()
            .find_map(|line| line.text.split_once(&words)?.1.split(' ').next()?.parse::<f64>().ok());
        let created_in = told.ok_or_else(|| miette!("the loader does not say how long it took"))? / 1000.0;
        step.done(&format!("{created_in:.1} s"));
        let vms = system.manifest.vms.iter().map(|vm| (vm.name.clone(), vm.address.into())).collect();
        Ok(Fleet { bench, lan, vms, created_in })
    }

    /// Asks each VM for its page; how many gave it, and how long all took together.
    pub fn ask_each(&mut self) -> Result<(usize, Duration)> {
        let step = Step::start(format!("Asking each of {} VMs", self.vms.len()));
        let asks: Vec<_> = self.vms.iter().map(|(_, address)| Ask::page(*address, 80, "/")).collect();
        let begun = Instant::now();
        let outcomes = self.lan.ask_all(&asks, AT_ONCE, PATIENCE)?;
        let took = begun.elapsed();
        let right = outcomes.iter().zip(&self.vms).filter(|(outcome, (name, address))| {
            outcome.as_ref().is_ok_and(|answer| page::is_of(&answer.text(), name, *address))
        });
        let count = right.count();
        step.done(&format!("{count} have answered, in {:.1} s", took.as_secs_f64()));
        Ok((count, took))
    }

    /// Processor time that the machine has used.
    pub fn busy(&self) -> Result<Duration> {
        Ok(self.bench.running.processor_times()?.iter().sum())
    }

    /// Ends it.
    pub fn end(mut self) {
        self.bench.running.stop();
    }
}
