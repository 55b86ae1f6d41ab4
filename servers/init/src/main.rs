//! The first program. What it does is in the library; here is the kernel's side of it.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

mod kernel;

use alloc::format;
use init::{
    extents::{Extents, Place},
    grants::Holdings,
    system::System,
};
use kernel::Kernel;
use protocol::{
    boot::{BootInfo, EXTENTS, Extent, MAGIC, slot},
    domain::line,
    service::init::{Init, Request, Response},
};
use server_runtime::{Answer, Caller, Handler, hypercall, journal, log};

server_runtime::init_entry!(main);

/// Exit code when the system cannot be started.
const REFUSED: u32 = 1;

fn main(boot: &'static BootInfo) -> ! {
    let mut system = match start(boot) {
        Ok(system) => system,
        Err(reason) => {
            log!("{reason}");
            hypercall::exit(REFUSED)
        }
    };
    if let Err(reason) = system.start_all() {
        log!("{reason}");
        hypercall::exit(REFUSED)
    }
    server_runtime::run::<Init, _>(Server(system))
}

fn start(boot: &'static BootInfo) -> Result<System<'static, Kernel>, init::system::Refusal> {
    if boot.magic != MAGIC {
        return Err("the kernel is of another version: no boot information".into());
    }
    let place = |slot, extent: Extent| Place { slot, first: extent.first, count: extent.count };
    let more = boot.more_memory.iter().take(boot.more_memory_count.min(EXTENTS as u64) as usize);
    let more = (slot::MORE_MEMORY..).zip(more).map(|(slot, extent)| place(slot, *extent));
    let extents = Extents::new([place(slot::MEMORY, boot.memory)].into_iter().chain(more));
    let devices = hypercall::capability_info(slot::DEVICES).map_err(|error| format!("devices: {error}"))?;
    let holdings = Holdings {
        tsc_base: boot.tsc_base,
        tsc_multiplier: boot.tsc_multiplier,
        rsdp: boot.rsdp,
        bundle: place(slot::BUNDLE, boot.bundle),
        bundle_length: boot.bundle_length,
        devices: Place { slot: slot::DEVICES, first: devices.first, count: u64::from(devices.count) },
        shared: Default::default(),
        pool: Default::default(),
        framebuffer: boot.framebuffer,
    };
    // The kernel has said so on the debug line; the screen shows what is in this journal.
    let (version, mib) = (env!("CARGO_PKG_VERSION"), boot.memory_total >> 20);
    journal::note(format!("microkernel: {version} for x86-64: {mib} MiB of memory\n").as_bytes());
    let bundle = kernel::map_bundle(boot).map_err(|error| format!("bundle: {error}"))?;
    System::plan(Kernel::new(), bundle, extents, holdings)
}

/// The service of `init`, and its ears and clock.
struct Server(System<'static, Kernel>);

impl Handler<Init> for Server {
    fn request(&mut self, _from: Caller, request: Request<'_>) -> Answer<Response> {
        Answer::Now(self.0.request(&request))
    }

    fn interrupts(&mut self, lines: u64) {
        if lines & 1 << line::TRAP != 0 {
            self.0.traps();
        }
    }

    fn deadline(&mut self) {
        self.0.restarts();
    }

    fn next_deadline(&self) -> u64 {
        self.0.next_restart()
    }
}
