//! Addresses of the VMs.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;

use toml::Spanned;

use super::file::{NetworkTable, VmTable};
use super::problem::{Problem, Source};
use super::types::{Cidr, Mac};

/// MAC address of the machine's own NIC under QEMU.
pub const MACHINE_MAC: Mac = Mac([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
/// Offset in the network of the first VM's address: 10.0.2.15, where QEMU expects a guest.
const FIRST_VM: u32 = 15;

/// The network with defaults filled in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// The network.
    pub cidr: Cidr,
    /// Where packets for other networks go.
    pub gateway: Ipv4Addr,
    /// Name server.
    pub name_server: Ipv4Addr,
    /// First address for VMs that name none.
    pub first_vm: Ipv4Addr,
}

impl Default for Network {
    /// The network of QEMU's user-mode networking.
    fn default() -> Network {
        Network {
            cidr: Cidr { address: Ipv4Addr::new(10, 0, 2, 0), prefix: 24 },
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            name_server: Ipv4Addr::new(10, 0, 2, 3),
            first_vm: Ipv4Addr::new(10, 0, 2, 15),
        }
    }
}

/// The network that the file describes, and what is wrong with it.
pub fn network(table: Option<&Spanned<NetworkTable>>, source: &Source) -> (Network, Vec<Problem>) {
    let Some(table) = table.map(Spanned::get_ref) else { return (Network::default(), Vec::new()) };
    let cidr = *table.address.get_ref();
    let first_vm = table.first_vm.as_ref().map(|address| address.get_ref().0);
    let network = Network {
        cidr,
        gateway: table.gateway.get_ref().0,
        name_server: table.name_server.get_ref().0,
        first_vm: first_vm.unwrap_or(Ipv4Addr::from_bits(cidr.address.to_bits() | FIRST_VM)),
    };
    let addresses = [
        ("the gateway", Some(&table.gateway)),
        ("the name server", Some(&table.name_server)),
        ("the first VM", table.first_vm.as_ref()),
    ];
    let mut problems = Vec::new();
    for (what, address) in addresses.into_iter().filter_map(|(what, address)| Some((what, address?))) {
        if let Some(reason) = unusable(cidr, address.get_ref().0) {
            problems.push(source.problem(address.span(), format!("the address of {what} {reason}")));
        }
    }
    (network, problems)
}

/// Why no host can have this address.
fn unusable(cidr: Cidr, address: Ipv4Addr) -> Option<String> {
    if !cidr.contains(address) {
        Some(format!("is outside the network {cidr}"))
    } else if address == cidr.address {
        Some("is that of the network itself".into())
    } else if address == cidr.broadcast() {
        Some("is the broadcast address of the network".into())
    } else {
        None
    }
}

/// Gives addresses to VMs.
#[derive(Debug)]
pub struct Addresses<'a> {
    network: Network,
    source: &'a Source,
    taken: BTreeMap<Ipv4Addr, (String, Option<Range<usize>>)>,
    macs: BTreeMap<Mac, (String, Option<Range<usize>>)>,
    next: u32,
}

impl<'a> Addresses<'a> {
    /// All of the network is free but the gateway, the name server and what VMs name themselves.
    pub fn new(network: Network, source: &'a Source) -> Addresses<'a> {
        let taken =
            [(network.gateway, ("the gateway".into(), None)), (network.name_server, ("the name server".into(), None))];
        let macs = [(MACHINE_MAC, ("the machine's NIC".into(), None))];
        let next = network.first_vm.to_bits();
        Addresses { network, source, taken: taken.into(), macs: macs.into(), next }
    }

    /// Takes the addresses that a VM table names for `count` VMs.
    pub fn named(&mut self, vm: &VmTable, first: Ipv4Addr, names: &[String]) -> Result<Vec<Ipv4Addr>, Problem> {
        let at = vm.address.as_ref().map_or(vm.name.span(), Spanned::span);
        let mut addresses = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let fail = |reason: String| self.source.problem(at.clone(), format!("the address of VM `{name}` {reason}"));
            let bits = first.to_bits().checked_add(index as u32).ok_or_else(|| fail("does not exist".into()))?;
            let address = Ipv4Addr::from_bits(bits);
            if let Some(reason) = unusable(self.network.cidr, address) {
                return Err(fail(reason));
            }
            if let Some((owner, first)) = self.taken.get(&address) {
                let problem = fail(format!("is taken: {address} belongs to {owner}"));
                return Err(match first {
                    Some(first) => problem.first(first.clone()),
                    None => problem,
                });
            }
            self.taken.insert(address, (format!("VM `{name}`"), Some(at.clone())));
            addresses.push(address);
        }
        Ok(addresses)
    }

    /// The next free addresses, for VMs that name none.
    pub fn next(&mut self, vm: &VmTable, names: &[String]) -> Result<Vec<Ipv4Addr>, Problem> {
        let mut addresses = Vec::new();
        for name in names {
            while self.taken.contains_key(&Ipv4Addr::from_bits(self.next)) {
                self.next += 1;
            }
            let address = Ipv4Addr::from_bits(self.next);
            if unusable(self.network.cidr, address).is_some() {
                let message = format!("the network {} has no address left for VM `{name}`", self.network.cidr);
                return Err(self.source.problem(vm.name.span(), message).help("make the network larger"));
            }
            self.taken.insert(address, (format!("VM `{name}`"), Some(vm.name.span())));
            addresses.push(address);
        }
        Ok(addresses)
    }

    /// The MAC address of a VM.
    pub fn mac(&mut self, vm: &VmTable, name: &str, address: Ipv4Addr) -> Result<Mac, Problem> {
        let (mac, at) = match &vm.mac {
            Some(mac) => (*mac.get_ref(), mac.span()),
            None => (Mac::of(address), vm.name.span()),
        };
        if let Some((owner, first)) = self.macs.get(&mac) {
            let problem =
                self.source.problem(at, format!("the MAC address of VM `{name}` is taken: {mac} belongs to {owner}"));
            return Err(match first {
                Some(first) => problem.first(first.clone()),
                None => problem,
            });
        }
        self.macs.insert(mac, (format!("VM `{name}`"), Some(at)));
        Ok(mac)
    }
}
