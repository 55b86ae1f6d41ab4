//! Requests of VMs that are under way.

use crate::{machine::Slot, queue::Checked, store::Disk, vms::Session};
use alloc::{rc::Rc, vec::Vec};
use protocol::disk::BLOCK;

/// Place of a flight in the table.
pub type FlightId = u32;

/// A request under way. One that crosses from one extent of its disk to another is carried out piece by piece.
#[derive(Clone, Debug)]
pub struct Flight {
    /// Whose it is.
    pub session: Session,
    /// Its index in the VM's queue.
    pub index: u32,
    /// What to do.
    pub request: Checked,
    /// The disk.
    pub disk: Rc<Disk>,
    /// Blocks done.
    pub done: u32,
    /// Blocks of the piece at work.
    pub piece: u32,
    /// Its slot, while it has one.
    pub slot: Option<Slot>,
}

impl Flight {
    /// The next piece: first block on the partition and blocks.
    pub fn next_piece(&self) -> Option<(u64, u32)> {
        let left = self.request.count.saturating_sub(self.done);
        let place = self.disk.place(self.request.block + u64::from(self.done), u64::from(left))?;
        (place.count > 0).then_some((place.first, place.count as u32))
    }

    /// Where the piece at work lies in the VM's memory, and its bytes.
    pub fn memory(&self) -> (u64, usize) {
        (self.request.address + u64::from(self.done) * BLOCK as u64, self.piece as usize * BLOCK)
    }
}

/// The flights.
#[derive(Debug, Default)]
pub struct Flights {
    flights: Vec<Option<Flight>>,
    free: Vec<FlightId>,
}

impl Flights {
    /// Adds one.
    pub fn add(&mut self, flight: Flight) -> FlightId {
        match self.free.pop() {
            Some(id) => {
                self.flights[id as usize] = Some(flight);
                id
            }
            None => {
                self.flights.push(Some(flight));
                (self.flights.len() - 1) as FlightId
            }
        }
    }

    /// A flight.
    pub fn get(&self, id: FlightId) -> Option<&Flight> {
        self.flights.get(id as usize)?.as_ref()
    }

    /// A flight.
    pub fn get_mut(&mut self, id: FlightId) -> Option<&mut Flight> {
        self.flights.get_mut(id as usize)?.as_mut()
    }

    /// Takes one out.
    pub fn remove(&mut self, id: FlightId) -> Option<Flight> {
        let flight = self.flights.get_mut(id as usize)?.take()?;
        self.free.push(id);
        Some(flight)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
