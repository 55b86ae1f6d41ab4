//! The shape of a system file: what its keys are called and what they take.
//!
//! Every value that a rule may complain about keeps its place in the file ([`Spanned`]).

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::types::{Address, Cidr, Mac, PciDevices, PortRange, Size};

/// A whole system file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SystemFile {
    /// Name of the system; the file's name without `.toml` if absent.
    pub name: Option<Spanned<String>>,
    /// The machine to boot it on, unless the command line says otherwise.
    #[serde(default)]
    pub machine: MachineTable,
    /// The VMs' network.
    #[serde(default)]
    pub network: Option<Spanned<NetworkTable>>,
    /// The servers; `init` is implied.
    #[serde(default)]
    pub server: Vec<Spanned<ServerTable>>,
    /// The disks of the machine to boot it on.
    #[serde(default)]
    pub disk: Vec<Spanned<DiskTable>>,
    /// The VMs started at boot.
    #[serde(default)]
    pub vm: Vec<Spanned<VmTable>>,
}

/// `[machine]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineTable {
    /// Memory of the machine.
    pub memory: Option<Spanned<Size>>,
    /// Processors.
    pub cpus: Option<Spanned<u16>>,
}

/// `[network]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkTable {
    /// The network.
    pub address: Spanned<Cidr>,
    /// Where packets for other networks go.
    pub gateway: Spanned<Address>,
    /// Name server.
    pub name_server: Spanned<Address>,
    /// First address given to VMs that name none; the network's 15th if absent.
    pub first_vm: Option<Spanned<Address>>,
}

/// `[[server]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerTable {
    /// Unique name.
    pub name: Spanned<String>,
    /// Program: a binary of this workspace, or the path of an ELF file. The name if absent.
    pub program: Option<Spanned<String>>,
    /// Instead of `program` and `pci`: programs of which the first one that finds its device is kept.
    pub programs: Option<Spanned<Vec<ProgramTable>>>,
    /// Scheduling band.
    #[serde(default)]
    pub band: BandName,
    /// Its memory, everything included.
    pub memory: Spanned<Size>,
    /// What to do when it dies.
    pub restart: Option<Spanned<RestartValue>>,
    /// Servers that it calls.
    #[serde(default)]
    pub calls: Vec<Spanned<String>>,
    /// I/O ports.
    #[serde(default)]
    pub ports: Vec<Spanned<PortRange>>,
    /// Interrupt lines of the legacy PC.
    #[serde(default)]
    pub isa_interrupts: Vec<Spanned<u8>>,
    /// PCI devices that it may claim from the platform server.
    #[serde(default)]
    pub pci: Vec<Spanned<PciDevices>>,
    /// Memory shared by name with other servers.
    #[serde(default)]
    pub shared: Vec<Spanned<SharedTable>>,
    /// Devices of VMs that it serves: their doorbells and windows.
    #[serde(default)]
    pub doorbells: Vec<Spanned<DoorbellName>>,
    /// Firmware tables, all device registers and the interrupt authority: the platform server.
    pub platform: Option<Spanned<bool>>,
    /// All memory for VMs: the pager.
    pub pool: Option<Spanned<bool>>,
    /// The boot bundle, read-only.
    #[serde(default)]
    pub bundle: bool,
    /// The kernel's debug line.
    #[serde(default)]
    pub debug: bool,
    /// The screen that the boot loader hands over, if it does.
    pub screen: Option<Spanned<bool>>,
    /// Options passed to the program.
    #[serde(default)]
    pub options: BTreeMap<String, OptionValue>,
}

/// An entry of `programs`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramTable {
    /// As in a server.
    pub program: Spanned<String>,
    /// PCI devices that it may claim.
    #[serde(default)]
    pub pci: Vec<Spanned<PciDevices>>,
}

