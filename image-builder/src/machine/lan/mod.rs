//! A host on the VMs' own network, for tests that talk to many VMs at once.
//!
//! QEMU's user-mode network leads to a VM by a port of the host for each, which thousands of VMs are too many for. Here the machine's NIC is
//! a UNIX socket ([`wire`]), and behind it is one host, the gateway of the network, with a TCP/IP of its own (`smoltcp`): it connects to each
//! VM by the VM's address.

pub mod link;
pub mod page;
pub mod wire;

use std::collections::VecDeque;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use miette::{Result, miette};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as Time;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use crate::interrupt;
use crate::machine::qemu::Network;
use link::{Incoming, Link};
use wire::Wire;

/// Bytes of an IP packet.
const MTU: usize = 1500;
/// Bytes of a connection's buffers.
const RECEIVE: usize = 16 * 1024;
const SEND: usize = 4 * 1024;
/// Pause before a VM that refused a connection is asked again: its server may be busy closing the one before.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a closed connection is waited for.
const LINGER: Duration = Duration::from_secs(1);
/// Longest wait for a frame.
const NAP: Duration = Duration::from_millis(20);
/// Local ports are taken in turn from here on.
const FIRST_PORT: u16 = 20_000;

/// When an answer is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// At the end of a line.
    Line,
    /// When the VM closes the connection.
    Close,
    /// After so many bytes.
    Bytes(usize),
}

/// A question to a VM: a connection, what is sent, and when the answer is complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// The VM's address.
    pub address: Ipv4Addr,
    /// The VM's port.
    pub port: u16,
    /// What is sent.
    pub request: Vec<u8>,
    /// When the answer is complete.
    pub end: End,
}

impl Ask {
    /// A line, answered by a line.
    pub fn line(address: Ipv4Addr, port: u16, line: &str) -> Ask {
        Ask { address, port, request: format!("{line}\n").into_bytes(), end: End::Line }
    }

    /// A page by HTTP.
    pub fn page(address: Ipv4Addr, port: u16, path: &str) -> Ask {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        Ask { address, port, request: request.into_bytes(), end: End::Close }
    }
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// All that came.
    pub bytes: Vec<u8>,
    /// From the first packet to the last.
    pub time: Duration,
}

impl Answer {
    /// The answer as text, without the end of the line.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim_end().to_string()
    }
}

/// Why there was no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// No connection in time.
    NoConnection,
    /// The connection ended, or nothing more came in time, after so many bytes.
    Incomplete(usize),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NoConnection => f.write_str("no connection"),
            Failure::Incomplete(bytes) => write!(f, "the answer ended after {bytes} bytes"),
        }
    }
}

/// What became of a question.
pub type Outcome = std::result::Result<Answer, Failure>;

/// The host.
pub struct Lan {
    device: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    started: Instant,
    port: u16,
    closing: Vec<(SocketHandle, Instant)>,
    refused: u64,
}

impl fmt::Debug for Lan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lan").field("device", &self.device).finish_non_exhaustive()
    }
}

/// A question that is being asked.
struct Asking {
    index: usize,
    handle: SocketHandle,
    begun: Instant,
    deadline: Instant,
    sent: usize,
    received: Vec<u8>,
    /// When to connect again.
    again: Option<Instant>,
}

impl Lan {
    /// A host with this address in a network with this prefix length.
    pub fn open(own: Ipv4Addr, prefix: u8) -> Result<Lan> {
        Ok(Lan::on(Wire::open()?, own, prefix))
    }

    /// The same at the end of a cable that is there already.
    pub fn on(wire: Wire, own: Ipv4Addr, prefix: u8) -> Lan {
        let mut device = Cable { wire, link: Link::new(own), arrived: VecDeque::new() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from(std::process::id());
        let mut interface = Interface::new(config, &mut device, Time::from_millis(0));
        interface.update_ip_addrs(|addresses| {
            // There is room for one at least.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(own), prefix));
        });
        let sockets = SocketSet::new(Vec::new());
        Lan { device, interface, sockets, started: Instant::now(), port: FIRST_PORT, closing: Vec::new(), refused: 0 }
    }

    /// What the machine's NIC has to be connected to.
    pub fn network(&self) -> Network {
        self.device.wire.network()
    }

    /// Asks one VM.
    pub fn ask(&mut self, ask: Ask, limit: Duration) -> Result<Answer> {
        let (address, port) = (ask.address, ask.port);
        let answer = self.ask_all(&[ask], 1, limit)?.pop().unwrap_or(Err(Failure::NoConnection));
        answer.map_err(|failure| miette!("{address} port {port}: {failure}"))
    }

    /// Lets connections come to their end for so long.
    pub fn rest(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            interrupt::check()?;
            self.poll()?;
            self.sweep(Instant::now());
            self.wait(Some(end))?;
        }
        Ok(())
    }

