//! The VMs' ports.
//!
//! The switch has nothing to learn: the loader says which addresses a VM has, the switch holds the VM to them, and
//! everything else is behind the uplink. So no table grows with what strangers send.

use crate::{
    header::{Address, Mac},
    queue::{Own, Window},
};
use alloc::vec::Vec;
use hashbrown::HashMap;
use protocol::service::{VmNumber, VmRef, place};

/// Place of a port in the table.
pub type PortId = u32;

/// A VM's port.
#[derive(Clone, Debug)]
pub struct Port {
    /// The VM.
    pub vm: VmNumber,
    /// Where it was when it was last heard of.
    pub at: VmRef,
    /// Its MAC address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub address: Address,
    /// Its NIC window; the queue page comes first.
    pub window: Window,
    /// The switch's indices in the queue page; `None` until the page was read once.
    pub own: Option<Own>,
    /// What it counted.
    pub counters: Counters,
}

/// Counters of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Packets from the VM.
    pub sent: u64,
    /// Packets to the VM.
    pub received: u64,
    /// Packets to the VM dropped.
    pub dropped: u64,
    /// Packets from the VM refused.
    pub refused: u64,
}

/// Why a port was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The MAC or IPv4 address has a port already, or is none that a VM may have.
    Clash,
    /// No room for another port.
    Full,
}

/// A place in the table. Whether it waits in a queue belongs to the place, not to the port: so a queue never holds a place
/// twice, even if the port is taken away and another takes its place meanwhile.
#[derive(Debug, Default)]
struct Place {
    port: Option<Port>,
    waits: bool,
}

/// The table.
#[derive(Debug)]
pub struct Ports {
    places: Vec<Place>,
    free: Vec<PortId>,
    by_place: HashMap<u32, PortId>,
    by_mac: HashMap<Mac, PortId>,
    by_address: HashMap<Address, PortId>,
    most: usize,
}

impl Ports {
    /// An empty table for `most` ports.
    pub fn new(most: usize) -> Ports {
        let most = most.min(PortId::MAX as usize);
        let (by_place, by_mac, by_address) = (HashMap::new(), HashMap::new(), HashMap::new());
        Ports { places: Vec::new(), free: Vec::new(), by_place, by_mac, by_address, most }
    }

    /// Adds a port, in place of the one that its VM, or an earlier VM in the same place, had.
    pub fn attach(&mut self, port: Port) -> Result<PortId, Refusal> {
        let old = self.by_place.get(&place(port.vm)).copied();
        let clashes = |found: Option<&PortId>| found.is_some_and(|id| Some(*id) != old);
        let multicast = port.mac[0] & 1 != 0;
        if multicast || clashes(self.by_mac.get(&port.mac)) || clashes(self.by_address.get(&port.address)) {
            return Err(Refusal::Clash);
        }
        if let Some(id) = old {
            self.remove(id);
        }
        let id = match self.free.pop() {
            Some(id) => id,
            None if self.places.len() < self.most => {
                self.places.push(Place::default());
                (self.places.len() - 1) as PortId
            }
            None => return Err(Refusal::Full),
        };
        self.by_place.insert(place(port.vm), id);
        self.by_mac.insert(port.mac, id);
        self.by_address.insert(port.address, id);
        self.places[id as usize].port = Some(port);
        Ok(id)
    }

    /// Takes a VM's port away. `false` if it has none.
    pub fn detach(&mut self, vm: VmNumber) -> bool {
        self.by_vm(vm).is_some_and(|id| {
            self.remove(id);
            true
        })
    }

    fn remove(&mut self, id: PortId) {
        if let Some(port) = self.places.get_mut(id as usize).and_then(|place| place.port.take()) {
            self.by_place.remove(&place(port.vm));
            self.by_mac.remove(&port.mac);
            self.by_address.remove(&port.address);
            self.free.push(id);
        }
    }

    /// The port at a place.
    pub fn get(&self, id: PortId) -> Option<&Port> {
        self.places.get(id as usize)?.port.as_ref()
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, id: PortId) -> Option<&mut Port> {
        self.places.get_mut(id as usize)?.port.as_mut()
    }

