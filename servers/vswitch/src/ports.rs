//! The VMs' ports.
//!
//! The switch has nothing to learn: the loader says which addresses a VM has, the switch holds the VM to them, and
//! everything else is behind the uplink. So no table grows with what strangers send.
//!
//! A port is what a VM costs in the switch when it has left memory, so it is small: 64 bytes at the VM's place, and its place again in a
//! hash table by IPv4 address. A MAC address that is made from the IPv4 address needs no table of its own.

use crate::{
    header::{Address, Mac},
    queue::{Own, Window},
};
use core::hash::{BuildHasher, Hash};
use hashbrown::{DefaultHashBuilder, HashTable};
use protocol::service::{PLACE_BITS, VmNumber, VmRef, place};
use server_runtime::places::Places;

/// A port is named by the place of its VM.
pub type PortId = u32;

/// Whether there is a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// There is none.
    #[default]
    Vacant,
    /// There is one, whose queue page was not read yet.
    New,
    /// There is one, and the switch knows its own indices.
    Known,
}

/// A VM's port.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Where the VM was when it was last heard of.
    pub at: VmRef,
    /// The VM's number without its place.
    start: u32,
    /// Its MAC address.
    pub mac: Mac,
    state: State,
    /// Whether it waits in a queue. That belongs to the place, not to the VM: so a queue never holds a place twice, even if the
    /// port is taken away and another takes its place meanwhile.
    queued: bool,
    /// Its IPv4 address.
    pub address: Address,
    /// Its NIC window; the queue page comes first.
    pub window: Window,
    own: Own,
    /// What it counted.
    pub counters: Counters,
}

const _: () = assert!(size_of::<Port>() == 64);

impl Port {
    const VACANT: Port = Port {
        at: VmRef::NOWHERE,
        start: 0,
        mac: [0; 6],
        state: State::Vacant,
        queued: false,
        address: [0; 4],
        window: Window::NONE,
        own: Own { taken: 0, arrived: 0, dropped: 0, refused: 0 },
        counters: Counters { sent: 0, received: 0, dropped: 0, refused: 0 },
    };

    /// The switch's indices in the queue page; `None` until the page was read once.
    pub fn own(&self) -> Option<Own> {
        (self.state == State::Known).then_some(self.own)
    }

    /// The same, to change them.
    pub fn own_mut(&mut self) -> Option<&mut Own> {
        (self.state == State::Known).then_some(&mut self.own)
    }

    /// Goes on at the indices that are in the queue page, if it does not know its own; its own from then on.
    pub fn know(&mut self, page: Own) -> &mut Own {
        if self.state == State::New {
            (self.own, self.state) = (page, State::Known);
        }
        &mut self.own
    }

    /// A packet for it is lost.
    pub fn drop_one(&mut self) {
        self.counters.dropped = self.counters.dropped.wrapping_add(1);
        if let Some(own) = self.own_mut() {
            own.dropped = own.dropped.wrapping_add(1);
        }
    }
}

impl Default for Port {
    fn default() -> Port {
        Port::VACANT
    }
}

/// Counters of a port. They wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Packets from the VM.
    pub sent: u32,
    /// Packets to the VM.
    pub received: u32,
    /// Packets to the VM dropped.
    pub dropped: u32,
    /// Packets from the VM refused.
    pub refused: u32,
}

/// Why a port was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The MAC or IPv4 address has a port already, or is none that a VM may have.
    Clash,
    /// No room for another port.
    Full,
}

/// The table.
#[derive(Debug)]
pub struct Ports {
    ports: Places<Port>,
    by_address: HashTable<PortId>,
    /// Those whose MAC address is not made from their IPv4 address.
    by_mac: HashTable<PortId>,
    hasher: DefaultHashBuilder,
    count: usize,
}

/// Bytes of a port in all tables. The hash table has, at its fullest and at its emptiest, 7 and 3.5 of 8 places in use; while it grows
/// the old one is there too.
pub const PORT_COST: usize = Places::<Port>::COST + (size_of::<PortId>() + 1) * 16 / 7;

/// The MAC address of a VM that was given none: locally administered, `02:00` and its IPv4 address.
const fn made_from(address: Address) -> Mac {
    let [a, b, c, d] = address;
    [2, 0, a, b, c, d]
}

impl Ports {
    /// An empty table for VMs at places below `most`.
    pub fn new(most: usize) -> Ports {
        let (by_address, by_mac) = (HashTable::new(), HashTable::new());
        Ports { ports: Places::new(most), by_address, by_mac, hasher: DefaultHashBuilder::default(), count: 0 }
    }

