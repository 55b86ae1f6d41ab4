//! Interrupt lines that several devices share.
//!
//! A driver that has a line to itself gets its interrupts from the kernel. Where the wiring puts the devices of several on one line, this
//! server takes the interrupts: it looks which devices ask for attention, raises
//! [`SHARED_INTERRUPT`](protocol::domain::line::SHARED_INTERRUPT) of their drivers, and lets the line go on when all of them have
//! acknowledged, by raising their line here. Nobody calls anybody, so nobody waits for a driver: one that does not acknowledge loses its
//! place on the line, and a line that nobody's device explains is left masked.

use crate::{
    config::{COMMAND, command},
    platform::{Machine, Platform},
};
use alloc::{collections::BTreeSet, vec::Vec};
use pci_types::CommandRegister;
use protocol::{
    abi::NEVER,
    domain::{InterruptSource, line},
};

/// Lines that this server can share out: one virtual line for each but the last, on which the IOMMU reports.
const LINES_MAX: usize = (FAULTS - line::HARDWARE_FIRST) as usize;
/// The own line on which the IOMMU reports.
const FAULTS: u8 = line::COUNT - 1;
/// In the status register, the upper half of the word at [`COMMAND`]: the device asks for attention on its pin.
const INTERRUPT_STATUS: u32 = 1 << (16 + 3);
/// Nanoseconds that a driver may take to acknowledge.
const PATIENCE: u64 = 3_000_000_000;
/// Interrupts that no device explains, within so many nanoseconds, after which a line is left masked. A device made before PCI 2.3 explains
/// none, but does not interrupt that often.
const UNEXPLAINED_MAX: u32 = 5_000;
const WINDOW: u64 = 1_000_000_000;

/// A device on a line.
#[derive(Debug)]
struct Member {
    /// The function's place.
    place: usize,
    /// Whether its driver has still to acknowledge.
    waiting: bool,
}

/// A line.
#[derive(Debug)]
pub(crate) struct Shared {
    number: u32,
    /// Slot of the interrupt, and the own line it is bound to.
    slot: u8,
    line: u8,
    /// Whose drivers have asked for the interrupt.
    members: Vec<Member>,
    /// When those that wait have to have acknowledged.
    deadline: u64,
    /// Interrupts that no device explains since `window` began.
    unexplained: u32,
    window: u64,
    /// Whether it is left masked.
    off: bool,
}

impl<M: Machine> Platform<M> {
    /// Drivers of the system file with devices whose pins are on a line, and that have no messages.
    pub(crate) fn sharers(&self, number: u32) -> usize {
        let on_line = |place: &usize| {
            let device = &self.functions[*place].device;
            let there =
                matches!(self.pin_source(device), Some(InterruptSource::Line { number: other, .. }) if other == number);
            there && !device.has_messages()
        };
        let drivers = (0..self.functions.len()).filter(on_line).filter_map(|place| self.owner(place));
        drivers.collect::<BTreeSet<_>>().len()
    }

    /// Puts a function on a shared line. `false` if the line cannot be had.
    pub(crate) fn share(&mut self, source: InterruptSource, place: usize) -> bool {
        let InterruptSource::Line { number, .. } = source else { return false };
        let index = match self.shared.iter().position(|shared| shared.number == number) {
            Some(index) => index,
            None => {
                if self.shared.len() >= LINES_MAX {
                    return false;
                }
                let Some((slot, _)) = self.machine.interrupt(source) else { return false };
                let line = line::HARDWARE_FIRST + self.shared.len() as u8;
                if !self.machine.bind(slot, line) {
                    return false;
                }
                let members = Vec::new();
                self.shared.push(Shared {
                    number,
                    slot,
                    line,
                    members,
                    deadline: NEVER,
                    unexplained: 0,
                    window: 0,
                    off: false,
                });
                self.shared.len() - 1
            }
        };
        let shared = &mut self.shared[index];
        if !shared.members.iter().any(|member| member.place == place) {
            shared.members.push(Member { place, waiting: false });
        }
        // It may be masked because it came while nobody was there, or because of what this device did before.
        (shared.off, shared.unexplained) = (false, 0);
        self.settle(index);
        true
    }

    /// The functions on shared lines.
    pub(crate) fn members(&self) -> impl Iterator<Item = usize> {
        self.shared.iter().flat_map(|shared| shared.members.iter().map(|member| member.place))
    }

    /// Puts the functions on shared lines again that were there when this server died: they master the bus and may interrupt.
    pub(crate) fn recover_sharing(&mut self) {
        for place in 0..self.functions.len() {
            let device = &self.functions[place].device;
            let state = command(&self.machine, device.address);
            let active = state.contains(CommandRegister::BUS_MASTER_ENABLE)
                && !state.contains(CommandRegister::INTERRUPT_DISABLE);
            let source = self.pin_source(device).filter(|_| active && !device.has_messages());
            if let Some(source @ InterruptSource::Line { number, .. }) = source
                && self.owner(place).is_some()
                && self.sharers(number) > 1
                && !self.share(source, place)
            {
                self.machine.log(format_args!("interrupt {number} cannot be shared any more"));
            }
        }
    }

