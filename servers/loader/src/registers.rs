//! The virtual register page of a new VM.

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

/// Makes a page, in which another VM's may stand, that of the VM `vm`.
pub fn build(page: &mut RegisterPage, machine: &Machine, vm: &Vm, own: &Own) -> Result<(), TooLong> {
    page.version = ARCHITECTURE_VERSION;
    page.clone_generation = 0;
    page.vm = own.number;
    page.memory = own.memory;
    page.tsc_base = machine.tsc_base;
    page.tsc_multiplier = machine.tsc_multiplier;
    page.wall_clock = machine.wall_clock;
    page.created = own.created;
    page.seed = own.seed;
    page.disks = own.disks;
    page.mac = vm.mac;
    let network = if vm.address == [0; 4] { &Network::default() } else { &machine.network };
    page.prefix = network.prefix;
    page.address = vm.address;
    page.gateway = network.gateway;
    page.name_server = network.name_server;
    put::<NAME>(&mut page.name, &mut page.name_length, &vm.name)?;
    put::<ARGUMENTS>(&mut page.arguments, &mut page.arguments_length, &vm.arguments)
}

/// Puts a text in the place of the one that stands in `to`.
fn put<const N: usize>(to: &mut [u8; N], length: &mut u16, text: &str) -> Result<(), TooLong> {
    to.get_mut(..usize::from(*length)).ok_or(TooLong)?.fill(0);
    *length = 0;
    to.get_mut(..text.len()).ok_or(TooLong)?.copy_from_slice(text.as_bytes());
    *length = u16::try_from(text.len()).map_err(|_| TooLong)?;
    Ok(())
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

    fn page_of(vm: &Vm) -> Result<RegisterPage, TooLong> {
        let mut page = RegisterPage::ZERO;
        build(&mut page, &MACHINE, vm, &OWN).map(|()| page)
    }

    #[test]
    fn nothing_of_the_vm_before_is_left() {
        let long = Vm { name: "a-longer-name".to_string(), arguments: "secret=yes more".to_string(), ..vm() };
        let none = Vm { address: [0; 4], arguments: String::new(), name: "x".to_string(), ..vm() };
        for next in [vm(), none] {
            let mut page = RegisterPage { clone_generation: 7, ..page_of(&long).unwrap() };
            let own = Own { seed: [9; 32], number: 77, ..OWN };
            build(&mut page, &MACHINE, &long, &own).unwrap();
            build(&mut page, &MACHINE, &next, &OWN).unwrap();
            assert!(page == page_of(&next).unwrap());
            // Nor after one that was refused.
            let long = Vm { arguments: String::from_utf8(std::vec![b'a'; ARGUMENTS + 1]).unwrap(), ..vm() };
            assert!(build(&mut page, &MACHINE, &long, &own).is_err());
            build(&mut page, &MACHINE, &next, &OWN).unwrap();
            assert!(page == page_of(&next).unwrap());
        }
    }

    #[test]
    fn says_who_the_vm_is() {
        let page = page_of(&vm()).unwrap();
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
        let page = page_of(&Vm { address: [0; 4], ..vm() }).unwrap();
        assert_eq!((page.prefix, page.gateway, page.name_server), (0, [0; 4], [0; 4]));
    }

    #[test]
    fn long_texts_are_refused() {
        let text = |length| String::from_utf8(std::vec![b'a'; length]).unwrap();
        assert!(page_of(&Vm { name: text(NAME), ..vm() }).is_ok());
        assert!(page_of(&Vm { name: text(NAME + 1), ..vm() }).is_err());
        assert!(page_of(&Vm { arguments: text(ARGUMENTS), ..vm() }).is_ok());
        assert!(page_of(&Vm { arguments: text(ARGUMENTS + 1), ..vm() }).is_err());
    }
}
