//! The manifest: what the builder tells `init`, and the startup page that `init` makes of it for each server.
//!
//! The builder derives it from the system file and checks it; `init` checks again what it relies on.

mod run;
mod table;

pub use run::VMS_MAX;
pub use table::VmTable;

use crate::{boot::Framebuffer, domain::Band};
use alloc::{string::String, vec::Vec};
use core::fmt;
use serde::{Deserialize, Serialize};

/// Version of this format. `init` refuses any other.
pub const MANIFEST_VERSION: u32 = 2;

/// The whole system.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// Name of the system, for people.
    pub name: String,
    /// Servers, in the order in which they are started: every server comes after those it calls.
    pub servers: Vec<Server>,
    /// VMs that the loader starts at boot; at most [`VMS_MAX`]. VMs that differ from the one before only in that the number at the end of the
    /// name, the address and the MAC address made from it count on are written as one (`manifest/run.rs`).
    #[serde(with = "run")]
    pub vms: Vec<Vm>,
    /// The VMs' network.
    pub network: Network,
}

/// A server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Server {
    /// Its name: unique.
    pub name: String,
    /// Its programs, at least one. `init` starts the first; if it ends with [`NO_DEVICE`] and there is another, that one takes its
    /// place, and so on. So one system runs on machines with different devices.
    pub programs: Vec<Program>,
    /// [`Band`]: 0 driver, 1 server.
    pub band: u8,
    /// Bytes of its memory, everything included; a multiple of 4096.
    pub memory: u64,
    /// What to do when it dies.
    pub restart: Restart,
    /// Servers that it calls, `(index in servers, name of the channel)`.
    pub channels: Vec<Channel>,
    /// What it holds besides.
    pub resources: Vec<Resource>,
    /// Options from the system file, `(key, value)`.
    pub options: Vec<(String, String)>,
}

/// A program of a server.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Program {
    /// File in the bundle.
    pub file: String,
    /// PCI devices that it may claim from the platform server.
    pub pci_devices: Vec<PciMatch>,
}

/// Exit code of a driver that has found no device of its own: `init` starts the server's next program instead, if there is one
/// ([`Startup::more_programs`]; without one a driver goes on, and answers that there is no device).
pub const NO_DEVICE: u32 = 2;

impl Server {
    /// The band as a type; `None` if the number is not one a server may have.
    pub fn band(&self) -> Option<Band> {
        match self.band {
            0 => Some(Band::Driver),
            1 => Some(Band::Server),
            _ => None,
        }
    }
}

/// When a server that died is started again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Restart {
    /// Never: the system goes on without it.
    Never,
    /// After a pause that doubles from `pause` milliseconds with each death within `window` milliseconds; given up after `most` deaths within it.
    Always {
        /// First pause, in milliseconds.
        pause: u32,
        /// Deaths within `window` after which it is given up.
        most: u32,
        /// Milliseconds.
        window: u32,
    },
}

impl Restart {
    /// What a system file that says nothing gets: 10 ms, at most 8 deaths a minute.
    pub const DEFAULT: Restart = Restart::Always { pause: 10, most: 8, window: 60_000 };
}

/// A way to call another server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Channel {
    /// Index of the called server in [`Manifest::servers`]; it must be smaller than the caller's.
    /// [`Channel::INIT`] names `init` itself.
    pub to: u16,
    /// The line that the called server may raise on the caller: assigned by the builder, unique for the caller,
    /// from [`crate::domain::line::PEER_FIRST`] up.
    pub line: u8,
    /// The line that the caller may raise on the called server: unique there.
    pub remote_line: u8,
}

impl Channel {
    /// `to` for `init`.
    pub const INIT: u16 = u16::MAX;
}