    /// Takes a function off its line: its driver is gone, or does not acknowledge.
    pub(crate) fn unshare(&mut self, place: usize) {
        for index in 0..self.shared.len() {
            let members = &mut self.shared[index].members;
            let before = members.len();
            members.retain(|member| member.place != place);
            if members.len() != before {
                self.settle(index);
            }
        }
    }

    /// Virtual interrupts came, a bit for each line: clients that acknowledge, then shared lines.
    pub fn interrupts(&mut self, lines: u64) {
        for client in 0..self.clients.len() {
            if lines & bit(self.clients[client].startup.line) != 0 {
                self.acknowledged(client);
            }
        }
        for index in 0..self.shared.len() {
            if lines & bit(self.shared[index].line) != 0 {
                self.shared_interrupt(index);
            }
        }
        if lines & bit(FAULTS) != 0 {
            self.faults();
        }
    }

    /// Has the IOMMU report on the own line.
    pub(crate) fn report_faults(&mut self) {
        let Some(iommu) = &self.iommu else { return };
        match self.machine.interrupt(InterruptSource::Message) {
            Some((slot, message)) if self.machine.bind(slot, FAULTS) => iommu.report(message),
            _ => self.machine.log(format_args!("IOMMU: no interrupt: what it stops is not told")),
        }
    }

    fn acknowledged(&mut self, client: usize) {
        for index in 0..self.shared.len() {
            let mut changed = false;
            for at in 0..self.shared[index].members.len() {
                if self.driver(self.shared[index].members[at].place) == Some(client) {
                    changed |= core::mem::replace(&mut self.shared[index].members[at].waiting, false);
                }
            }
            if changed {
                self.settle(index);
            }
        }
    }

    /// Lets a line go on if nobody has to acknowledge any more.
    fn settle(&mut self, index: usize) {
        let shared = &mut self.shared[index];
        if shared.members.iter().any(|member| member.waiting) {
            return;
        }
        shared.deadline = NEVER;
        // Without a member it stays masked until there is one.
        if !shared.off && !shared.members.is_empty() {
            self.machine.acknowledge(shared.slot);
        }
    }

    fn shared_interrupt(&mut self, index: usize) {
        let now = self.machine.now();
        let shared = &mut self.shared[index];
        if shared.members.is_empty() {
            // It came while the last driver on the line left. Nobody is to be waited for: it stays masked until there is one.
            return;
        }
        // Each device is looked at once: a driver on another processor may serve its device meanwhile.
        let asks = |member: &Member| {
            let address = self.functions[member.place].device.address;
            self.machine.read(address, COMMAND) & INTERRUPT_STATUS != 0
        };
        let asking: Vec<bool> = shared.members.iter().map(asks).collect();
        let explained = asking.contains(&true);
        if !explained {
            if now.saturating_sub(shared.window) > WINDOW {
                (shared.window, shared.unexplained) = (now, 0);
            }
            shared.unexplained += 1;
            if shared.unexplained > UNEXPLAINED_MAX {
                shared.off = true;
                let number = shared.number;
                self.machine.log(format_args!("interrupt {number} comes all the time and is no driver's: left masked"));
                return;
            }
        }
        let mut waiting = Vec::new();
        for (member, asks) in shared.members.iter_mut().zip(asking) {
            // If no device says that it was its, it may be any of them.
            if !explained || asks {
                member.waiting = true;
                waiting.push(member.place);
            }
        }
        shared.deadline = now.saturating_add(PATIENCE);
        for place in waiting {
            if let Some(client) = self.driver(place) {
                self.machine.raise(self.clients[client].startup.slot);
            }
        }
    }

    /// When [`Platform::deadline`] has to be called.
    pub fn next_deadline(&self) -> u64 {
        self.shared.iter().map(|shared| shared.deadline).min().unwrap_or(NEVER)
    }

    /// Takes those off their lines who have not acknowledged in time.
    pub fn deadline(&mut self) {
        let now = self.machine.now();
        let late = self.shared.iter().filter(|shared| shared.deadline <= now);
        let late = late.flat_map(|shared| shared.members.iter().map(|member| (shared.number, member)));
        let late: Vec<_> =
            late.filter(|(_, member)| member.waiting).map(|(number, member)| (number, member.place)).collect();
        for (number, place) in late {
            let device = &self.functions[place].device;
            device.change_command(&self.machine, CommandRegister::INTERRUPT_DISABLE, CommandRegister::empty());
            let driver = self.driver(place).map(|client| &self.clients[client]);
            let name = driver.map_or("?", |client| client.startup.name.as_str());
            let address = device.address;
            self.machine.log(format_args!(
                "{name} does not acknowledge interrupt {number}: PCI {address} is taken off the line"
            ));
            self.unshare(place);
        }
    }
}

fn bit(line: u8) -> u64 {
    1u64.checked_shl(u32::from(line)).unwrap_or(0)
}
