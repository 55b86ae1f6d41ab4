//! What the answers of the servers look like.

use crate::table::{memory, table, time};
use alloc::{
    format,
    string::{String, ToString},
};
use protocol::service::{
    init::{ServerInfo, State},
    loader::{MemoryInfo, VmInfo},
    platform::DeviceInfo,
    vdisk::DiskInfo,
};

/// How many VMs one command has started or stopped.
pub fn many(start: bool, done: u64, refused: u64) -> String {
    match (start, refused) {
        (true, 0) => format!("{done} VMs started\n"),
        (true, _) => format!("{done} VMs started, {refused} refused: the log says why\n"),
        (false, _) => format!("{done} VMs stopped\n"),
    }
}

/// The list of servers.
pub fn servers(servers: &[ServerInfo]) -> String {
    let row = |server: &ServerInfo| {
        let state = match server.state {
            State::Running => "running",
            State::Restarting => "restarting",
            State::GivenUp => "given up",
        };
        let ServerInfo { name, program, restarts, memory: kib, cpu_time, .. } = server;
        [name.clone(), program.clone(), state.into(), restarts.to_string(), memory(*kib), time(*cpu_time)]
    };
    table(
        ["SERVER", "PROGRAM", "STATE", ">RESTARTS", ">MEMORY", ">CPU"],
        &servers.iter().map(row).collect::<alloc::vec::Vec<_>>(),
    )
}

/// The list of VMs.
pub fn vms(vms: &[VmInfo]) -> String {
    if vms.is_empty() {
        return "there are no VMs\n".into();
    }
    let row = |vm: &VmInfo| {
        let [a, b, c, d] = vm.address;
        // One that has left memory has nothing there, not even its count of time.
        let out = vm.used == 0 && vm.stopped.is_none();
        let state = match &vm.stopped {
            Some(why) => format!("stopped: {why}"),
            None if out => "swapped out".to_string(),
            None => "running".to_string(),
        };
        [
            vm.number.to_string(),
            vm.name.clone(),
            vm.image.clone(),
            format!("{a}.{b}.{c}.{d}"),
            memory(vm.memory),
            memory(vm.used),
            if out { "-".to_string() } else { time(vm.cpu_time) },
            state,
        ]
    };
    let heads = [">VM", "NAME", "IMAGE", "ADDRESS", ">MEMORY", ">USED", ">CPU", "STATE"];
    table(heads, &vms.iter().map(row).collect::<alloc::vec::Vec<_>>())
}

/// Memory and swap space.
pub fn pool(info: &MemoryInfo) -> String {
    let room = |what: &str, all: u64, free: u64| {
        let used = all.saturating_sub(free);
        let percent = if all == 0 { 0 } else { u128::from(used) * 100 / u128::from(all) };
        format!("{what}: {}, used {} ({percent} %), free {}\n", memory(all), memory(used), memory(free))
    };
    let pool = room("pool of the VMs", info.total, info.free);
    if info.swap_total == 0 {
        return pool + "no swap space\n";
    }
    let MemoryInfo { vms, suspended, waiting, page_ins, page_outs, .. } = info;
    pool + &room("swap space", info.swap_total, info.swap_free)
        + &format!("VMs: {vms}, of which {suspended} are swapped out whole, {waiting} wait for memory\n")
        + &format!("pages read from swap space: {page_ins}, written: {page_outs}\n")
}

/// The list of virtual disks, and the blocks of the partition: all, free.
pub fn disks(disks: &[DiskInfo], (all, free): (u64, u64)) -> String {
    let kib = |blocks: u64| memory(blocks.saturating_mul(4));
    let room = format!("room for virtual disks: {}, free {}\n", kib(all), kib(free));
    if disks.is_empty() {
        return format!("there are no virtual disks\n{room}");
    }
    let row = |disk: &DiskInfo| {
        let users = match (disk.users, disk.written) {
            (0, _) => "-".to_string(),
            (_, true) => "one VM, which writes".to_string(),
            (1, false) => "one VM".to_string(),
            (users, false) => format!("{users} VMs"),
        };
        [disk.name.clone(), kib(disk.blocks), users]
    };
    table(["DISK", ">SIZE", "USED BY"], &disks.iter().map(row).collect::<alloc::vec::Vec<_>>()) + &room
}

/// The list of devices.
pub fn devices(devices: &[DeviceInfo]) -> String {
    if devices.is_empty() {
        return "there are no PCI devices\n".into();
    }
    let row = |device: &DeviceInfo| {
        let location = device.location;
        [
            format!("{:02x}:{:02x}.{}", location >> 8, location >> 3 & 31, location & 7),
            format!("{:04x}:{:04x}", device.vendor, device.device),
            format!("{:06x}", device.class),
            class(device.class).into(),
            if device.claimed { "yes".into() } else { "-".into() },
        ]
    };
    table(["PLACE", "DEVICE", "CLASS", "WHAT", "DRIVEN"], &devices.iter().map(row).collect::<alloc::vec::Vec<_>>())
}