    /// Adds a port, in place of the one that its VM, or an earlier VM at the same place, had.
    pub fn attach(
        &mut self,
        vm: VmNumber,
        at: VmRef,
        (mac, address): (Mac, Address),
        window: Window,
    ) -> Result<PortId, Refusal> {
        let (id, start) = (place(vm), u32::try_from(vm >> PLACE_BITS).map_err(|_| Refusal::Full)?);
        let clashes = |found: Option<PortId>| found.is_some_and(|other| other != id);
        let multicast = mac[0] & 1 != 0;
        if multicast || clashes(self.by_mac(mac)) || clashes(self.by_address(address)) {
            return Err(Refusal::Clash);
        }
        self.remove(id);
        let port = self.ports.make(id).ok_or(Refusal::Full)?;
        let queued = port.queued;
        *port = Port { at, start, mac, state: State::New, queued, address, window, ..Port::VACANT };
        insert(&mut self.by_address, &self.ports, &self.hasher, id, |port| port.address);
        if mac != made_from(address) {
            insert(&mut self.by_mac, &self.ports, &self.hasher, id, |port| port.mac);
        }
        self.count += 1;
        Ok(id)
    }

    /// Takes a VM's port away. `None` if it has none.
    pub fn detach(&mut self, vm: VmNumber) -> Option<PortId> {
        let id = self.by_vm(vm)?;
        self.remove(id);
        Some(id)
    }

    fn remove(&mut self, id: PortId) {
        let Some(Port { mac, address, .. }) = self.get(id).copied() else { return };
        for (table, hash) in
            [(&mut self.by_address, self.hasher.hash_one(address)), (&mut self.by_mac, self.hasher.hash_one(mac))]
        {
            if let Ok(entry) = table.find_entry(hash, |other| *other == id) {
                entry.remove();
            }
        }
        if let Some(port) = self.ports.get_mut(id) {
            *port = Port { queued: port.queued, ..Port::VACANT };
            self.count -= 1;
        }
    }

    /// The port at a place.
    pub fn get(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id).filter(|port| port.state != State::Vacant)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, id: PortId) -> Option<&mut Port> {
        self.ports.get_mut(id).filter(|port| port.state != State::Vacant)
    }

    /// The VM of a port.
    pub fn vm(&self, id: PortId) -> Option<VmNumber> {
        Some(u64::from(self.get(id)?.start) << PLACE_BITS | u64::from(id))
    }

    /// The port of a VM.
    pub fn by_vm(&self, vm: VmNumber) -> Option<PortId> {
        let id = place(vm);
        (self.vm(id) == Some(vm)).then_some(id)
    }

    /// The port with a MAC address.
    pub fn by_mac(&self, mac: Mac) -> Option<PortId> {
        if let [2, 0, a, b, c, d] = mac
            && let Some(id) = self.by_address([a, b, c, d])
            && self.get(id).is_some_and(|port| port.mac == mac)
        {
            return Some(id);
        }
        self.find(&self.by_mac, mac, |port| port.mac)
    }

    /// The port with an IPv4 address.
    pub fn by_address(&self, address: Address) -> Option<PortId> {
        self.find(&self.by_address, address, |port| port.address)
    }

    fn find<K: Hash + Eq>(&self, table: &HashTable<PortId>, key: K, of: impl Fn(&Port) -> K) -> Option<PortId> {
        let hash = self.hasher.hash_one(&key);
        table.find(hash, |id| self.get(*id).is_some_and(|port| of(port) == key)).copied()
    }

    /// Marks a place as waiting in a queue. `false` if it does already.
    pub fn begin_wait(&mut self, id: PortId) -> bool {
        self.ports.get_mut(id).is_some_and(|port| !core::mem::replace(&mut port.queued, true))
    }

    /// Marks it as taken out.
    pub fn end_wait(&mut self, id: PortId) {
        if let Some(port) = self.ports.get_mut(id) {
            port.queued = false;
        }
    }

    /// Ports.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Adds a place to a hash table.
