//! The command line of QEMU. A pure function of what the machine should be.

use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub use super::hardware::{Chipset, DiskBus, Medium, Nic};
use crate::accelerator::Accelerator;
use crate::build::Built;
use crate::system::network::MACHINE_MAC;

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The Debian package that has it.
pub const PACKAGE: &str = "qemu-system-x86";
/// Exit code of QEMU when the system ended itself with success: it wrote 0x10 to port 0xf4.
pub const EXIT_SUCCESS: i32 = 0x10 << 1 | 1;
/// Exit code of QEMU when the system ended itself with failure: it wrote 0x11 to port 0xf4.
pub const EXIT_FAILURE: i32 = 0x11 << 1 | 1;

/// A TCP port of the host that leads to one of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forward {
    /// Port on 127.0.0.1.
    pub host: u16,
    /// The VM's address.
    pub address: Ipv4Addr,
    /// The VM's port.
    pub port: u16,
}

/// What the machine's NIC is connected to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Network {
    /// QEMU's user-mode network.
    User {
        /// Network address and prefix length.
        network: (Ipv4Addr, u8),
        /// The gateway's address.
        gateway: Ipv4Addr,
        /// The name server's address.
        name_server: Ipv4Addr,
        /// Ports of the host that lead to VMs.
        forwards: Vec<Forward>,
    },
    /// A UNIX socket that carries Ethernet frames: for a host on the VMs' own network, and tests that look at frames.
    Frames {
        /// Where somebody listens.
        socket: PathBuf,
    },
    /// No NIC.
    None,
}

/// A disk of a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// Its name, also its serial number and its name on the control socket.
    pub name: String,
    /// Its image, raw.
    pub image: PathBuf,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Rules of QEMU's `blkdebug` by which it fails.
    pub faults: Option<PathBuf>,
    /// A log of all writes and flushes (QEMU's `blklogwrites`), from which the state after a power cut can be made.
    pub log: Option<PathBuf>,
    /// More properties of the device.
    pub device: Vec<String>,
}

impl Disk {
    /// An ordinary disk.
    pub fn new(name: &str, image: &Path) -> Disk {
        Disk {
            name: name.into(),
            image: image.to_path_buf(),
            read_only: false,
            faults: None,
            log: None,
            device: Vec::new(),
        }
    }

    /// The host's cache is written back when the machine flushes: what is kept then is what was flushed, and perhaps more.
    fn blockdev(&self) -> OsString {
        let mut out = OsString::from(format!("driver=raw,node-name={},read-only=", node(&self.name)));
        out.push(if self.read_only { "on" } else { "off" });
        let mut prefix = "file".to_string();
        if let Some(log) = &self.log {
            out.push(format!(",{prefix}.driver=blklogwrites,{prefix}.log.driver=file,{prefix}.log.filename="));
            push_path(&mut out, log);
            prefix += ".file";
        }
        if let Some(faults) = &self.faults {
            out.push(format!(",{prefix}.driver=blkdebug,{prefix}.config="));
            push_path(&mut out, faults);
            prefix += ".image";
        }
        out.push(format!(",{prefix}.driver=file,{prefix}.filename="));
        push_path(&mut out, &self.image);
        if !self.read_only {
            // Blocks that are zeroed take no room on the host.
            out.push(format!(",discard=unmap,{prefix}.discard=unmap"));
        }
        out
    }
}

/// Name of the block device of the disk with this name; a name of its own, because some words mean something to QEMU.
pub fn node(name: &str) -> String {
    format!("disk-{name}")
}

/// In a value of QEMU's, a comma is doubled.
pub(super) fn push_path(out: &mut OsString, path: &Path) {
    for (index, part) in path.as_os_str().as_bytes().split(|byte| *byte == b',').enumerate() {
        if index > 0 {
            out.push(",,");
        }
        out.push(OsStr::from_bytes(part));
    }
}

