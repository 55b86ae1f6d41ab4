//! The virtual disks of VMs: looked up, made if the system file says so, attached and detached.

use crate::{
    guest::Guest,
    loader::{NO_SUCH_SERVER, again, unexpected},
    peers::Peers,
};
use alloc::{
    borrow::ToOwned,
    format,
    string::{String, ToString},
};
use protocol::{
    disk::{BLOCK, DISKS},
    manifest::{Disk, Vm},
    registers::{DISK_READ_ONLY, DiskRegister},
    service::{
        VmNumber, VmRef,
        vdisk::{DiskInfo, Request, Response, Wanted},
    },
};
use server_runtime::CallError;

/// Kilobytes of so many blocks.
fn kib(blocks: u64) -> u64 {
    blocks.saturating_mul(BLOCK as u64 / 1024)
}

/// The registers of a VM's disks. A disk that is not there is made if the manifest says a size; else, or if that fails, why the VM
/// cannot be started.
pub fn registers(peers: &mut impl Peers, vm: &Vm) -> Result<[DiskRegister; DISKS], String> {
    let mut registers = [DiskRegister::default(); DISKS];
    if vm.disks.len() > DISKS {
        return Err(format!("it has {} disks; at most {DISKS} are possible", vm.disks.len()));
    }
    for (register, disk) in registers.iter_mut().zip(&vm.disks) {
        register.blocks = find(peers, disk)?.blocks;
        register.flags = if disk.read_only { DISK_READ_ONLY } else { 0 };
    }
    Ok(registers)
}

fn find(peers: &mut impl Peers, disk: &Disk) -> Result<DiskInfo, String> {
    let name = &disk.name;
    let mut made = false;
    loop {
        match again(|| peers.vdisk(&Request::Find(name.clone()))) {
            Ok(Response::Disk(info)) => return Ok(info),
            Ok(Response::NotFound) if disk.blocks > 0 && !made => made = true,
            Ok(Response::NotFound) => return Err(format!("there is no virtual disk `{name}`")),
            other => return Err(format!("no virtual disk `{name}`: {}", reason(other))),
        }
        let request = Request::Create { name: name.clone(), blocks: disk.blocks };
        match again(|| peers.vdisk(&request)) {
            // It may have been made by the call before, that a restart has cut off.
            Ok(Response::Done | Response::Exists) => {}
            Ok(Response::Full) => {
                return Err(format!("no room for virtual disk `{name}` of {} KiB", kib(disk.blocks)));
            }
            other => return Err(format!("virtual disk `{name}` cannot be made: {}", reason(other))),
        }
    }
}

/// Gives a VM its disks; or why not.
pub fn attach(peers: &mut impl Peers, vm: &Vm, guest: &Guest, number: VmNumber, at: VmRef) -> Result<(), String> {
    let Some((queue, length)) = guest.disk().filter(|_| !vm.disks.is_empty()) else { return Ok(()) };
    let wanted = |disk: &Disk| Wanted { name: disk.name.clone(), read_only: disk.read_only };
    let disks = vm.disks.iter().map(wanted).collect();
    let request = Request::Attach { vm: number, at, queue, length, disks };
    match again(|| peers.vdisk(&request)) {
        Ok(Response::Done) => Ok(()),
        Ok(Response::InUse) => Err(format!("another VM has one of its virtual disks ({})", names(vm))),
        Ok(Response::NotFound) => Err(format!("one of its virtual disks ({}) is not there", names(vm))),
        other => Err(format!("it does not get its virtual disks ({}): {}", names(vm), reason(other))),
    }
}

/// Whether a VM that should have disks has none: the server was restarted.
pub fn are_lost(peers: &mut impl Peers, vm: &Vm, guest: &Guest, number: VmNumber) -> bool {
    guest.disk().is_some()
        && !vm.disks.is_empty()
        && !matches!(again(|| peers.vdisk(&Request::IsAttached(number))), Ok(Response::Done) | Err(NO_SUCH_SERVER))
}

/// Takes a VM's disks back.
pub fn detach(peers: &mut impl Peers, vm: VmNumber) {
    let _ = again(|| peers.vdisk(&Request::Detach(vm)));
}

fn names(vm: &Vm) -> String {
    vm.disks.iter().map(|disk| disk.name.as_str()).collect::<alloc::vec::Vec<_>>().join(", ")
}

fn reason(answer: Result<Response, CallError>) -> String {
    match answer {
        Ok(Response::NoStore(why) | Response::Failed(why)) => why,
        Err(NO_SUCH_SERVER) => "the system has no server for virtual disks".to_owned(),
        Err(error) => error.to_string(),
        other => unexpected(other),
    }
}
