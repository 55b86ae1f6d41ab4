//! The check of the manifest. The builder has checked more than this, with errors that name the line; here is what
//! `init` itself relies on, because a bundle can be damaged or made by something else.

use alloc::{
    format,
    string::{String, ToString},
};
use protocol::{
    domain::line,
    layout::PAGE,
    manifest::{Channel, MANIFEST_VERSION, Manifest, Resource, Server},
};

/// Most servers: their index is a badge and a tag, and every one has at least a line of a log.
pub const SERVERS_MAX: usize = 256;

/// Most programs of a server: their number is a `u8`.
const PROGRAMS_MAX: usize = 256;

/// `Err` with the reason if the manifest cannot be carried out.
pub fn check(manifest: &Manifest) -> Result<(), String> {
    if manifest.version != MANIFEST_VERSION {
        return Err(format!("it is of version {}, this init knows {MANIFEST_VERSION}", manifest.version));
    }
    if manifest.servers.is_empty() || manifest.servers.len() > SERVERS_MAX {
        return Err(format!("it has {} servers, not 1 to {SERVERS_MAX}", manifest.servers.len()));
    }
    for (index, server) in manifest.servers.iter().enumerate() {
        check_server(manifest, index, server).map_err(|reason| format!("server {:?}: {reason}", server.name))?;
    }
    for (resource, what) in [(Resource::Pool, "pool"), (Resource::Screen, "screen")] {
        if manifest.servers.iter().filter(|server| server.resources.contains(&resource)).count() > 1 {
            return Err(format!("two servers hold the {what}"));
        }
    }
    Ok(())
}

fn check_server(manifest: &Manifest, index: usize, server: &Server) -> Result<(), String> {
    if server.name.is_empty() || server.name == "init" {
        return Err("this is no name for a server".to_string());
    }
    if manifest.servers[..index].iter().any(|other| other.name == server.name) {
        return Err("the name is taken".to_string());
    }
    if server.programs.is_empty() || server.programs.len() > PROGRAMS_MAX {
        return Err(format!("it has {} programs, not 1 to {PROGRAMS_MAX}", server.programs.len()));
    }
    if server.band().is_none() {
        return Err(format!("no server may be in band {}", server.band));
    }
    if !server.memory.is_multiple_of(PAGE) {
        return Err(format!("its memory of {} bytes is not a multiple of {PAGE}", server.memory));
    }
    for channel in &server.channels {
        if channel.to != Channel::INIT && usize::from(channel.to) >= index {
            return Err("it calls a server that does not come before it".to_string());
        }
        if server.channels.iter().filter(|other| other.to == channel.to).count() > 1 {
            return Err("it has two channels to the same server".to_string());
        }
    }
    check_lines(manifest, index, server)?;
    server.resources.iter().try_for_each(|resource| check_resource(manifest, resource))
}

/// The lines that peers raise on a server: in their range, none used twice.
fn check_lines(manifest: &Manifest, index: usize, server: &Server) -> Result<(), String> {
    let from_servers = server.channels.iter().map(|channel| channel.line);
    let clients = manifest.servers.iter().flat_map(|client| &client.channels);
    let from_clients = clients.filter(|channel| usize::from(channel.to) == index).map(|channel| channel.remote_line);
    let mut used = 0u64;
    for number in from_servers.chain(from_clients) {
        if !(line::PEER_FIRST..line::HARDWARE_FIRST).contains(&number) {
            return Err(format!("line {number} is none that a peer may raise"));
        }
        if used & 1 << number != 0 {
            return Err(format!("line {number} is raised by two peers"));
        }
        used |= 1 << number;
    }
    Ok(())
}

fn check_resource(manifest: &Manifest, resource: &Resource) -> Result<(), String> {
    match resource {
        Resource::Ports { first, count } => {
            if *count == 0 || u32::from(*first) + u32::from(*count) > 0x1_0000 {
                return Err(format!("there are no {count} ports from {first:#x} on"));
            }
        }
        Resource::Shared { name, bytes } => {
            if *bytes == 0 || !bytes.is_multiple_of(PAGE) {
                return Err(format!("shared memory {name:?} of {bytes} bytes is not a multiple of {PAGE}"));
            }
            let others = manifest.servers.iter().flat_map(|server| &server.resources);
            let differs =
                |other: &Resource| matches!(other, Resource::Shared { name: n, bytes: b } if n == name && b != bytes);
            if others.into_iter().any(differs) {
                return Err(format!("shared memory {name:?} has two sizes"));
            }
        }
        Resource::Devices { device } if !(1..=3).contains(device) => {
            return Err(format!("there is no device {device}"));
        }
        Resource::Platform
        | Resource::IsaInterrupt { .. }
        | Resource::Bundle
        | Resource::Pool
        | Resource::Devices { .. }
        | Resource::Debug
        | Resource::Screen => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{manifest, server};
    use protocol::manifest::Program;

    fn refused(change: impl FnOnce(&mut Manifest)) -> String {
        let mut manifest = manifest();
        check(&manifest).expect("good before the change");
        change(&mut manifest);
        check(&manifest).expect_err("refused after the change")
    }

    #[test]
    fn every_rule_has_its_reason() {
        assert!(refused(|m| m.version = 77).contains("version 77"));
        assert!(refused(|m| m.servers.clear()).contains("0 servers"));
        assert!(refused(|m| m.servers[1].name = m.servers[0].name.clone()).contains("taken"));
        assert!(refused(|m| m.servers[1].name = String::new()).contains("no name"));
        assert!(refused(|m| m.servers[1].name = "init".into()).contains("no name"));
        assert!(refused(|m| m.servers[1].programs.clear()).contains("0 programs"));
        assert!(refused(|m| m.servers[1].programs = vec![Program::default(); 257]).contains("257 programs"));
        assert!(refused(|m| m.servers[1].band = 2).contains("band 2"));
        assert!(refused(|m| m.servers[1].memory += 1).contains("multiple of 4096"));
        assert!(refused(|m| m.servers[1].channels[0].to = 1).contains("come before"));
        assert!(refused(|m| m.servers[0].channels = m.servers[1].channels.clone()).contains("come before"));
        assert!(refused(|m| m.servers[3].channels.extend_from_within(1..)).contains("two channels"));
        assert!(refused(|m| m.servers[1].channels[0].line = 7).contains("line 7"));
        assert!(refused(|m| m.servers[1].channels[0].remote_line = 32).contains("line 32"));
        assert!(
            refused(|m| m.servers[2].channels[0].remote_line = m.servers[1].channels[0].remote_line)
                .contains("two peers")
        );
        let resource = |r: Resource| refused(|m| m.servers[1].resources.push(r));
        assert!(resource(Resource::Ports { first: 0xffff, count: 2 }).contains("ports"));
        assert!(resource(Resource::Ports { first: 0, count: 0 }).contains("ports"));
        assert!(resource(Resource::Shared { name: "other".into(), bytes: 4095 }).contains("multiple"));
        assert!(resource(Resource::Shared { name: "net0".into(), bytes: 4096 }).contains("two sizes"));
        assert!(resource(Resource::Devices { device: 4 }).contains("device 4"));
        assert!(resource(Resource::Pool).contains("pool"));
        assert!(refused(|m| m.servers = vec![server("x"); SERVERS_MAX + 1]).contains("257 servers"));
    }
}