/// What a machine boots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Boot {
    /// The microkernel with its bundle, without firmware or boot loader (PVH).
    Direct {
        /// The microkernel.
        kernel: PathBuf,
        /// The bundle.
        bundle: PathBuf,
    },
    /// An image (`cargo denali image`), by firmware and boot loader. What is written to it is forgotten at the end.
    Image {
        /// The image.
        file: PathBuf,
        /// What it is put on.
        medium: Medium,
        /// UEFI firmware; `None`: BIOS.
        uefi: Option<Uefi>,
    },
}

/// UEFI firmware.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uefi {
    /// The program.
    pub code: PathBuf,
    /// Its variables as they are at first. The machine's own are forgotten at its end.
    pub variables: PathBuf,
}

/// What becomes of the time in which a machine whose time counts instructions has nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rest {
    /// It is at once the time of the next timer: nobody outside can keep up with it.
    Skipped,
    /// It passes as it does for everybody.
    Waited,
}

impl Rest {
    const fn option(self) -> &'static str {
        match self {
            Rest::Skipped => "shift=0,sleep=off",
            Rest::Waited => "shift=0,sleep=on",
        }
    }
}

/// A machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// What it boots.
    pub boot: Boot,
    /// Chipset.
    pub chipset: Chipset,
    /// Memory in MiB.
    pub memory: u64,
    /// Processors.
    pub cpus: u16,
    /// Accelerator.
    pub accelerator: Accelerator,
    /// Time counts instructions: one a nanosecond. Makes measurements repeatable. TCG only.
    pub count_instructions: Option<Rest>,
    /// Whether it has a port by which the system says how it ended.
    pub debug_exit: bool,
    /// Model of the NIC.
    pub nic: Nic,
    /// What the NIC is connected to.
    pub network: Network,
    /// What the disks are connected to.
    pub disk_bus: DiskBus,
    /// Disks, in the order of the bus.
    pub disks: Vec<Disk>,
    /// Whether there is an IOMMU (Intel VT-d), which Q35 alone can have.
    pub iommu: bool,
    /// Where to make the control socket.
    pub qmp: Option<PathBuf>,
    /// Arguments that the user adds.
    pub extra: Vec<OsString>,
}

impl Machine {
    /// The same with one processor, whose time counts instructions.
    pub fn counting(self, rest: Rest) -> Machine {
        Machine { accelerator: Accelerator::Tcg, count_instructions: Some(rest), cpus: 1, ..self }
    }

