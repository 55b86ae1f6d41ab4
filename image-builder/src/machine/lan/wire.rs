//! The cable of the machine's NIC: each UDP datagram is one Ethernet frame.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result};

use crate::machine::qemu::Network;

/// The outer end of the cable.
#[derive(Debug)]
pub struct Wire {
    socket: UdpSocket,
    own: u16,
    machine: u16,
    buffer: Box<[u8; 65536]>,
}

impl Wire {
    /// Both ends at free ports of this host.
    pub fn open() -> Result<Wire> {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).into_diagnostic();
        let socket = bind()?;
        let own = socket.local_addr().into_diagnostic()?.port();
        // QEMU binds this one itself; nobody else takes it in the moment between.
        let machine = bind()?.local_addr().into_diagnostic()?.port();
        Ok(Wire { socket, own, machine, buffer: Box::new([0; 65536]) })
    }

    /// What the machine's NIC has to be connected to.
    pub fn network(&self) -> Network {
        Network::Frames { local: self.machine, remote: self.own }
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        match self.socket.send_to(frame, (Ipv4Addr::LOCALHOST, self.machine)) {
            // Refused: QEMU has not opened its socket yet; like a cable that is not plugged in.
            Err(error) if error.kind() != ErrorKind::ConnectionRefused => Err(error).into_diagnostic(),
            _ => Ok(()),
        }
    }

    /// The next frame that comes before the deadline; one that is there already in any case.
    pub fn receive(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // No time at all would mean for ever.
            if left.is_zero() {
                self.socket.set_nonblocking(true).into_diagnostic()?;
            } else {
                self.socket.set_nonblocking(false).into_diagnostic()?;
                self.socket.set_read_timeout(Some(left.max(Duration::from_micros(100)))).into_diagnostic()?;
            }
            match self.socket.recv_from(&mut self.buffer[..]) {
                Ok((length, _)) => return Ok(Some(self.buffer[..length].to_vec())),
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::Interrupted) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) => return Err(error).into_diagnostic(),
            }
        }
    }
}