impl ServerTable {
    /// Its programs in their order, each with the PCI devices that it may claim.
    pub fn alternatives(&self) -> Vec<(&Spanned<String>, &[Spanned<PciDevices>])> {
        match &self.programs {
            Some(programs) => programs.get_ref().iter().map(|entry| (&entry.program, &entry.pci[..])).collect(),
            None => vec![(self.program.as_ref().unwrap_or(&self.name), &self.pci[..])],
        }
    }
}

/// `band`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BandName {
    /// Drivers: best.
    Driver,
    /// Servers.
    #[default]
    Server,
}

/// `restart`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged, expecting = "restart takes \"always\", \"never\" or { pause-ms = 10, most = 8, window-ms = 60000 }")]
pub enum RestartValue {
    /// By name.
    Name(RestartName),
    /// In numbers.
    Limits(RestartTable),
}

/// `restart = "..."`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartName {
    /// With the default limits.
    Always,
    /// Not at all.
    Never,
}

/// `restart = { ... }`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RestartTable {
    /// First pause, in milliseconds; doubles with each death.
    pub pause_ms: u32,
    /// Deaths within the window after which the server is given up.
    pub most: u32,
    /// The window, in milliseconds.
    pub window_ms: u32,
}

/// An entry of `shared`
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedTable {
    /// Name by which servers share it.
    pub name: String,
    /// Its size; the same wherever it is named.
    pub size: Size,
}

/// An entry of `doorbells`
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoorbellName {
    /// Network interfaces.
    Nic,
    /// Disks.
    Disk,
    /// Consoles.
    Console,
}

/// A value of `options`
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged, expecting = "an option is a string, a whole number, true or false")]
pub enum OptionValue {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Switch(bool),
}

impl OptionValue {
    /// The text that the server gets.
    pub fn text(&self) -> String {
        match self {
            OptionValue::Text(text) => text.clone(),
            OptionValue::Number(number) => number.to_string(),
            OptionValue::Switch(switch) => switch.to_string(),
        }
    }
}

/// `[[disk]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskTable {
    /// Unique name, also its serial number.
    pub name: Spanned<String>,
    /// Size of the whole disk.
    pub size: Spanned<Size>,
    /// Size of its partition for swap regions.
    pub swap: Option<Spanned<Size>>,
    /// Size of its partition for virtual disks.
    pub vdisk: Option<Spanned<Size>>,
    /// Size of its partition for whoever measures.
    pub scratch: Option<Spanned<Size>>,
}

/// An entry of `disks` of a `[[vm]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmDiskTable {
    /// Name of the virtual disk; `{vm}` in it stands for the VM's name.
    pub name: Spanned<String>,
    /// Size to make it with if there is none of this name; without it the VM is refused then.
    pub size: Option<Spanned<Size>>,
    /// Without the right to write: any number of VMs may have it so.
    #[serde(default)]
    pub read_only: bool,
}

/// `[[vm]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmTable {
    /// Unique name; with `count`, the names are `NAME-1`, `NAME-2` and so on, with `for-each` `NAME-ENTRY`.
    pub name: Spanned<String>,
    /// Guest image: a binary of this workspace, or the path of an ELF file. The name if absent.
    pub image: Option<Spanned<String>>,
    /// How many of them.
    pub count: Option<Spanned<u32>>,
    /// One VM for each entry, with that entry as its arguments.
    pub for_each: Option<Spanned<Vec<Spanned<String>>>>,
    /// Memory; as the image's note says if absent.
    pub memory: Option<Spanned<Size>>,
    /// Address of the first one; the next ones follow.
    pub address: Option<Spanned<Address>>,
    /// MAC address; made from the IPv4 address if absent.
    pub mac: Option<Spanned<Mac>>,
    /// Arguments.
    pub arguments: Option<Spanned<String>>,
    /// Its virtual disks, numbered from 0 in this order.
    #[serde(default)]
    pub disks: Vec<Spanned<VmDiskTable>>,
    /// TCP port on which it serves HTTP.
    pub http: Option<Spanned<u16>>,
    /// Other TCP ports that `cargo denali run` makes reachable.
    #[serde(default)]
    pub tcp: Vec<Spanned<u16>>,
}