    /// QEMU's arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        add(&["-nodefaults", "-no-user-config", "-machine", self.chipset.machine()]);
        add(&["-display", "none", "-no-reboot"]);
        match self.accelerator {
            Accelerator::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
            Accelerator::Tcg => match self.count_instructions {
                None => add(&["-accel", "tcg,thread=multi", "-cpu", "max"]),
                // This needs one thread for all processors.
                Some(rest) => add(&["-accel", "tcg,thread=single", "-cpu", "max", "-icount", rest.option()]),
            },
        }
        add(&["-m", &format!("{}M", self.memory), "-smp", &self.cpus.to_string()]);
        add(&["-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"]);
        if self.debug_exit {
            add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        }
        if self.iommu {
            // Before all devices that it is to confine.
            add(&["-device", "intel-iommu"]);
        }
        if let Some(netdev) = self.network.netdev() {
            // Nothing boots from the network: an option ROM for it only costs time.
            let nic = self.nic.device();
            let device = format!("{nic}{},id=nic,netdev=net,mac={MACHINE_MAC},romfile=", self.dma(nic));
            arguments.extend(["-netdev".into(), netdev, "-device".into(), device.into()]);
        }
        for (index, disk) in self.disks.iter().enumerate() {
            arguments.extend(["-blockdev".into(), disk.blockdev()]);
            for device in self.disk_devices(disk, index) {
                arguments.extend(["-device".into(), device.into()]);
            }
        }
        if let Some(socket) = &self.qmp {
            let mut place = OsString::from("unix:");
            push_path(&mut place, socket);
            place.push(",server=on,wait=off");
            arguments.extend(["-qmp".into(), place]);
        }
        arguments.extend(self.boot.arguments(self.chipset));
        arguments.extend(self.extra.iter().cloned());
        arguments
    }

    /// The devices of a disk, the `index`-th.
    fn disk_devices(&self, disk: &Disk, index: usize) -> Vec<String> {
        let names = format!("drive={},id={1},serial={1}", node(&disk.name), disk.name);
        // Errors are the system's to deal with; by itself QEMU would stop the machine when the host's disk is full. Its NVMe
        // knows no other way than to report them.
        let report = "werror=report,rerror=report";
        let (controller, mut device) = match self.disk_bus {
            DiskBus::Virtio => {
                let device = format!("virtio-blk-pci,{names},disable-legacy=on{},{report}", self.dma("virtio-blk-pci"));
                (None, device)
            }
            DiskBus::Nvme => (None, format!("nvme,{names}")),
            // The chipset's own controller comes last on the PCI bus.
            DiskBus::Ahci if self.chipset == Chipset::Q35 && index + 1 == self.disks.len() => {
                (None, format!("ide-hd,{names},bus=ide.0,{report}"))
            }
            DiskBus::Ahci => {
                let bus = format!("ahci-{}", disk.name);
                (Some(format!("ich9-ahci,id={bus}")), format!("ide-hd,{names},bus={bus}.0,{report}"))
            }
        };
        for property in &disk.device {
            device += ",";
            device += property;
        }
        controller.into_iter().chain([device]).collect()
    }

    /// Virtio devices of QEMU pass an IOMMU by, unless they are told.
    fn dma(&self, device: &str) -> &'static str {
        if self.iommu && device.starts_with("virtio") { ",iommu_platform=on" } else { "" }
    }

    /// The whole command line, for people.
    pub fn command_line(&self) -> String {
        let quote = |word: &OsString| {
            let word = word.to_string_lossy();
            let plain = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "-_./:,=+".contains(c));
            if plain { word.into_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
        };
        let words: Vec<_> = self.arguments().iter().map(quote).collect();
        format!("{PROGRAM} {}", words.join(" "))
    }
}

impl Boot {
    /// What was built, booted without a boot loader.
    pub fn direct(built: &Built) -> Boot {
        Boot::Direct { kernel: built.kernel.clone(), bundle: built.bundle.clone() }
    }

    fn arguments(&self, chipset: Chipset) -> Vec<OsString> {
        let (file, medium, uefi) = match self {
            Boot::Direct { kernel, bundle } => {
                return vec!["-kernel".into(), kernel.clone().into(), "-initrd".into(), bundle.clone().into()];
            }
            Boot::Image { file, medium, uefi } => (file, medium, uefi),
        };
        let drive = |options: &str, path: &Path| {
            let mut value = OsString::from(format!("format=raw,{options},file="));
            push_path(&mut value, path);
            ["-drive".into(), value]
        };
        let mut arguments = Vec::new();
        if let Some(Uefi { code, variables }) = uefi {
            arguments.extend(drive("if=pflash,unit=0,readonly=on", code));
            arguments.extend(drive("if=pflash,unit=1,snapshot=on", variables));
        }
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        // Boot loaders want a screen.
        add(&["-device", "VGA"]);
        match (medium, chipset) {
            (Medium::Usb, _) => {
                add(&["-device", "qemu-xhci,id=xhci"]);
                add(&["-device", "usb-storage,bus=xhci.0,drive=image,removable=on,bootindex=0"]);
            }
            (Medium::Disk, Chipset::Pc) => add(&["-device", "ide-hd,bus=ide.0,drive=image,bootindex=0"]),
            (Medium::Disk, Chipset::Q35) => add(&["-device", "ide-hd,bus=ide.5,drive=image,bootindex=0"]),
            (Medium::Cd, Chipset::Pc) => add(&["-device", "ide-cd,bus=ide.1,drive=image,bootindex=0"]),
            (Medium::Cd, Chipset::Q35) => add(&["-device", "ide-cd,bus=ide.5,drive=image,bootindex=0"]),
        }
        let access = if *medium == Medium::Cd { "readonly=on" } else { "snapshot=on" };
        arguments.extend(drive(&format!("if=none,id=image,{access}"), file));
        arguments
    }
}

