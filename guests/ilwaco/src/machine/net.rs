//! TCP/IP: `embassy-net` over the VM's NIC.

use super::{
    executor, lines,
    nic::{self, Nic},
    random, vm,
};
use crate::{
    listeners::{Listeners, Listening},
    packets::{Outgoing, Received},
    requests::Requests,
    sequence,
};
use alloc::boxed::Box;
use core::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    mem,
    pin::pin,
    task::Context,
};
use embassy_executor::Spawner;
use embassy_net::{
    Config, ConfigV4, Ipv4Cidr, Stack, StackResources, StaticConfigV4,
    tcp::{AcceptError, TcpSocket},
};
use embassy_net_driver::{Capabilities, Driver, HardwareAddress, LinkState, RxToken, TxToken};
use protocol::nic::FRAME_MAX;

/// Starts the network with the addresses that the VM was given, or DHCP if it was given none and the feature `dhcp` is on.
/// There can be up to `SOCKETS` sockets at a time, of which DNS and DHCP take one each if they are on.
///
/// # Panics
/// If the image has no NIC, or the network was started before.
pub fn start<const SOCKETS: usize>(spawner: Spawner) -> Stack<'static> {
    let nic = nic::take().expect("the image has no NIC (entry!(main, ..., nic = 16)), or it was taken before");
    let mut config = Config::default();
    config.ipv4 = addresses();
    let resources = Box::leak(Box::new(StackResources::<SOCKETS>::new()));
    let interface = Interface { nic: RefCell::new(nic), requests: Requests::new(), waiting: None };
    let (stack, mut runner) = embassy_net::new(interface, config, resources, random::next_u64());
    STACK.0.set(Some(stack));
    spawner.spawn(executor::task(async move { runner.run().await }));
    stack
}

/// The stack, to be told of other addresses.
struct Kept(Cell<Option<Stack<'static>>>);

// SAFETY: a VM has one flow of control, which only a virtual interrupt can come between; and it is used by the two functions of this module alone, which run in
// tasks and in the idle loop.
unsafe impl Sync for Kept {}

static STACK: Kept = Kept(Cell::new(None));

/// The VM's addresses as embassy-net wants them.
fn addresses() -> ConfigV4 {
    match vm::network() {
        Some(network) => ConfigV4::Static(StaticConfigV4 {
            address: Ipv4Cidr::new(network.address, network.prefix),
            gateway: network.gateway,
            dns_servers: network.name_server.into_iter().collect(),
        }),
        #[cfg(feature = "dhcp")]
        None => ConfigV4::Dhcp(embassy_net::DhcpConfig::default()),
        #[cfg(not(feature = "dhcp"))]
        None => ConfigV4::None,
    }
}

/// The VM has become a clone: its addresses are others.
pub(super) fn configure() {
    if let Some(stack) = STACK.0.get() {
        stack.set_config_v4(addresses());
    }
}

/// Sends all of `bytes`, waiting for room in the socket's buffer as often as need be.
pub async fn write_all(socket: &mut TcpSocket<'_>, mut bytes: &[u8]) -> Result<(), embassy_net::tcp::Error> {
    while !bytes.is_empty() {
        let count = socket.write(bytes).await?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// A TCP port of this VM that several tasks serve, each one connection after the other. Few of them listen at a time ([`crate::listeners`]): it costs next to
/// nothing to have many.
pub struct Listener {
    port: u16,
    listeners: Listeners,
}

impl Listener {
    /// Nobody listens yet.
    pub const fn new(port: u16) -> Listener {
        Listener { port, listeners: Listeners::new() }
    }

    /// Waits until one more socket is to listen: make it then, and not before.
    pub async fn turn(&self) -> Turn<'_> {
        Turn { port: self.port, listening: self.listeners.begin().await }
    }
}

/// The right to listen for one connection.
#[must_use = "nobody listens before `accept`"]
pub struct Turn<'a> {
    port: u16,
    listening: Listening<'a>,
}

impl Turn<'_> {
    /// Waits for a connection. A time limit of the socket holds for connections too that their clients do not complete.
    pub async fn accept(self, socket: &mut TcpSocket<'_>) -> Result<(), AcceptError> {
        let mut accept = pin!(socket.accept(self.port));
        let mut listening = Some(self.listening);
        let mut waits = false;
        poll_fn(|context| {
            // It is woken when the socket's state changes: by the first packet of a connection, from when on it listens no more.
            if mem::replace(&mut waits, true) {
                listening = None;
            }
            accept.as_mut().poll(context)
        })
        .await
    }
}

/// The NIC as embassy-net wants it.
struct Interface {
    nic: RefCell<Nic>,
    requests: Requests,
    /// A request for a connection that has to wait.
    waiting: Option<Received>,
}

impl Interface {
    /// What has arrived next, if tasks need not run before that.
    fn next(&mut self, context: &mut Context) -> Option<Received> {
        let mut packet = self.waiting.take().or_else(|| self.nic.get_mut().poll_receive(context))?;
        if sequence::is_request(packet.bytes()) && !self.requests.admit(executor::round()) {
            self.waiting = Some(packet);
            context.waker().wake_by_ref();
            return None;
        }
        Some(packet)
    }
}

impl Driver for Interface {
    type RxToken<'a> = Arrival<'a>;
    type TxToken<'a> = Departure<'a>;

    fn receive(&mut self, context: &mut Context) -> Option<(Arrival<'_>, Departure<'_>)> {
        // A reply needs a buffer too: without one the packet waits in the ring.
        let outgoing = self.nic.get_mut().poll_outgoing(context)?;
        match self.next(context) {
            Some(packet) => Some((
                Arrival { nic: &self.nic, packet: Some(packet) },
                Departure { nic: &self.nic, packet: Some(outgoing) },
            )),
            None => {
                self.nic.get_mut().unused(outgoing);
                None
            }
        }
    }

    fn transmit(&mut self, context: &mut Context) -> Option<Departure<'_>> {
        let packet = self.nic.get_mut().poll_outgoing(context)?;
        Some(Departure { nic: &self.nic, packet: Some(packet) })
    }

    fn link_state(&mut self, context: &mut Context) -> LinkState {
        lines::register(lines::NIC, context.waker());
        LinkState::Up
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = FRAME_MAX;
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(vm::mac().0)
    }
}

/// A packet that has arrived.
struct Arrival<'a> {
    nic: &'a RefCell<Nic>,
    packet: Option<Received>,
}

impl RxToken for Arrival<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, work: F) -> R {
        match &mut self.packet {
            Some(packet) => {
                sequence::arrives(packet.bytes(), &random::key());
                work(packet.bytes())
            }
            None => work(&mut []),
        }
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        if let Some(packet) = self.packet.take() {
            self.nic.borrow_mut().release(packet);
        }
    }
}

/// A buffer for a packet to send.
struct Departure<'a> {
    nic: &'a RefCell<Nic>,
    packet: Option<Outgoing>,
}

impl TxToken for Departure<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, length: usize, work: F) -> R {
        let Some(mut packet) = self.packet.take() else { return work(&mut []) };
        let result = work(&mut packet.bytes()[..length]);
        sequence::leaves(&mut packet.bytes()[..length], &random::key());
        self.nic.borrow_mut().send(packet, length);
        result
    }
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        if let Some(packet) = self.packet.take() {
            self.nic.borrow_mut().unused(packet);
        }
    }
}
