//! Which ports of the host lead to which service of which VM.

use std::net::{Ipv4Addr, TcpListener};

use miette::{Result, miette};

use super::qemu::{Forward, Network};
use crate::system::System;
use crate::system::vms::{Service, VmPlan};

/// First port of the host if nothing else is said.
pub const BASE: u16 = 8080;
/// Most services that are made reachable: each costs QEMU a socket.
const MOST: usize = 256;

/// A service of a VM that can be reached from the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reachable {
    /// The VM's name.
    pub vm: String,
    /// The VM's address.
    pub address: Ipv4Addr,
    /// Its service.
    pub service: Service,
    /// Port on 127.0.0.1.
    pub host: u16,
}

impl Reachable {
    /// Where to point a browser, or another client.
    pub fn place(&self) -> String {
        match self.service.http {
            true => format!("http://127.0.0.1:{}/", self.host),
            false => format!("127.0.0.1 port {}", self.host),
        }
    }
}

fn services(system: &System) -> impl Iterator<Item = (&VmPlan, Service)> {
    system.vms.iter().flat_map(|plan| plan.services.iter().map(move |service| (plan, *service)))
}

/// Gives the services of all VMs consecutive ports from `base` on. Also how many got none.
pub fn assign(system: &System, base: u16) -> Result<(Vec<Reachable>, usize)> {
    let all = services(system).count();
    let mut reachable = Vec::new();
    for (index, (plan, service)) in services(system).take(MOST).enumerate() {
        let host = u16::try_from(index).ok().and_then(|index| base.checked_add(index));
        let host = host.filter(|host| *host > 0).ok_or_else(|| {
            miette!(help = "choose a lower --port", "{} services do not fit above port {base}", all.min(MOST))
        })?;
        reachable.push(Reachable { vm: plan.vm.name.clone(), address: plan.address(), service, host });
    }
    Ok((reachable, all.saturating_sub(MOST)))
}

/// Gives the services of all VMs ports that are free right now; for tests.
pub fn assign_free(system: &System) -> Result<Vec<Reachable>> {
    let mut held = Vec::new();
    let mut reachable = Vec::new();
    for (plan, service) in services(system).take(MOST) {
        let (listener, host) = free_port()?;
        held.push(listener);
        reachable.push(Reachable { vm: plan.vm.name.clone(), address: plan.address(), service, host });
    }
    Ok(reachable)
}

/// A TCP port that is free, and the socket that keeps it so.
pub fn free_port() -> Result<(TcpListener, u16)> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| {
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    });
    bound.map_err(|error| miette!("no free TCP port on 127.0.0.1: {error}"))
}

/// An error with advice if a port is in use.
pub fn check_free(reachable: &[Reachable]) -> Result<()> {
    for Reachable { host, vm, .. } in reachable {
        if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, *host)) {
            return Err(miette!(
                help = format!(
                    "choose other ports with `--port BASE`, or end the program that holds it: `ss -ltnp 'sport = :{host}'` names it"
                ),
                "port {host} on 127.0.0.1, which should lead to VM `{vm}`, cannot be had: {error}"
            ));
        }
    }
    Ok(())
}

/// The user-mode network of a system with these services.
pub fn network(system: &System, reachable: &[Reachable]) -> Network {
    let network = &system.manifest.network;
    let forward = |r: &Reachable| Forward { host: r.host, address: r.address, port: r.service.port };
    Network::User {
        network: (network.address.into(), network.prefix),
        gateway: network.gateway.into(),
        name_server: network.name_server.into(),
        forwards: reachable.iter().map(forward).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::System;
    use std::path::Path;

    fn system() -> System {
        let text = "
            server = [{ name = 'swap', memory = '4 MiB', pool = true, bundle = true }]
            vm = [{ name = 'web', count = 2, http = 80, tcp = [22] }, { name = 'quiet', image = 'web' }]";
        let known = ["swap", "web"].map(String::from).into();
        System::parse(Path::new("test.toml"), text, &known).expect("a possible system")
    }

    #[test]
    fn services_get_consecutive_ports() {
        let (reachable, left) = assign(&system(), 9000).expect("there is room");
        let places: Vec<_> = reachable.iter().map(|r| (r.vm.as_str(), r.place())).collect();
        let expected = [
            ("web-1", "http://127.0.0.1:9000/".to_string()),
            ("web-1", "127.0.0.1 port 9001".to_string()),
            ("web-2", "http://127.0.0.1:9002/".to_string()),
            ("web-2", "127.0.0.1 port 9003".to_string()),
        ];
        assert_eq!((places.as_slice(), left), (&expected[..], 0));
        assign(&system(), 65534).expect_err("there is no port 65536");
    }

    #[test]
    fn a_port_in_use_is_told_with_advice() {
        let (held, port) = free_port().expect("a free port");
        let (reachable, _) = assign(&system(), port).expect("there is room");
        let error = check_free(&reachable).expect_err("it is held");
        assert!(error.to_string().contains(&format!("port {port}")));
        assert!(error.help().expect("advice").to_string().contains("--port"));
        drop(held);
    }

    #[test]
    fn tests_get_ports_that_nobody_holds() {
        let reachable = assign_free(&system()).expect("free ports");
        check_free(&reachable).expect("they are free");
        let Network::User { forwards, .. } = network(&system(), &reachable) else { panic!("a user-mode network") };
        assert_eq!(forwards.len(), 4);
        assert_eq!((forwards[2].address, forwards[2].port), (Ipv4Addr::new(10, 0, 2, 16), 80));
    }
}