    /// The port of a VM.
    pub fn by_vm(&self, vm: VmNumber) -> Option<PortId> {
        let id = *self.by_place.get(&place(vm))?;
        self.get(id).is_some_and(|port| port.vm == vm).then_some(id)
    }

    /// The port with a MAC address.
    pub fn by_mac(&self, mac: Mac) -> Option<PortId> {
        self.by_mac.get(&mac).copied()
    }

    /// The port with an IPv4 address.
    pub fn by_address(&self, address: Address) -> Option<PortId> {
        self.by_address.get(&address).copied()
    }

    /// Marks a place as waiting in a queue. `false` if it does already.
    pub fn begin_wait(&mut self, id: PortId) -> bool {
        self.places.get_mut(id as usize).is_some_and(|place| !core::mem::replace(&mut place.waits, true))
    }

    /// Marks it as taken out.
    pub fn end_wait(&mut self, id: PortId) {
        if let Some(place) = self.places.get_mut(id as usize) {
            place.waits = false;
        }
    }

    /// Ports.
    pub fn len(&self) -> usize {
        self.by_place.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_place.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vm(place: u32, start: u64) -> VmNumber {
        start << 24 | u64::from(place)
    }

    fn port(place: u32, start: u64, last: u8) -> Port {
        Port {
            vm: vm(place, start),
            at: VmRef { frame: 7, generation: 1 },
            mac: [2, 0, 10, 0, 2, last],
            address: [10, 0, 2, last],
            window: Window { address: 0, length: 0 },
            own: None,
            counters: Counters::default(),
        }
    }

    #[test]
    fn addresses_have_one_owner() {
        let mut ports = Ports::new(3);
        let first = ports.attach(port(1, 1, 15)).unwrap();
        assert_eq!(ports.attach(port(2, 1, 15)), Err(Refusal::Clash));
        let mut half = port(2, 1, 16);
        half.address = [10, 0, 2, 15];
        assert_eq!(ports.attach(half), Err(Refusal::Clash));
        let mut multicast = port(2, 1, 17);
        multicast.mac[0] = 3;
        assert_eq!(ports.attach(multicast), Err(Refusal::Clash));
        assert_eq!(ports.by_mac([2, 0, 10, 0, 2, 15]), Some(first));
        assert_eq!(ports.by_address([10, 0, 2, 15]), Some(first));
        assert_eq!(ports.by_address([10, 0, 2, 16]), None);
    }

    #[test]
    fn a_new_vm_in_the_place_replaces_the_old_one() {
        let mut ports = Ports::new(1);
        ports.attach(port(1, 1, 15)).unwrap();
        assert_eq!(ports.attach(port(2, 1, 16)), Err(Refusal::Full));
        ports.attach(port(1, 2, 16)).unwrap();
        assert_eq!((ports.len(), ports.by_vm(vm(1, 1))), (1, None));
        assert_eq!(ports.by_mac([2, 0, 10, 0, 2, 15]), None);
        assert!(!ports.detach(vm(1, 1)));
        assert!(ports.detach(vm(1, 2)) && ports.is_empty());
    }

    proptest! {
        #[test]
        fn the_indices_agree(steps in prop::collection::vec((0u32..6, 0u64..3, 0u8..6, any::<bool>()), 1..200)) {
            let mut ports = Ports::new(4);
            for (place, start, last, add) in steps {
                let vm = vm(place, start);
                if add {
                    let known = ports.len();
                    match ports.attach(port(place, start, last)) {
                        Ok(id) => prop_assert_eq!(ports.by_vm(vm), Some(id)),
                        Err(_) => prop_assert_eq!(ports.len(), known),
                    }
                } else {
                    ports.detach(vm);
                    prop_assert_eq!(ports.by_vm(vm), None);
                }
                prop_assert!(ports.len() <= 4);
                prop_assert_eq!((ports.by_mac.len(), ports.by_address.len()), (ports.len(), ports.len()));
                for (mac, id) in &ports.by_mac {
                    let port = ports.get(*id).unwrap();
                    prop_assert_eq!((&port.mac, ports.by_address(port.address)), (mac, Some(*id)));
                    prop_assert_eq!(ports.by_vm(port.vm), Some(*id));
                }
            }
        }
    }
}