/// Something a server holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Resource {
    /// I/O ports.
    Ports {
        /// First port.
        first: u16,
        /// Ports.
        count: u16,
    },
    /// The firmware's tables and all device registers, the interrupt authority, and all I/O ports: for the platform server alone. The firmware's
    /// AML may use any port; others' are not taken from them by that.
    Platform,
    /// A hardware interrupt line of the legacy PC (ISA interrupt number). The server takes it from the platform server, which
    /// knows the routing ([`crate::service::platform::Request::IsaInterrupt`]).
    IsaInterrupt {
        /// 0-15.
        number: u8,
    },
    /// Memory for DMA and for sharing, known by a name: every server that names it gets the same extent, mapped.
    Shared {
        /// Name.
        name: String,
        /// Bytes, a multiple of 4096; the same in every server that names it.
        bytes: u64,
    },
    /// The bundle, mapped read-only.
    Bundle,
    /// The memory that is left, as a pool for VMs, with every right: for the pager alone. In a startup page it stands once for each extent of the
    /// pool, at most [`crate::layout::POOL_EXTENTS`] times, the largest first.
    Pool,
    /// The pool with the right to transfer through the window of one device and to raise its line. In a startup page as often as [`Resource::Pool`].
    Devices {
        /// [`crate::domain::Device`] number.
        device: u8,
    },
    /// The kernel's debug line.
    Debug,
    /// The screen that the boot loader handed over ([`Startup::framebuffer`]), mapped; nothing if there is none. For one server alone.
    Screen,
}

/// Which PCI devices a driver is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PciMatch {
    /// Those of one vendor and device number.
    Id {
        /// Vendor.
        vendor: u16,
        /// Device.
        device: u16,
    },
    /// Those of a class, whoever made them, unless a driver names their vendor and device number: class (bits 16-23), subclass
    /// (8-15), programming interface (0-7), as the PCI Code and ID Assignment Specification numbers them.
    Class(u32),
}

impl PciMatch {
    /// Whether a device of this vendor, device number and class is among them.
    pub fn fits(&self, vendor: u16, device: u16, class: u32) -> bool {
        match *self {
            PciMatch::Id { vendor: wanted, device: number } => (wanted, number) == (vendor, device),
            PciMatch::Class(wanted) => wanted == class,
        }
    }
}

/// As in a system file.
impl fmt::Display for PciMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PciMatch::Id { vendor, device } => write!(f, "{vendor:04x}:{device:04x}"),
            PciMatch::Class(class) => write!(f, "class:{class:06x}"),
        }
    }
}

/// The VMs' network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Network {
    /// Network address.
    pub address: [u8; 4],
    /// Prefix length.
    pub prefix: u8,
    /// Gateway.
    pub gateway: [u8; 4],
    /// Name server.
    pub name_server: [u8; 4],
}

/// A VM started at boot.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Vm {
    /// Name, unique, at most [`crate::registers::NAME`] bytes.
    pub name: String,
    /// Guest image: a file in the bundle.
    pub image: String,
    /// Bytes of memory; 0: as its note says.
    pub memory: u64,
    /// MAC address.
    pub mac: [u8; 6],
    /// IPv4 address.
    pub address: [u8; 4],
    /// Arguments, at most [`crate::registers::ARGUMENTS`] bytes.
    pub arguments: String,
    /// Its virtual disks, at most [`crate::disk::DISKS`].
    pub disks: Vec<Disk>,
}

/// A virtual disk of a VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Disk {
    /// Name.
    pub name: String,
    /// Without the right to write.
    pub read_only: bool,
    /// Blocks of 4 KiB to make it with if there is none of this name; 0: then the VM is refused.
    pub blocks: u64,
}

