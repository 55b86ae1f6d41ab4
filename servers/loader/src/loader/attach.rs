//! What a VM has at other servers: its disks, its port at the switch, its console.

use super::{Loader, NO_SUCH_SERVER, again, unexpected};
use crate::{disks, guest::Guest, peers::Peers};
use alloc::{borrow::ToOwned, string::String};
use protocol::{
    manifest::Vm,
    service::{VmNumber, VmRef, console, switch},
};

impl Loader<'_> {
    /// Gives a VM its disks, its port at the switch and its console. A switch or console that is gone is no reason to refuse the VM: it is
    /// attached when the server is back. Without its disks a VM is not started.
    pub(super) fn attach(
        peers: &mut impl Peers,
        vm: &Vm,
        guest: &Guest,
        number: VmNumber,
        at: VmRef,
    ) -> Result<(), String> {
        disks::attach(peers, vm, guest, number, at)?;
        // There is nothing to take in the queues of a VM that has not run: it rings when there is.
        Self::attach_nic(peers, vm, guest, number, VmRef::NOWHERE)?;
        Self::attach_console(peers, &vm.name, guest, number, VmRef::NOWHERE);
        Ok(())
    }

    fn attach_nic(peers: &mut impl Peers, vm: &Vm, guest: &Guest, number: VmNumber, at: VmRef) -> Result<(), String> {
        if let Some((queue, length)) = guest.nic() {
            let request = switch::Request::Attach { vm: number, at, mac: vm.mac, address: vm.address, queue, length };
            match again(|| peers.switch(&request)) {
                Ok(switch::Response::Done) => {}
                Ok(switch::Response::Clash) => {
                    return Err("its MAC or IP address belongs to another VM".to_owned());
                }
                Ok(switch::Response::Full) => return Err("the switch has no port left".to_owned()),
                Err(NO_SUCH_SERVER) => peers.log(format_args!("vm {} has no network: there is no switch", vm.name)),
                other => peers.log(format_args!("vm {} has no network now: {}", vm.name, unexpected(other))),
            }
        }
        Ok(())
    }

    fn attach_console(peers: &mut impl Peers, name: &str, guest: &Guest, vm: VmNumber, at: VmRef) {
        let Some(page) = guest.console() else { return };
        match again(|| peers.console(&console::Request::Attach { vm, at, name, page })) {
            Ok(console::Response::Done) => {}
            // Nobody can be told then.
            Err(NO_SUCH_SERVER) => {}
            Ok(console::Response::Full) => peers.log(format_args!("vm {name} has no console: no room for another")),
            other => peers.log(format_args!("vm {name} has no console now: {}", unexpected(other))),
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
        if lost && let Err(reason) = Self::attach_nic(peers, &vm, &guest, number, at) {
            peers.log(format_args!("vm {} has no network now: {reason}", vm.name));
        }
        if disks::are_lost(peers, &vm, &guest, number)
            && let Err(reason) = disks::attach(peers, &vm, &guest, number, at)
        {
            peers.log(format_args!("vm {} has no disks now: {reason}", vm.name));
        }
        // The console takes it in the place of the one before.
        Self::attach_console(peers, &vm.name, &guest, number, at);
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