impl Network {
    fn netdev(&self) -> Option<OsString> {
        match self {
            Network::User { network: (address, prefix), gateway, name_server, forwards } => {
                let mut netdev = format!("user,id=net,net={address}/{prefix},host={gateway},dns={name_server}");
                for forward in forwards {
                    netdev += &format!(",hostfwd=tcp:127.0.0.1:{}-{}:{}", forward.host, forward.address, forward.port);
                }
                Some(netdev.into())
            }
            Network::Frames { socket } => {
                let mut netdev = OsString::from("stream,id=net,server=off,addr.type=unix,addr.path=");
                push_path(&mut netdev, socket);
                Some(netdev)
            }
            Network::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            boot: Boot::Direct { kernel: "k".into(), bundle: "b c".into() },
            chipset: Chipset::Q35,
            memory: 512,
            cpus: 2,
            accelerator: Accelerator::Tcg,
            count_instructions: None,
            nic: Nic::Virtio,
            debug_exit: true,
            network: Network::User {
                network: (Ipv4Addr::new(10, 0, 2, 0), 24),
                gateway: Ipv4Addr::new(10, 0, 2, 2),
                name_server: Ipv4Addr::new(10, 0, 2, 3),
                forwards: vec![
                    Forward { host: 8080, address: Ipv4Addr::new(10, 0, 2, 15), port: 80 },
                    Forward { host: 8081, address: Ipv4Addr::new(10, 0, 2, 16), port: 80 },
                ],
            },
            disk_bus: DiskBus::Virtio,
            disks: Vec::new(),
            iommu: false,
            qmp: None,
            extra: vec!["-s".into()],
        }
    }

    #[test]
    fn the_usual_machine() {
        let line = machine().command_line();
        for part in [
            "-machine q35",
            "-accel tcg,thread=multi -cpu max",
            "-m 512M -smp 2",
            "hostfwd=tcp:127.0.0.1:8080-10.0.2.15:80,hostfwd=tcp:127.0.0.1:8081-10.0.2.16:80",
            "virtio-net-pci,disable-legacy=on,id=nic,netdev=net,mac=52:54:00:12:34:56,romfile=",
            "isa-debug-exit,iobase=0xf4,iosize=0x04",
            "-kernel k -initrd 'b c' -s",
        ] {
            assert!(line.contains(part), "{part} is missing: {line}");
        }
    }

    #[test]
    fn network_cards() {
        let line = Machine { nic: Nic::E1000e, ..machine() }.command_line();
        assert!(line.contains("-device e1000e,id=nic,netdev=net,mac=52:54:00:12:34:56,romfile= "), "{line}");
    }

    #[test]
    fn disks() {
        let usual = Disk::new("disk", Path::new("a,b.img"));
        let faulty = Disk {
            read_only: true,
            faults: Some("rules".into()),
            log: Some("log".into()),
            device: vec!["queue-size=512".into()],
            ..Disk::new("other", Path::new("c"))
        };
        let line = Machine { disks: vec![usual, faulty], qmp: Some("socket".into()), ..machine() }.command_line();
        for part in [
            "-blockdev driver=raw,node-name=disk-disk,read-only=off,file.driver=file,file.filename=a,,b.img,discard=unmap,file.discard=unmap",
            "-device virtio-blk-pci,drive=disk-disk,id=disk,serial=disk,disable-legacy=on,werror=report,rerror=report ",
            "read-only=on,file.driver=blklogwrites,file.log.driver=file,file.log.filename=log,\
             file.file.driver=blkdebug,file.file.config=rules,\
             file.file.image.driver=file,file.file.image.filename=c ",
            "serial=other,disable-legacy=on,werror=report,rerror=report,queue-size=512 -qmp unix:socket,server=on,wait=off",
        ] {
            assert!(line.contains(part), "{part} is missing: {line}");
        }
    }

