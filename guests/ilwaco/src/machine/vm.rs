//! What the VM is: identity, addresses, memory, arguments, figures.

pub use super::start::{Start, start};
use super::{clock, heap, lines, nic, registers::loaded, start};
use alloc::string::String;
use core::{fmt, mem::offset_of};
use protocol::registers::{self, RegisterPage};

/// Number of the VM, unique on the machine since boot.
pub fn id() -> u64 {
    loaded!(vm)
}

/// Its name.
pub fn name() -> String {
    super::registers::text(offset_of!(RegisterPage, name), loaded!(name_length), registers::NAME)
}

/// Its arguments from the system file.
pub fn arguments() -> String {
    super::registers::text(offset_of!(RegisterPage, arguments), loaded!(arguments_length), registers::ARGUMENTS)
}

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// MAC address of the NIC.
pub fn mac() -> Mac {
    Mac(loaded!(mac))
}

/// The configured IPv4 network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// The VM's address.
    pub address: core::net::Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// The gateway, if there is one.
    pub gateway: Option<core::net::Ipv4Addr>,
    /// The name server, if there is one.
    pub name_server: Option<core::net::Ipv4Addr>,
}

/// The address configuration; `None` if the VM was given none.
pub fn network() -> Option<Network> {
    let some = |address: [u8; 4]| (address != [0; 4]).then_some(address.into());
    let prefix = loaded!(prefix);
    (1..=32).contains(&prefix).then(|| Network {
        address: loaded!(address).into(),
        prefix,
        gateway: some(loaded!(gateway)),
        name_server: some(loaded!(name_server)),
    })
}

/// Bytes of memory.
pub fn memory() -> u64 {
    loaded!(memory)
}

/// Bytes of the memory behind the image that the heap has taken.
pub fn heap_used() -> u64 {
    heap::used() as u64
}

/// Bytes of memory behind the image.
pub fn heap_size() -> u64 {
    heap::available() as u64
}

/// Nanoseconds since the VM was created.
pub fn uptime() -> u64 {
    clock::now().saturating_sub(loaded!(created))
}

/// When its creation began, in nanoseconds since kernel entry.
pub fn created() -> u64 {
    loaded!(created)
}

/// Clones made from this VM's template when this one was made; 0: it is not a clone.
pub fn clone_generation() -> u32 {
    loaded!(clone_generation)
}

/// Figures of the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Figures {
    /// Virtual interrupts taken.
    pub interrupts: u64,
    /// Times that it has waited, with nothing left to do; of a clone, since it is one.
    pub waits: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets received.
    pub packets_received: u64,
    /// Packets lost because no buffer was offered.
    pub packets_dropped: u64,
}

/// The figures now.
pub fn figures() -> Figures {
    let nic = nic::counters();
    Figures {
        interrupts: lines::taken(),
        waits: start::count(),
        packets_sent: nic.sent,
        packets_received: nic.received,
        packets_dropped: nic.dropped,
    }
}
