//! What a VM has at other servers: its disks, its port at the switch, its console.

use super::{Loader, NO_SUCH_SERVER, again, unexpected};
use crate::{disks, guest::Guest, peers::Peers};
use alloc::{borrow::ToOwned, format, string::String, vec::Vec};
use protocol::{
    manifest::Vm,
    service::{VmNumber, VmRef, console, switch},
};

/// A VM that gets a port and a console.
#[derive(Clone, Copy)]
pub(super) struct Attaching<'a> {
    pub vm: &'a Vm,
    pub guest: &'a Guest,
    pub number: VmNumber,
    /// Where it is.
    pub at: VmRef,
}

impl Loader<'_> {
    /// Gives VMs their ports at the switch. Of each, why it cannot have one; a switch that is gone is no reason to refuse a VM: it is
    /// attached when the server is back.
    pub(super) fn attach_nics(peers: &mut impl Peers, vms: &[Attaching]) -> Vec<Option<String>> {
        let mut refused: Vec<_> = vms.iter().map(|_| None).collect();
        let with: Vec<_> = vms.iter().zip(&mut refused).filter(|(vm, _)| vm.guest.nic().is_some()).collect();
        let port = |Attaching { vm, guest, number, at }: &Attaching| {
            let (queue, length) = guest.nic().unwrap_or_default();
            switch::Attachment { vm: *number, at: *at, mac: vm.mac, address: vm.address, queue, length }
        };
        let ports: Vec<_> = with.iter().map(|(vm, _)| port(vm)).collect();
        if ports.is_empty() {
            return refused;
        }
        let request = switch::Request::Attach(ports);
        match again(|| peers.switch(&request)) {
            Ok(switch::Response::Attached(attached)) if attached.len() == with.len() => {
                for ((vm, refused), attached) in with.into_iter().zip(attached) {
                    match attached {
                        switch::Attached::Done => {}
                        switch::Attached::Clash => {
                            *refused = Some("its MAC or IP address belongs to another VM".to_owned());
                        }
                        switch::Attached::Full => *refused = Some("the switch has no port left".to_owned()),
                        switch::Attached::BadWindow => {
                            peers.log(format_args!("vm {} has no network: the switch refuses its window", vm.vm.name));
                        }
                    }
                }
            }
            other => {
                let why = match other {
                    Err(NO_SUCH_SERVER) => "network: there is no switch".to_owned(),
                    other => format!("network now: {}", unexpected(other)),
                };
                with.iter().for_each(|(vm, _)| peers.log(format_args!("vm {} has no {why}", vm.vm.name)));
            }
        }
        refused
    }

    /// Gives VMs their consoles. Without one a VM is started all the same.
    pub(super) fn attach_consoles(peers: &mut impl Peers, vms: &[Attaching]) {
        let with = || vms.iter().filter_map(|vm| Some((vm, vm.guest.console()?)));
        let consoles: Vec<_> = with()
            .map(|(vm, page)| {
                // So that those of a batch fit into a message.
                let name = vm.vm.name.get(..vm.vm.name.floor_char_boundary(console::NAME_MAX)).unwrap_or_default();
                console::Attachment { vm: vm.number, at: vm.at, name, page }
            })
            .collect();
        if consoles.is_empty() {
            return;
        }
        let request = console::Request::Attach(consoles);
        match again(|| peers.console(&request)) {
            Ok(console::Response::Attached(attached)) => {
                for ((vm, _), attached) in with().zip(attached) {
                    let why = match attached {
                        console::Attached::Done => continue,
                        console::Attached::Full => "no room for another",
                        console::Attached::BadPage => "the console refuses its page",
                    };
                    peers.log(format_args!("vm {} has no console: {why}", vm.vm.name));
                }
            }
            // Nobody can be told then.
            Err(NO_SUCH_SERVER) => {}
            other => {
                let why = unexpected(other);
                with().for_each(|(vm, _)| peers.log(format_args!("vm {} has no console now: {why}", vm.vm.name)));
            }
        }
    }

    /// After a restart of the switch, the console, the server of virtual disks or the loader: a VM gets back what it has lost.
    pub(super) fn attach_again(&mut self, peers: &mut impl Peers, index: usize, at: VmRef) {
        let (Some(vm), Some(number)) = (self.vms.get(index), self.table.running(index)) else { return };
        let Ok(guest) = self.guest(&vm) else { return };
        let lost = guest.nic().is_some()
            && !matches!(
                again(|| peers.switch(&switch::Request::IsAttached(number))),
                Ok(switch::Response::Done) | Err(NO_SUCH_SERVER)
            );
        let attaching = [Attaching { vm: &vm, guest: &guest, number, at }];
        if lost && let Some(Some(reason)) = Self::attach_nics(peers, &attaching).pop() {
            peers.log(format_args!("vm {} has no network now: {reason}", vm.name));
        }
        if disks::are_lost(peers, &vm, &guest, number)
            && let Err(reason) = disks::attach(peers, &vm, &guest, number, at)
        {
            peers.log(format_args!("vm {} has no disks now: {reason}", vm.name));
        }
        // The console takes it in the place of the one before.
        Self::attach_consoles(peers, &attaching);
    }

    /// A server was restarted: all VMs get back what they have lost there, bit by bit ([`Loader::attach_some`]).
    pub fn peer_restarted(&mut self) {
        self.attaching = Some(0);
    }

    /// Gives some VMs back what they have lost by the restart of a server. Where they are is known to the pager only. Whether there are more.
    pub fn attach_some(&mut self, peers: &mut impl Peers) -> bool {
        let Some(position) = self.attaching else { return false };
        self.attaching = self.each_listed(peers, position, |loader, peers, entry| {
            let Some(index) = loader.table.of(entry.vm) else { return };
            if let Some(vm) = loader.vms.get(index) {
                loader.learn(index, vm.image, &entry);
            }
            match &entry.stop {
                // The pager does not tell of it again.
                Some(stop) => loader.stopped(peers, index, stop),
                None => loader.attach_again(peers, index, entry.at.unwrap_or(VmRef::NOWHERE)),
            }
        });
        self.attaching.is_some()
    }
}