/// The startup page of a server: a little-endian `u32` length, then this in postcard.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Startup {
    /// Its name.
    pub name: String,
    /// Restarts so far; 0 at the first start.
    pub incarnation: u32,
    /// Which of the server's programs this is: its place in [`Server::programs`].
    pub program: u8,
    /// Whether the server has another program, which is started if this one ends with [`NO_DEVICE`].
    pub more_programs: bool,
    /// Options from the system file.
    pub options: Vec<(String, String)>,
    /// Bytes mapped from [`crate::layout::HEAP`].
    pub heap: u64,
    /// As in [`crate::boot::BootInfo`].
    pub tsc_base: u64,
    /// As in [`crate::boot::BootInfo`].
    pub tsc_multiplier: u64,
    /// Physical address of the ACPI root pointer, for the platform server; else 0.
    pub rsdp: u64,
    /// The screen, for the server that holds [`Resource::Screen`]; else all zeros. It is mapped from the page of its first byte on, as far
    /// as the resource says.
    pub framebuffer: Framebuffer,
    /// Channels to the servers it calls.
    pub channels: Vec<StartupChannel>,
    /// Servers that call it.
    pub clients: Vec<StartupClient>,
    /// What else it holds.
    pub resources: Vec<StartupResource>,
    /// Slot of the server's own memory: all rights, so that it can map what it is given and supply page tables.
    pub own_slot: u8,
    /// First free frame of its own memory: for its page tables.
    pub own_free_first: u64,
    /// Free frames from there on.
    pub own_free_count: u64,
    /// Slots from this one to the last are empty and the server's to use.
    pub first_free_slot: u8,
}

/// A channel in a startup page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StartupChannel {
    /// Name of the called server.
    pub name: String,
    /// Slot: a domain capability with CALL and RAISE.
    pub slot: u8,
    /// Line that the called server raises on us.
    pub line: u8,
}

/// A client in a startup page: who calls with which badge, and how to raise an interrupt on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StartupClient {
    /// Name of the client.
    pub name: String,
    /// Badge of its messages.
    pub badge: u64,
    /// Slot: a domain capability with RAISE.
    pub slot: u8,
    /// Line that the client raises on us.
    pub line: u8,
    /// PCI devices that each of the client's programs may claim (for the platform server).
    pub pci_devices: Vec<Vec<PciMatch>>,
    /// ISA interrupts that the client may take (for the platform server): its [`Resource::IsaInterrupt`]s.
    pub isa_interrupts: Vec<u8>,
    /// What the client's devices may reach, if it may claim any (for the platform server): first frame and frames of each of its
    /// [`Resource::Shared`].
    pub shared: Vec<(u64, u64)>,
}

/// A resource in a startup page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StartupResource {
    /// What it is, as the manifest has it.
    pub resource: Resource,
    /// Slot of the capability (Platform: the devices extent; the authority and all ports are in the next two slots).
    pub slot: u8,
    /// Memory: first frame. Ports: first port.
    pub first: u64,
    /// Memory: frames. Ports: ports.
    pub count: u64,
    /// Address at which `init` mapped it; 0: not mapped.
    pub address: u64,
    /// Bundle: bytes used.
    pub length: u64,
}

/// Why a startup page or manifest was refused.
pub type DecodeError = postcard::Error;

impl Manifest {
    /// From its bytes in the bundle, all of them.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, DecodeError> {
        exact(bytes)
    }
}

impl Startup {
    /// From the bytes of the startup page.
    pub fn decode(page: &[u8]) -> Result<Startup, DecodeError> {
        let (length, rest) = page.split_first_chunk::<4>().ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        let length = u32::from_le_bytes(*length) as usize;
        exact(rest.get(..length).ok_or(postcard::Error::DeserializeUnexpectedEnd)?)
    }

    /// The startup page's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let body = postcard::to_allocvec(self)?;
        let mut page = Vec::from((body.len() as u32).to_le_bytes());
        page.extend(body);
        Ok(page)
    }

    /// The channel to `name`.
    pub fn channel(&self, name: &str) -> Option<&StartupChannel> {
        self.channels.iter().find(|channel| channel.name == name)
    }

    /// The value of an option.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }
}

/// Decodes all of `bytes`, refusing leftovers.
fn exact<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    let (value, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() { Ok(value) } else { Err(postcard::Error::DeserializeBadEncoding) }
}