/// The name of a PCI class and subclass; the programming interface does not matter here (PCI Code and ID Assignment Specification).
fn class(class: u32) -> &'static str {
    match (class >> 16, class >> 8 & 0xff) {
        (0x01, 0x00) => "SCSI controller",
        (0x01, 0x01) => "IDE controller",
        (0x01, 0x06) => "SATA controller",
        (0x01, 0x08) => "NVMe controller",
        (0x01, _) => "storage controller",
        (0x02, 0x00) => "Ethernet controller",
        (0x02, _) => "network controller",
        (0x03, _) => "display controller",
        (0x04, _) => "multimedia controller",
        (0x05, _) => "memory controller",
        (0x06, 0x00) => "host bridge",
        (0x06, 0x01) => "ISA bridge",
        (0x06, 0x04) => "PCI bridge",
        (0x06, _) => "bridge",
        (0x07, _) => "communication controller",
        (0x08, _) => "system device",
        (0x09, _) => "input device",
        (0x0c, 0x03) => "USB controller",
        (0x0c, 0x05) => "SMBus controller",
        (0x0c, _) => "serial bus controller",
        _ => "other device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_servers() {
        let server = |name: &str, state, restarts| ServerInfo {
            name: name.into(),
            program: if name == "nic" { "e1000".into() } else { name.into() },
            state,
            restarts,
            memory: 4096,
            cpu_time: 12_000_000,
        };
        let text = servers(&[server("swap", State::Running, 0), server("nic", State::GivenUp, 12)]);
        let lines = [
            "SERVER  PROGRAM  STATE     RESTARTS    MEMORY      CPU",
            "swap    swap     running          0  4096 KiB  0.012 s",
            "nic     e1000    given up        12  4096 KiB  0.012 s",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn a_list_of_vms() {
        let vm = VmInfo {
            number: 3,
            name: "httpd-1".into(),
            image: "httpd".into(),
            address: [10, 0, 2, 15],
            memory: 2048,
            used: 300,
            cpu_time: 1_000_000,
            stopped: None,
        };
        let stopped = VmInfo { number: 4, stopped: Some("exit with code 3".into()), ..vm.clone() };
        let out = VmInfo { used: 0, cpu_time: 0, ..vm.clone() };
        let text = vms(&[vm, stopped, out]);
        assert!(text.lines().nth(1).unwrap().ends_with("0.001 s  running"));
        assert!(text.lines().nth(2).unwrap().ends_with("stopped: exit with code 3"));
        assert!(text.lines().nth(3).unwrap().ends_with("0 KiB        -  swapped out"), "{text}");
        assert!(text.contains("10.0.2.15"));
        assert_eq!(vms(&[]), "there are no VMs\n");
    }

    #[test]
    fn a_list_of_disks() {
        let disk = |name: &str, users, written| DiskInfo { name: name.into(), blocks: 4096, users, written };
        let text = disks(&[disk("data", 1, true), disk("content", 7, false), disk("old", 0, false)], (65_408, 53_120));
        let lines = [
            "DISK         SIZE  USED BY",
            "data     16384 KiB  one VM, which writes",
            "content  16384 KiB  7 VMs",
            "old      16384 KiB  -",
            "room for virtual disks: 255 MiB, free 207 MiB",
        ];
        let squeezed = |line: &str| line.split_whitespace().collect::<alloc::vec::Vec<_>>().join(" ");
        let told: alloc::vec::Vec<_> = text.lines().map(squeezed).collect();
        assert_eq!(told, lines.map(|line| squeezed(&line.replace("16384 KiB", &memory(16384)))));
        assert!(disks(&[], (5, 5)).starts_with("there are no virtual disks\n"));
    }

    #[test]
    fn memory_and_devices() {
        let none = MemoryInfo { total: 400_000, free: 300_000, ..MemoryInfo::default() };
        assert_eq!(pool(&none), "pool of the VMs: 390 MiB, used 97 MiB (25 %), free 292 MiB\nno swap space\n");
        assert!(pool(&MemoryInfo::default()).contains("(0 %)"));
        assert!(pool(&MemoryInfo { total: u64::MAX, ..MemoryInfo::default() }).contains("(100 %)"));
        let swap = MemoryInfo { swap_total: 800_000, swap_free: 600_000, vms: 80, suspended: 60, waiting: 2, ..none };
        let lines = [
            "pool of the VMs: 390 MiB, used 97 MiB (25 %), free 292 MiB",
            "swap space: 781 MiB, used 195 MiB (25 %), free 585 MiB",
            "VMs: 80, of which 60 are swapped out whole, 2 wait for memory",
            "pages read from swap space: 123, written: 456",
        ];
        let text = pool(&MemoryInfo { page_ins: 123, page_outs: 456, ..swap });
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
        let device = DeviceInfo { location: 0x0010, vendor: 0x1af4, device: 0x1041, class: 0x02_0000, claimed: true };
        assert_eq!(devices(&[device]).lines().nth(1).unwrap(), "00:02.0  1af4:1041  020000  Ethernet controller  yes");
        assert_eq!(devices(&[]), "there are no PCI devices\n");
    }
}