    #[test]
    fn other_hardware() {
        let disks = vec![Disk::new("a", Path::new("a")), Disk::new("b", Path::new("b"))];
        let line = |chipset, nic, disk_bus, iommu| {
            Machine { chipset, nic, disk_bus, iommu, disks: disks.clone(), ..machine() }.command_line()
        };
        let q35 = line(Chipset::Q35, Nic::E1000e, DiskBus::Ahci, false);
        for part in
            ["-device e1000e,id=nic,netdev=net", "ide-hd,drive=disk-b,id=b,serial=b,bus=ide.0,", "bus=ahci-a.0,"]
        {
            assert!(q35.contains(part), "{part} is missing: {q35}");
        }
        let pc = line(Chipset::Pc, Nic::Rtl8139, DiskBus::Ahci, false);
        for part in ["-machine pc ", "rtl8139,id=nic,netdev=net", "-device ich9-ahci,id=ahci-b ", "bus=ahci-b.0,"] {
            assert!(pc.contains(part), "{part} is missing: {pc}");
        }
        let nvme = line(Chipset::Pc, Nic::E1000, DiskBus::Nvme, false);
        assert!(nvme.contains("-device nvme,drive=disk-a,id=a,serial=a ") && !nvme.contains("ahci"), "{nvme}");
        let iommu = line(Chipset::Q35, Nic::Virtio, DiskBus::Virtio, true);
        let confined = "disable-legacy=on,iommu_platform=on";
        assert_eq!(iommu.matches(confined).count(), 3, "{iommu}");
        assert!(iommu.find("intel-iommu") < iommu.find("virtio-net-pci"), "{iommu}");
    }

    #[test]
    fn images() {
        let line = |medium, chipset, uefi| {
            let boot = Boot::Image { file: "a,b.img".into(), medium, uefi };
            Machine { boot, chipset, ..machine() }.command_line()
        };
        let stick = line(Medium::Usb, Chipset::Q35, None);
        for part in ["usb-storage,bus=xhci.0,drive=image,", "if=none,id=image,snapshot=on,file=a,,b.img", "-device VGA"]
        {
            assert!(stick.contains(part), "{part} is missing: {stick}");
        }
        assert!(!stick.contains("-kernel") && !stick.contains("pflash"), "{stick}");
        let uefi = Uefi { code: "code".into(), variables: "variables".into() };
        let cd = line(Medium::Cd, Chipset::Pc, Some(uefi));
        for part in [
            "unit=0,readonly=on,file=code",
            "unit=1,snapshot=on,file=variables",
            "ide-cd,bus=ide.1,",
            "readonly=on,file=a,,b",
        ] {
            assert!(cd.contains(part), "{part} is missing: {cd}");
        }
        assert!(line(Medium::Disk, Chipset::Q35, None).contains("ide-hd,bus=ide.5,drive=image"));
    }

    #[test]
    fn counting_instructions_uses_one_thread() {
        for (rest, sleep) in [(Rest::Skipped, "off"), (Rest::Waited, "on")] {
            let line = Machine { network: Network::None, ..machine() }.counting(rest).command_line();
            let expected = format!("-accel tcg,thread=single -cpu max -icount shift=0,sleep={sleep}");
            assert!(line.contains(&expected) && line.contains("-smp 1"), "{line}");
            assert!(!line.contains("netdev"), "{line}");
        }
    }

    #[test]
    fn kvm_and_frames() {
        let network = Network::Frames { socket: "w".into() };
        let line = Machine { accelerator: Accelerator::Kvm, network, ..machine() }.command_line();
        assert!(line.contains("-accel kvm -cpu host"), "{line}");
        assert!(line.contains("stream,id=net,server=off,addr.type=unix,addr.path=w"), "{line}");
    }
}
