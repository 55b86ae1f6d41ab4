//! The program: `role = "client"` measures, `role = "peer"` answers it.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

mod client;
mod peer;

use bench::role::Role;
use server_runtime::Startup;

server_runtime::entry!(main);

fn main(startup: Startup) -> ! {
    match Role::from_option(startup.option("role")) {
        Ok(Role::Client) => client::run(&startup),
        Ok(Role::Peer) => peer::run(&startup),
        Err(reason) => panic!("{reason}"),
    }
}
