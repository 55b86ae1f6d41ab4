//! A readable account of a system: what each server holds, whom it calls, and what VMs there are.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use protocol::disk::BLOCK;
use protocol::manifest::{Channel, Resource, Restart, Server};

use super::System;
use super::servers::INIT;
use super::types::{Mac, PortRange, Size};

/// Runs of VMs of one kind longer than this are shown by their ends.
const RUN_MAX: usize = 8;

/// The report.
pub fn report(system: &System) -> String {
    let mut out = String::new();
    let manifest = &system.manifest;
    let network = &manifest.network;
    let _ = writeln!(out, "System {}: {} of memory, {} processors", system.name, system.memory, system.cpus);
    let _ = writeln!(
        out,
        "Network {}/{}, gateway {}, name server {}",
        Ipv4Addr::from(network.address),
        network.prefix,
        Ipv4Addr::from(network.gateway),
        Ipv4Addr::from(network.name_server)
    );
    let _ = writeln!(out, "\nServers, in the order in which they start (`{INIT}` starts them):");
    for server in &manifest.servers {
        server_lines(&mut out, server, &manifest.servers);
    }
    if !system.disks.is_empty() {
        let _ = writeln!(out, "\nDisks:");
        for disk in &system.disks {
            let _ = write!(out, "  {}: {}", disk.name, disk.size);
            for (kind, size) in &disk.partitions {
                let _ = write!(out, ", {} {size}", kind.name());
            }
            let _ = writeln!(out);
        }
    }
    if !manifest.vms.is_empty() {
        let _ = writeln!(out, "\nVMs:");
        vm_lines(&mut out, system);
    }
    let servers: u64 = manifest.servers.iter().map(|server| server.memory).sum();
    let stated: u64 = manifest.vms.iter().map(|vm| vm.memory).sum();
    let open = manifest.vms.iter().filter(|vm| vm.memory == 0).count();
    let _ = write!(out, "\nMemory: {} for servers, {} for VMs", Size(servers), Size(stated));
    let _ = match open {
        0 => writeln!(out),
        _ => writeln!(out, ", and what the images of {open} VMs ask for"),
    };
    out
}

fn server_lines(out: &mut String, server: &Server, all: &[Server]) {
    let band = if server.band == 0 { "driver" } else { "server" };
    let files: Vec<_> = server.programs.iter().map(|program| program.file.as_str()).collect();
    let program = if files == [server.name.as_str()] { String::new() } else { format!(" ({})", files.join(", or ")) };
    let _ = writeln!(out, "  {}{program}: {band}, {}, {}", server.name, Size(server.memory), restart(server.restart));
    for channel in &server.channels {
        let _ = writeln!(
            out,
            "    calls {} (interrupt line {} back, {} there)",
            callee(channel, all),
            channel.line,
            channel.remote_line
        );
    }
    for program in server.programs.iter().filter(|program| !program.pci_devices.is_empty()) {
        let ids: Vec<_> = program.pci_devices.iter().map(ToString::to_string).collect();
        let _ = writeln!(out, "    {} drives PCI devices {}", program.file, ids.join(", "));
    }
    for resource in &server.resources {
        let _ = writeln!(out, "    holds {}", holds(resource));
    }
    for (key, value) in &server.options {
        let _ = writeln!(out, "    option {key} = {value}");
    }
}

fn callee<'a>(channel: &Channel, all: &'a [Server]) -> &'a str {
    all.get(usize::from(channel.to)).map_or(INIT, |server| &server.name)
}

fn restart(restart: Restart) -> String {
    match restart {
        Restart::Never => "never restarted".into(),
        Restart::Always { pause, most, window } => {
            format!("restarted after {pause} ms, given up after {most} deaths in {} s", f64::from(window) / 1000.0)
        }
    }
}

fn holds(resource: &Resource) -> String {
    match resource {
        Resource::Ports { first, count } => {
            format!("I/O ports {}", PortRange { first: *first, last: first.saturating_add(count - 1) })
        }
        Resource::Platform => "the platform: firmware tables, all device registers, interrupt authority".into(),
        Resource::IsaInterrupt { number } => format!("interrupt {number} of the legacy PC"),
        Resource::Shared { name, bytes } => format!("shared memory `{name}`, {}", Size(*bytes)),
        Resource::Bundle => "the bundle, read-only".into(),
        Resource::Pool => "the memory pool of the VMs".into(),
        Resource::Devices { device } => {
            let device = ["NICs", "disks", "consoles"].get(usize::from(*device).wrapping_sub(1)).unwrap_or(&"devices");
            format!("doorbell and window of the VMs' {device}")
        }
        Resource::Debug => "the kernel's debug line".into(),
        Resource::Screen => "the screen".into(),
    }
}

fn vm_lines(out: &mut String, system: &System) {
    let mut rest = &system.vms[..];
    while let Some(first) = rest.first() {
        let same = |plan: &&super::vms::VmPlan| plan.at == first.at && plan.vm.image == first.vm.image;
        let (run, others) = rest.split_at(rest.iter().take_while(same).count());
        rest = others;
        for (index, plan) in run.iter().enumerate() {
            if run.len() > RUN_MAX && index == 3 {
                let _ = writeln!(out, "  … {} more …", run.len() - 4);
            }
            if run.len() > RUN_MAX && (3..run.len() - 1).contains(&index) {
                continue;
            }
            let vm = &plan.vm;
            let memory = if vm.memory == 0 { "memory as the image says".into() } else { Size(vm.memory).to_string() };
            let _ = write!(out, "  {}: image {}, {memory}, {} {}", vm.name, vm.image, plan.address(), Mac(vm.mac));
            for service in &plan.services {
                let _ = write!(out, ", {} on port {}", if service.http { "HTTP" } else { "TCP" }, service.port);
            }
            for disk in &vm.disks {
                let _ = write!(out, ", disk {}", disk.name);
                if disk.blocks > 0 {
                    let _ = write!(out, " of {}", Size(disk.blocks.saturating_mul(BLOCK as u64)));
                }
                if disk.read_only {
                    let _ = write!(out, " (read-only)");
                }
            }
            let _ = match vm.arguments.as_str() {
                "" => writeln!(out),
                arguments => writeln!(out, ", arguments \"{arguments}\""),
            };
        }
    }
}
