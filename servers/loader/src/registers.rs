//! The virtual register page of a new VM.

use alloc::boxed::Box;
use protocol::{
    ARCHITECTURE_VERSION,
    disk::DISKS,
    manifest::{Network, Vm},
    registers::{ARGUMENTS, DiskRegister, NAME, RegisterPage},
};

/// What all VMs of a boot have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Machine {
    /// TSC at time 0.
    pub tsc_base: u64,
    /// Scale of the TSC.
    pub tsc_multiplier: u64,
    /// Nanoseconds since 1970 at time 0; 0: unknown.
    pub wall_clock: u64,
    /// The VMs' network.
    pub network: Network,
}

/// What one VM alone has, besides what the manifest says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Own {
    /// Number.
    pub number: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Time of creation.
    pub created: u64,
    /// Random bytes.
    pub seed: [u8; 32],
    /// Its disks.
    pub disks: [DiskRegister; DISKS],
}

/// Name or arguments do not fit into the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooLong;

/// The page of the VM `vm`.
pub fn build(machine: &Machine, vm: &Vm, own: &Own) -> Result<Box<RegisterPage>, TooLong> {
    let mut page = Box::new(RegisterPage::ZERO);
    page.version = ARCHITECTURE_VERSION;
    page.vm = own.number;
    page.memory = own.memory;
    page.tsc_base = machine.tsc_base;
    page.tsc_multiplier = machine.tsc_multiplier;
    page.wall_clock = machine.wall_clock;
    page.created = own.created;
    page.seed = own.seed;
    page.disks = own.disks;
    page.mac = vm.mac;
    if vm.address != [0; 4] {
        page.prefix = machine.network.prefix;
        page.address = vm.address;
        page.gateway = machine.network.gateway;
        page.name_server = machine.network.name_server;
    }
    page.name_length = put::<NAME>(&mut page.name, &vm.name)?;
    page.arguments_length = put::<ARGUMENTS>(&mut page.arguments, &vm.arguments)?;
    Ok(page)
}

/// Copies a text to the beginning of `to`; its length.
fn put<const N: usize>(to: &mut [u8; N], text: &str) -> Result<u16, TooLong> {
    let place = to.get_mut(..text.len()).ok_or(TooLong)?;
    place.copy_from_slice(text.as_bytes());
    u16::try_from(text.len()).map_err(|_| TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        string::{String, ToString},
        vec::Vec,
    };

    fn vm() -> Vm {
        Vm {
            name: "web-1".to_string(),
            image: "httpd".to_string(),
            memory: 0,
            mac: [2, 0, 0, 0, 0, 1],
            address: [10, 0, 2, 15],
            arguments: "port=80".to_string(),
            disks: Vec::new(),
        }
    }

    const MACHINE: Machine = Machine {
        tsc_base: 7,
        tsc_multiplier: 8,
        wall_clock: 9,
        network: Network { address: [10, 0, 2, 0], prefix: 24, gateway: [10, 0, 2, 2], name_server: [10, 0, 2, 3] },
    };
    const OWN: Own = Own { number: 3, memory: 1 << 20, created: 55, seed: [6; 32], disks: [DISK; DISKS] };
    const DISK: DiskRegister = DiskRegister { blocks: 4096, flags: 1 };

    #[test]
    fn says_who_the_vm_is() {
        let page = build(&MACHINE, &vm(), &OWN).unwrap();
        assert_eq!((page.version, page.vm, page.memory, page.created), (ARCHITECTURE_VERSION, 3, 1 << 20, 55));
        assert_eq!((page.tsc_base, page.tsc_multiplier, page.wall_clock), (7, 8, 9));
        assert_eq!((page.mac, page.address, page.prefix), ([2, 0, 0, 0, 0, 1], [10, 0, 2, 15], 24));
        assert_eq!((page.gateway, page.name_server, page.seed), ([10, 0, 2, 2], [10, 0, 2, 3], [6; 32]));
        assert_eq!(&page.name[..usize::from(page.name_length)], b"web-1");
        assert_eq!(&page.arguments[..usize::from(page.arguments_length)], b"port=80");
        assert_eq!((page.enabled, page.pending, page.mask, page.handler), (0, 0, 0, 0));
        assert_eq!((page.clone_generation, page.disks), (0, [DISK; DISKS]));
    }

    #[test]
    fn a_vm_without_address_has_no_network() {
        let page = build(&MACHINE, &Vm { address: [0; 4], ..vm() }, &OWN).unwrap();
        assert_eq!((page.prefix, page.gateway, page.name_server), (0, [0; 4], [0; 4]));
    }

    #[test]
    fn long_texts_are_refused() {
        let text = |length| String::from_utf8(std::vec![b'a'; length]).unwrap();
        assert!(build(&MACHINE, &Vm { name: text(NAME), ..vm() }, &OWN).is_ok());
        assert!(build(&MACHINE, &Vm { name: text(NAME + 1), ..vm() }, &OWN).is_err());
        assert!(build(&MACHINE, &Vm { arguments: text(ARGUMENTS), ..vm() }, &OWN).is_ok());
        assert!(build(&MACHINE, &Vm { arguments: text(ARGUMENTS + 1), ..vm() }, &OWN).is_err());
    }
}