    /// Connections that were refused so far, each of which was tried again.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Asks many VMs, `at_once` at a time, each for at most `limit`. What became of each, in the same order.
    pub fn ask_all(&mut self, asks: &[Ask], at_once: usize, limit: Duration) -> Result<Vec<Outcome>> {
        self.ask_at(asks, &[], at_once, limit)
    }

    /// The same, each not before its time from now; later if `at_once` others are being asked then, which counts as time that its answer took.
    pub fn ask_at(
        &mut self,
        asks: &[Ask],
        times: &[Duration],
        at_once: usize,
        limit: Duration,
    ) -> Result<Vec<Outcome>> {
        let started = Instant::now();
        let due = |index: usize| times.get(index).map(|time| started + *time);
        let mut outcomes = vec![Err(Failure::NoConnection); asks.len()];
        let mut next = 0;
        let mut asking: Vec<Asking> = Vec::new();
        while next < asks.len() || !asking.is_empty() {
            interrupt::check()?;
            let is_due = |index| due(index).is_none_or(|due| due <= Instant::now());
            while asking.len() < at_once.max(1) && next < asks.len() && is_due(next) {
                let begun = due(next).unwrap_or_else(Instant::now);
                let handle = self.connect(&asks[next])?;
                let deadline = begun + limit;
                let received = Vec::new();
                asking.push(Asking { index: next, handle, begun, deadline, sent: 0, received, again: None });
                next += 1;
            }
            self.poll()?;
            let now = Instant::now();
            let mut kept = Vec::with_capacity(asking.len());
            for mut one in asking {
                let ask = &asks[one.index];
                match self.look(&mut one, ask, now)? {
                    Some(outcome) => {
                        outcomes[one.index] = outcome;
                        self.close(one.handle, now);
                    }
                    None => kept.push(one),
                }
            }
            asking = kept;
            self.sweep(now);
            let has_room = asking.len() < at_once.max(1);
            self.wait(due(next).filter(|_| has_room))?;
        }
        Ok(outcomes)
    }

    /// A connection to where a question goes.
    fn connect(&mut self, ask: &Ask) -> Result<SocketHandle> {
        let mut socket = Socket::new(SocketBuffer::new(vec![0; RECEIVE]), SocketBuffer::new(vec![0; SEND]));
        socket.set_nagle_enabled(false);
        self.port = if self.port == u16::MAX { FIRST_PORT } else { self.port + 1 };
        let to = (IpAddress::Ipv4(ask.address), ask.port);
        socket
            .connect(self.interface.context(), to, self.port)
            .map_err(|error| miette!("no connection to {} port {}: {error}", ask.address, ask.port))?;
        Ok(self.sockets.add(socket))
    }

    /// Looks after one question; what became of it if it is done with.
    fn look(&mut self, one: &mut Asking, ask: &Ask, now: Instant) -> Result<Option<Outcome>> {
        if let Some(again) = one.again {
            if now >= again {
                self.sockets.remove(one.handle);
                one.handle = self.connect(ask)?;
                one.again = None;
            }
            return Ok((now >= one.deadline).then_some(Err(Failure::NoConnection)));
        }
        let socket = self.sockets.get_mut::<Socket<'_>>(one.handle);
        if socket.can_send() && one.sent < ask.request.len() {
            one.sent += socket.send_slice(&ask.request[one.sent..]).unwrap_or(0);
        }
        while socket.can_recv() {
            let room = &mut [0; RECEIVE];
            let count = socket.recv_slice(room).unwrap_or(0);
            one.received.extend(&room[..count]);
        }
        let ended = !socket.may_recv() && !matches!(socket.state(), State::SynSent | State::SynReceived);
        let complete = match ask.end {
            End::Line => one.received.ends_with(b"\n"),
            // A reset leaves the connection closed, a proper end leaves it waiting for ours.
            End::Close => socket.state() == State::CloseWait,
            End::Bytes(bytes) => one.received.len() >= bytes,
        };
        let failure = || match (one.sent, one.received.len()) {
            (0, 0) => Failure::NoConnection,
            (_, bytes) => Failure::Incomplete(bytes),
        };
        if complete {
            return Ok(Some(Ok(Answer { bytes: std::mem::take(&mut one.received), time: now - one.begun })));
        }
        if now >= one.deadline {
            return Ok(Some(Err(failure())));
        }
        if ended && one.sent == 0 {
            one.again = Some(now + PAUSE);
            self.refused += 1;
            return Ok(None);
        }
        Ok(ended.then(|| Err(failure())))
    }

