//! The cable of the machine's NIC: a UNIX socket that carries Ethernet frames, each behind its length (QEMU's netdev `stream`).
//!
//! Nothing is lost on it: QEMU takes no packet from the machine that it has no room for. What the machine does not take in time is lost, as at any port of
//! a switch whose queue is full.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use crate::machine::qemu::Network;

/// Longest frame that is believed.
const FRAME_MAX: usize = 1 << 16;
/// Bytes that wait for the machine; more are lost.
const WAITING_MAX: usize = 1 << 20;
/// Bytes taken from the socket at a time.
const READ: usize = 1 << 16;

/// The outer end of the cable.
#[derive(Debug)]
pub struct Wire {
    /// Where the socket lies.
    folder: TempDir,
    listener: UnixListener,
    /// The machine, once it has come.
    stream: Option<UnixStream>,
    /// What has come and was not taken: frames from `taken` on.
    arrived: Vec<u8>,
    taken: usize,
    /// What the machine is to get.
    leaving: Vec<u8>,
}

impl Wire {
    /// A cable, to be plugged into a machine.
    pub fn open() -> Result<Wire> {
        let folder = TempDir::with_prefix("denali-").into_diagnostic()?;
        let listener = UnixListener::bind(folder.path().join("wire")).into_diagnostic()?;
        listener.set_nonblocking(true).into_diagnostic()?;
        Ok(Wire { folder, listener, stream: None, arrived: Vec::new(), taken: 0, leaving: Vec::new() })
    }

    /// What the machine's NIC has to be connected to.
    pub fn network(&self) -> Network {
        Network::Frames { socket: self.folder.path().join("wire") }
    }

    /// Sends a frame. Without a machine it is lost, as on a cable that is not plugged in.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.accept()?;
        if self.stream.is_some() && self.leaving.len() + frame.len() < WAITING_MAX {
            self.leaving.extend((frame.len() as u32).to_be_bytes());
            self.leaving.extend(frame);
        }
        self.flush();
        Ok(())
    }

    /// The next frame that comes before the deadline; one that is there already in any case.
    pub fn receive(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(frame) = self.next() {
                return Ok(Some(frame));
            }
            self.accept()?;
            self.flush();
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.wait(left)? && left.is_zero() {
                return Ok(None);
            }
            self.read();
        }
    }

    /// The next frame of those that have come.
    fn next(&mut self) -> Option<Vec<u8>> {
        let rest = &self.arrived[self.taken..];
        let (length, rest) = rest.split_first_chunk()?;
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_MAX {
            // Whatever that is, it is not QEMU.
            self.unplug();
            return None;
        }
        let frame = rest.get(..length)?.to_vec();
        self.taken += 4 + length;
        Some(frame)
    }

    /// Takes in a machine that has come; a new one after a reboot.
    fn accept(&mut self) -> Result<()> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true).into_diagnostic()?;
                self.unplug();
                self.stream = Some(stream);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).into_diagnostic(),
        }
    }

    fn unplug(&mut self) {
        (self.stream, self.taken) = (None, 0);
        self.arrived.clear();
        self.leaving.clear();
    }

    /// Gives the machine what it takes.
    fn flush(&mut self) {
        while let Some(stream) = self.stream.as_mut().filter(|_| !self.leaving.is_empty()) {
            match stream.write(&self.leaving) {
                Ok(count) => drop(self.leaving.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.unplug(),
            }
        }
    }

    /// Takes what is there.
    fn read(&mut self) {
        self.arrived.drain(..std::mem::take(&mut self.taken));
        let Some(stream) = &mut self.stream else { return };
        let before = self.arrived.len();
        self.arrived.resize(before + READ, 0);
        let read = stream.read(&mut self.arrived[before..]);
        self.arrived.truncate(before + read.as_ref().map_or(0, |count| *count));
        match read {
            Ok(0) => self.unplug(),
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => self.unplug(),
            _ => {}
        }
    }

    /// Waits until there is something to do. Returns whether there is.
    fn wait(&self, time: Duration) -> Result<bool> {
        let flags = if self.leaving.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
        let machine = match &self.stream {
            Some(stream) => PollFd::new(stream.as_fd(), flags),
            None => PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        };
        // Whole milliseconds are all that `poll` knows; what is shorter is waited for once.
        let time = PollTimeout::try_from(time.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [machine], time) {
            Ok(count) => Ok(count > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error).into_diagnostic(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        Instant::now()
    }

    fn plug(wire: &Wire) -> UnixStream {
        let Network::Frames { socket } = wire.network() else { panic!("a wire is no other network") };
        UnixStream::connect(socket).expect("somebody listens")
    }

    #[test]
    fn frames_go_both_ways_whole() {
        let mut wire = Wire::open().unwrap();
        wire.send(b"nobody is there").unwrap();
        let mut machine = plug(&wire);
        wire.send(b"hello").unwrap();
        let mut got = [0; 9];
        machine.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"\0\0\0\x05hello");
        assert_eq!(wire.receive(now()).unwrap(), None);
        // In pieces that end anywhere.
        for piece in [&b"\0\0"[..], b"\0\x03ab", b"c\0\0\0\0\0\0\0\x01d\0"] {
            machine.write_all(piece).unwrap();
        }
        let frames: Vec<_> = (0..3).map(|_| wire.receive(now() + Duration::from_secs(5)).unwrap().unwrap()).collect();
        assert_eq!(frames, [b"abc".to_vec(), Vec::new(), b"d".to_vec()]);
        assert_eq!(wire.receive(now() + Duration::from_millis(3)).unwrap(), None);
    }

    #[test]
    fn a_machine_that_goes_makes_room_for_the_next() {
        let mut wire = Wire::open().unwrap();
        let mut machine = plug(&wire);
        machine.write_all(b"\0\0\0\x01x\0\0\0\x09half").unwrap();
        assert_eq!(wire.receive(now() + Duration::from_secs(5)).unwrap(), Some(b"x".to_vec()));
        drop(machine);
        let mut machine = plug(&wire);
        machine.write_all(b"\0\0\0\x01y").unwrap();
        assert_eq!(wire.receive(now() + Duration::from_secs(5)).unwrap(), Some(b"y".to_vec()));
        // Nonsense costs the connection, and nothing else.
        machine.write_all(&[0xff; 8]).unwrap();
        assert_eq!(wire.receive(now() + Duration::from_millis(20)).unwrap(), None);
        let _next = plug(&wire);
        assert_eq!(wire.receive(now()).unwrap(), None);
    }

    #[test]
    fn a_machine_that_takes_nothing_costs_no_memory() {
        let mut wire = Wire::open().unwrap();
        let _machine = plug(&wire);
        for _ in 0..4000 {
            wire.send(&[7; 1500]).unwrap();
        }
        assert!(wire.leaving.len() <= WAITING_MAX);
    }
}
