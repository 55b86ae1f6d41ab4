//! The VMs' ports.
//!
//! The switch has nothing to learn: the loader says which addresses a VM has, the switch holds the VM to them, and
//! everything else is behind the uplink. So no table grows with what strangers send.
//!
//! A port is what a VM costs in the switch when it has left memory, so it is small: 28 bytes at the VM's place, and its place again at its
//! IPv4 address. Both tables grow by chunks: nothing is copied or hashed anew when the millionth VM comes. A MAC address that is made from
//! the IPv4 address needs no table at all.

use crate::{
    header::{Address, Mac},
    queue::Window,
};
use hashbrown::HashMap;
use protocol::{
    nic::usual_mac,
    service::{PLACE_BITS, VmNumber, VmRef, place},
};
use server_runtime::places::Places;

/// A port is named by the place of its VM.
pub type PortId = u32;

/// Whether there is a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// There is none.
    #[default]
    Vacant,
    /// There is one, whose MAC address is made from its IPv4 address.
    Usual,
    /// There is one with a MAC address of its own choice.
    OwnMac,
}

/// A VM's port.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Where the VM was when it was last heard of.
    pub at: VmRef,
    /// The VM's number without its place.
    start: u32,
    /// Its IPv4 address.
    pub address: Address,
    /// Its NIC window; the queue page comes first.
    pub window: Window,
    state: State,
    /// Whether it waits in a queue. That belongs to the place, not to the VM: so a queue never holds a place twice, even if the
    /// port is taken away and another takes its place meanwhile.
    queued: bool,
}

impl Port {
    const VACANT: Port = Port {
        at: VmRef::NOWHERE,
        start: 0,
        address: [0; 4],
        window: Window::NONE,
        state: State::Vacant,
        queued: false,
    };
}

impl Default for Port {
    fn default() -> Port {
        Port::VACANT
    }
}

/// Why a port was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The MAC or IPv4 address has a port already, or is none that a VM may have.
    Clash,
    /// No room for another port.
    Full,
}

/// The port at an address, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Owner(PortId);

impl Owner {
    const NOBODY: Owner = Owner(PortId::MAX);

    fn port(self) -> Option<PortId> {
        (self != Owner::NOBODY).then_some(self.0)
    }
}

impl Default for Owner {
    fn default() -> Owner {
        Owner::NOBODY
    }
}

/// The table.
#[derive(Debug)]
pub struct Ports {
    ports: Places<Port>,
    /// By the two halves of the IPv4 address. VMs have addresses that follow each other, or nearly so.
    by_address: HashMap<u16, Places<Owner>>,
    /// Those whose MAC address is of their own choice, both ways. It takes a line in the system file to be one.
    by_mac: HashMap<Mac, PortId>,
    macs: HashMap<PortId, Mac>,
    count: usize,
}

/// Bytes of a port in both tables, if its neighbours' addresses are in use too.
pub const PORT_COST: usize = Places::<Port>::COST + Places::<Owner>::COST;

/// The halves of an address.
fn halves(address: Address) -> (u16, u32) {
    let [a, b, c, d] = address;
    (u16::from_be_bytes([a, b]), u32::from(u16::from_be_bytes([c, d])))
}

impl Ports {
    /// An empty table for VMs at places below `most`.
    pub fn new(most: usize) -> Ports {
        let (by_mac, macs) = (HashMap::new(), HashMap::new());
        Ports { ports: Places::new(most), by_address: HashMap::new(), by_mac, macs, count: 0 }
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
        let state = if mac == usual_mac(address) { State::Usual } else { State::OwnMac };
        *port = Port { at, start, address, window, state, queued: port.queued };
        if state == State::OwnMac {
            self.by_mac.insert(mac, id);
            self.macs.insert(id, mac);
        }
        self.set_owner(address, Owner(id));
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
        let Some(port) = self.get_mut(id) else { return };
        let Port { address, queued, .. } = *port;
        *port = Port { queued, ..Port::VACANT };
        self.set_owner(address, Owner::NOBODY);
        if let Some(mac) = self.macs.remove(&id) {
            self.by_mac.remove(&mac);
        }
        self.count -= 1;
    }

    fn set_owner(&mut self, address: Address, owner: Owner) {
        let (network, host) = halves(address);
        let hosts = self.by_address.entry(network).or_insert_with(|| Places::new(1 << u16::BITS));
        if let Some(known) = hosts.make(host) {
            *known = owner;
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

    /// The addresses of a port's VM.
    pub fn addresses(&self, id: PortId) -> Option<(Mac, Address)> {
        let Port { state, address, .. } = *self.get(id)?;
        let mac = match state {
            State::OwnMac => *self.macs.get(&id)?,
            _ => usual_mac(address),
        };
        Some((mac, address))
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
            && self.get(id).is_some_and(|port| port.state == State::Usual)
        {
            return Some(id);
        }
        self.by_mac.get(&mac).copied()
    }

    /// The port with an IPv4 address.
    pub fn by_address(&self, address: Address) -> Option<PortId> {
        let (network, host) = halves(address);
        self.by_address.get(&network)?.get(host)?.port()
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
        // 28 for the port, 4 for its place at its address, and its parts of both tables.
        assert_eq!((size_of::<Port>(), PORT_COST), (28, 34));
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
                let there: Vec<_> = (0..6).filter_map(|id| Some((id, ports.addresses(id)?))).collect();
                let owners = (0..6).filter(|last| ports.by_address([10, 0, 2, *last]).is_some()).count();
                prop_assert_eq!((there.len(), owners), (ports.len(), ports.len()));
                let made = there.iter().filter(|(_, (mac, address))| *mac == usual_mac(*address)).count();
                prop_assert_eq!((made + ports.by_mac.len(), ports.macs.len()), (ports.len(), ports.by_mac.len()));
                for (id, (mac, address)) in there {
                    prop_assert_eq!((ports.by_mac(mac), ports.by_address(address)), (Some(id), Some(id)));
                    prop_assert_eq!(ports.by_vm(ports.vm(id).unwrap()), Some(id));
                }
            }
        }
    }
}