    fn close(&mut self, handle: SocketHandle, now: Instant) {
        self.sockets.get_mut::<Socket<'_>>(handle).close();
        self.closing.push((handle, now + LINGER));
    }

    /// Forgets connections that are closed.
    fn sweep(&mut self, now: Instant) {
        let sockets = &mut self.sockets;
        self.closing.retain(|(handle, until)| {
            let state = sockets.get_mut::<Socket<'_>>(*handle).state();
            let over = matches!(state, State::Closed | State::TimeWait) || now >= *until;
            if over {
                sockets.remove(*handle);
            }
            !over
        });
    }

    fn time(&self) -> Time {
        Time::from_micros(i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Takes what has arrived and sends what is due.
    fn poll(&mut self) -> Result<()> {
        self.device.take(Instant::now())?;
        self.interface.poll(self.time(), &mut self.device, &mut self.sockets);
        Ok(())
    }

    /// Waits until something arrives or is due, the next question included, but not for long.
    fn wait(&mut self, next: Option<Instant>) -> Result<()> {
        let delay = self.interface.poll_delay(self.time(), &self.sockets);
        let nap = delay.map_or(NAP, |delay| Duration::from_micros(delay.total_micros()).min(NAP));
        let end = Instant::now() + nap;
        self.device.take(next.map_or(end, |next| end.min(next)))
    }
}

/// The cable as `smoltcp` wants it: IP packets.
#[derive(Debug)]
struct Cable {
    wire: Wire,
    link: Link,
    arrived: VecDeque<Vec<u8>>,
}

impl Cable {
    /// Takes the frames that are there, or the first that comes before the deadline.
    fn take(&mut self, mut deadline: Instant) -> Result<()> {
        if !self.arrived.is_empty() {
            deadline = Instant::now();
        }
        while let Some(frame) = self.wire.receive(deadline)? {
            match self.link.incoming(&frame) {
                Incoming::Packet(packet) => self.arrived.push_back(packet),
                Incoming::Frames(frames) => frames.iter().try_for_each(|frame| self.wire.send(frame))?,
                Incoming::Nothing => {}
            }
            deadline = Instant::now();
        }
        Ok(())
    }
}

impl Device for Cable {
    type RxToken<'a> = Arrival;
    type TxToken<'a> = Departure<'a>;

    fn receive(&mut self, _: Time) -> Option<(Arrival, Departure<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrival(packet), Departure { wire: &mut self.wire, link: &mut self.link }))
    }

    fn transmit(&mut self, _: Time) -> Option<Departure<'_>> {
        Some(Departure { wire: &mut self.wire, link: &mut self.link })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

/// A packet that has arrived.
struct Arrival(Vec<u8>);

impl RxToken for Arrival {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, work: F) -> R {
        work(&self.0)
    }
}

/// A packet to send.
struct Departure<'a> {
    wire: &'a mut Wire,
    link: &'a mut Link,
}

impl TxToken for Departure<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, work: F) -> R {
        let mut packet = vec![0; length];
        let result = work(&mut packet);
        for frame in self.link.outgoing(packet, Instant::now()) {
            // A frame that cannot be sent is a frame that is lost: TCP sends it again.
            let _ = self.wire.send(&frame);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_there_is_told_in_time() {
        let mut lan = Lan::open(Ipv4Addr::new(10, 0, 2, 2), 24).unwrap();
        let asks: Vec<_> = (15..20).map(|last| Ask::line(Ipv4Addr::new(10, 0, 2, last), 7, "who")).collect();
        let started = Instant::now();
        let outcomes = lan.ask_all(&asks, 2, Duration::from_millis(100)).unwrap();
        assert_eq!(outcomes, vec![Err(Failure::NoConnection); 5]);
        assert!(started.elapsed() >= Duration::from_millis(300));
    }
}
