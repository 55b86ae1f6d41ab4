//! The loop of a driver.

use crate::{Dma, NetDriver, Problem, rings::Rings};
use alloc::{format, string::String, vec::Vec};
use protocol::{
    abi::Target,
    domain::line,
    manifest::StartupClient,
    service::net_driver::{NetDriver as Service, Request, Response},
};
use server_runtime::{Answer, Caller, Handler, Startup, hypercall};

/// What a driver is given.
pub struct Setup<'a> {
    /// The startup page: options of the system file, channels.
    pub startup: &'a Startup,
    /// Memory for the device: the second shared memory that the system file gives the driver.
    pub dma: Dma,
    /// The packet memory, shared with the switch: the first.
    pub packets: Dma,
}

/// Opens the device with `open` and serves it for ever. Without a device the driver answers `NoDevice`.
pub fn serve<D: NetDriver>(startup: Startup, open: impl FnOnce(&Setup<'_>) -> Result<D, Problem>) -> ! {
    let rings = setup(&startup, open);
    if let Err(problem) = &rings {
        server_runtime::log!("no device: {problem}");
    }
    server_runtime::run::<Service, _>(Server { rings: rings.ok(), clients: startup.clients, switch: None, link: None })
}

fn setup<D: NetDriver>(
    startup: &Startup,
    open: impl FnOnce(&Setup<'_>) -> Result<D, Problem>,
) -> Result<Rings<D>, Problem> {
    let mut shared = (0..startup.resources.len()).filter_map(|index| Dma::resource(startup, index));
    let (Some(packets), Some(dma)) = (shared.next(), shared.next()) else {
        return Err(
            "the system file must give a network driver two shared memories: for packets, and for its device".into()
        );
    };
    let device = open(&Setup { startup, dma, packets })?;
    Rings::new(device, packets.memory, packets.physical)
        .map_err(|_| format!("{} bytes of packet memory are not enough", packets.memory.length()))
}

struct Server<D> {
    rings: Option<Rings<D>>,
    clients: Vec<StartupClient>,
    /// Where the switch is told that something moved: slot of the client that has started the rings.
    switch: Option<u8>,
    /// The link as it was last said.
    link: Option<bool>,
}

impl<D: NetDriver> Server<D> {
    fn start(&mut self, badge: u64) -> Response {
        self.switch = None;
        let Some(rings) = &mut self.rings else {
            return Response::NoDevice;
        };
        if let Err(problem) = rings.start() {
            server_runtime::log!("the device cannot be started: {problem}");
            return Response::NoDevice;
        }
        self.switch = self.clients.iter().find(|client| client.badge == badge).map(|client| client.slot);
        let (mac, link) = (rings.device().mac(), rings.device().link());
        self.say_link(link);
        Response::Started { mac, link }
    }

    fn say_link(&mut self, link: bool) {
        if self.link != Some(link) {
            self.link = Some(link);
            let mac = self.rings.as_mut().map_or_else(String::new, |rings| {
                let [a, b, c, d, e, f] = rings.device().mac();
                format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
            });
            server_runtime::log!("{mac}: link {}", if link { "up" } else { "down" });
        }
    }
}

impl<D: NetDriver> Handler<Service> for Server<D> {
    fn request(&mut self, from: Caller, request: Request) -> Answer<Response> {
        Answer::Now(match request {
            Request::Start => self.start(from.badge),
            Request::Statistics => match &self.rings {
                Some(rings) => {
                    let counters = rings.counters();
                    Response::Statistics { sent: counters.sent, received: counters.received, lost: counters.lost }
                }
                None => Response::NoDevice,
            },
        })
    }

    fn interrupts(&mut self, lines: u64) {
        let Some(rings) = &mut self.rings else {
            return;
        };
        let hardware = lines >> line::HARDWARE_FIRST << line::HARDWARE_FIRST;
        if hardware != 0 {
            // Also while nobody has started the rings: a line that other devices share would stay masked.
            rings.device().interrupt(hardware);
        }
        let Some(switch) = self.switch else {
            return;
        };
        if rings.work() {
            // A switch that is being restarted begins anew anyway.
            let _ = hypercall::raise(Target::slot(switch));
        }
        if hardware != 0 {
            let link = rings.device().link();
            self.say_link(link);
        }
    }
}
