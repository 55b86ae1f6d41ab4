//! Calls of the other servers.

use core::fmt;
use loader::peers::{Lent, Peers};
use server_runtime::{
    CallError, Client, Startup, clock, log,
    protocol::{
        abi::{Error, Lend},
        service::{console, pager, platform, switch, vdisk},
    },
};

/// The clients of all servers that the loader calls.
pub struct Calls {
    pager: Client<pager::Pager>,
    pager_line: u8,
    switch: Option<Client<switch::Switch>>,
    console: Option<Client<console::Console>>,
    vdisk: Option<Client<vdisk::Vdisk>>,
    platform: Option<Client<platform::Platform>>,
    /// Where the bundle is mapped.
    bundle: u64,
}

impl Calls {
    /// By the channels of the startup page; `None` without a pager.
    pub fn new(startup: &Startup, bundle: u64) -> Option<Calls> {
        let slot = |name| startup.channel(name).map(|channel| channel.slot);
        let pager = startup.channel("swap")?;
        Some(Calls {
            pager: Client::new(pager.slot),
            pager_line: pager.line,
            switch: slot("vswitch").map(Client::new),
            console: slot("console").map(Client::new),
            vdisk: slot("vdisk").map(Client::new),
            platform: slot("platform").map(Client::new),
            bundle,
        })
    }

    /// The line that the pager raises.
    pub const fn pager_line(&self) -> u8 {
        self.pager_line
    }

    /// Nanoseconds since 1970 at time 0; 0 if nobody knows.
    pub fn wall_clock(&mut self) -> u64 {
        let answer = self.platform.as_mut().map(|platform| platform.call(&platform::Request::WallClock));
        match answer {
            Some(Ok(platform::Response::WallClock(time))) => time,
            _ => {
                crate::warn("the time of day is unknown: VMs are not told");
                0
            }
        }
    }
}

impl Peers for Calls {
    fn pager(&mut self, request: &pager::Request, lent: Lent) -> Result<pager::Response, CallError> {
        let lend = match lent {
            Lent::Nothing => Some(Lend::NONE),
            Lent::Registers(pages) => Lend::new(pages.as_ptr().expose_provenance() as u64, pages.len() as u64),
            Lent::Bundle { offset, pages } => self.bundle.checked_add(offset).and_then(|at| Lend::new(at, pages)),
        };
        let lend = lend.ok_or(CallError::Kernel(Error::BadArgument))?;
        self.pager.call_with(request, None, lend).map(|(response, _)| response)
    }

    fn take_pager_restarted(&mut self) -> bool {
        self.pager.take_restarted()
    }

    fn switch(&mut self, request: &switch::Request) -> Result<switch::Response, CallError> {
        self.switch.as_mut().map_or(Err(CallError::Kernel(Error::NoCapability)), |client| client.call(request))
    }

    fn console(&mut self, request: &console::Request) -> Result<console::Response, CallError> {
        self.console.as_mut().map_or(Err(CallError::Kernel(Error::NoCapability)), |client| client.call(request))
    }

    fn vdisk(&mut self, request: &vdisk::Request) -> Result<vdisk::Response, CallError> {
        self.vdisk.as_mut().map_or(Err(CallError::Kernel(Error::NoCapability)), |client| client.call(request))
    }

    fn now(&mut self) -> u64 {
        clock::now()
    }

    fn log(&mut self, text: fmt::Arguments) {
        log!("{text}");
    }
}