fn insert<K: Hash>(
    table: &mut HashTable<PortId>,
    ports: &Places<Port>,
    hasher: &DefaultHashBuilder,
    id: PortId,
    of: impl Fn(&Port) -> K,
) {
    let hash = |id: &PortId| ports.get(*id).map_or(0, |port| hasher.hash_one(of(port)));
    table.insert_unique(hash(&id), id, hash);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const AT: VmRef = VmRef { frame: 7, generation: 1 };

    fn vm(place: u32, start: u64) -> VmNumber {
        start << PLACE_BITS | u64::from(place)
    }

    fn attach(ports: &mut Ports, vm: VmNumber, mac: Mac, address: Address) -> Result<PortId, Refusal> {
        ports.attach(vm, AT, (mac, address), Window::new(0x20_1000, 0x1000).unwrap())
    }

    fn attach_simply(ports: &mut Ports, vm: VmNumber, last: u8) -> Result<PortId, Refusal> {
        attach(ports, vm, [2, 0, 10, 0, 2, last], [10, 0, 2, last])
    }

    #[test]
    fn a_port_is_small() {
        // 65 for the port and its part of the table, 11 at most in the hash table.
        assert_eq!((size_of::<Port>(), PORT_COST), (64, 76));
    }

    #[test]
    fn addresses_have_one_owner() {
        let mut ports = Ports::new(4);
        let first = attach_simply(&mut ports, 1, 15).unwrap();
        assert_eq!(attach_simply(&mut ports, 2, 15), Err(Refusal::Clash));
        let clashes = [
            ([2, 0, 10, 0, 2, 16], [10, 0, 2, 15]),
            ([2, 0, 10, 0, 2, 15], [10, 0, 2, 17]),
            ([3, 0, 10, 0, 2, 17], [10, 0, 2, 17]),
        ];
        for (mac, address) in clashes {
            assert_eq!(attach(&mut ports, 2, mac, address), Err(Refusal::Clash));
        }
        assert_eq!(ports.by_mac([2, 0, 10, 0, 2, 15]), Some(first));
        assert_eq!(ports.by_address([10, 0, 2, 15]), Some(first));
        assert_eq!(ports.by_address([10, 0, 2, 16]), None);
        // A MAC address of its own choice, even one that looks like that of another IPv4 address.
        let (own, odd) = ([0x52, 0x54, 0, 1, 2, 3], [2, 0, 10, 0, 2, 99]);
        assert_eq!(attach(&mut ports, 2, own, [10, 0, 2, 16]), Ok(2));
        assert_eq!(attach(&mut ports, 3, odd, [10, 0, 2, 17]), Ok(3));
        assert_eq!(
            (ports.by_mac(own), ports.by_mac(odd), ports.by_mac([2, 0, 10, 0, 2, 17])),
            (Some(2), Some(3), None)
        );
        assert_eq!(attach(&mut ports, 1, odd, [10, 0, 2, 15]), Err(Refusal::Clash));
    }

    #[test]
    fn a_new_vm_at_the_place_replaces_the_old_one() {
        let mut ports = Ports::new(2);
        attach_simply(&mut ports, vm(1, 1), 15).unwrap();
        assert_eq!(attach_simply(&mut ports, vm(2, 1), 16), Err(Refusal::Full));
        assert_eq!(attach_simply(&mut ports, 1 << 60, 16), Err(Refusal::Full));
        attach_simply(&mut ports, vm(1, 2), 16).unwrap();
        assert_eq!((ports.len(), ports.by_vm(vm(1, 1))), (1, None));
        assert_eq!(ports.by_mac([2, 0, 10, 0, 2, 15]), None);
        assert_eq!((ports.detach(vm(1, 1)), ports.detach(vm(1, 2))), (None, Some(1)));
        assert!(ports.is_empty());
    }

    #[test]
    fn waiting_belongs_to_the_place() {
        let mut ports = Ports::new(2);
        attach_simply(&mut ports, 1, 15).unwrap();
        assert!(ports.begin_wait(1) && !ports.begin_wait(1));
        ports.detach(1);
        attach_simply(&mut ports, 1, 16).unwrap();
        assert!(!ports.begin_wait(1));
        ports.end_wait(1);
        assert!(ports.begin_wait(1));
    }

    proptest! {
        #[test]
        fn the_indices_agree(steps in prop::collection::vec((0u32..6, 0u64..3, 0u8..6, 0u8..6, any::<bool>()), 1..200)) {
            let mut ports = Ports::new(5);
            for (place, start, last, mac, add) in steps {
                let vm = vm(place, start);
                if add {
                    let known = ports.len();
                    match attach(&mut ports, vm, [2, 0, 10, 0, 2, mac], [10, 0, 2, last]) {
                        Ok(id) => prop_assert_eq!(ports.by_vm(vm), Some(id)),
                        Err(_) => prop_assert_eq!(ports.len(), known),
                    }
                } else {
                    ports.detach(vm);
                    prop_assert_eq!(ports.by_vm(vm), None);
                }
                let there: Vec<_> = (0..6).filter_map(|id| Some((id, *ports.get(id)?))).collect();
                prop_assert_eq!((there.len(), ports.by_address.len()), (ports.len(), ports.len()));
                let made = there.iter().filter(|(_, port)| port.mac == made_from(port.address)).count();
                prop_assert_eq!(made + ports.by_mac.len(), ports.len());
                for (id, port) in there {
                    prop_assert_eq!((ports.by_mac(port.mac), ports.by_address(port.address)), (Some(id), Some(id)));
                    prop_assert_eq!(ports.by_vm(ports.vm(id).unwrap()), Some(id));
                }
            }
        }
    }
}
