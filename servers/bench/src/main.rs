//! The program: `role = "client"` measures the microkernel, `role = "peer"` answers it; `role = "disk"` measures a disk, and
//! `role = "disk-check"` checks it; `role = "disk-driver"` and `role = "net"` measure drivers; `role = "figures"` tells the figures of other servers.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

mod client;
mod disk;
mod figures;
mod net;
mod peer;

use bench::role::Role;
use server_runtime::Startup;

server_runtime::entry!(main);

fn main(startup: Startup) -> ! {
    match Role::from_option(startup.option("role")) {
        Ok(Role::Client) => client::run(&startup),
        Ok(Role::Peer) => peer::run(&startup),
        Ok(Role::Disk) => disk::measure::run(&startup),
        Ok(Role::DiskCheck) => disk::check::run(&startup),
        Ok(Role::DiskDriver) => disk::instructions::run(&startup),
        Ok(Role::Net) => net::run(&startup),
        Ok(Role::Figures) => figures::run(&startup),
        Err(reason) => panic!("{reason}"),
    }
}
