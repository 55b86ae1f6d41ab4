//! What `init` does for the operator: lists, kills and restarts servers.

use super::Service;
use alloc::{string::String, vec::Vec};
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// The service of `init`.
pub struct Init;

/// What is asked of `init`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Request<'a> {
    /// All servers.
    List,
    /// Kills a server, as if it had crashed: it is restarted by its policy.
    Kill(&'a str),
    /// Starts a server again that was given up.
    Start(&'a str),
}

/// A server's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum State {
    /// Runs.
    Running,
    /// Died; will be started again.
    Restarting,
    /// Died too often, or is not to be restarted.
    GivenUp,
}

/// A server in a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct ServerInfo {
    /// Name.
    pub name: String,
    /// File of the program that it runs.
    pub program: String,
    /// State.
    pub state: State,
    /// Restarts so far.
    pub restarts: u32,
    /// KiB of memory.
    pub memory: u64,
    /// Nanoseconds of processor time.
    pub cpu_time: u64,
}

/// What `init` answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Response {
    /// Done.
    Done,
    /// The servers.
    Servers(Vec<ServerInfo>),
    /// No server has this name.
    Unknown,
    /// The server is in the wrong state for that.
    WrongState,
}

impl Service for Init {
    const NAME: &'static str = "init";
    type Request<'a> = Request<'a>;
    type Response = Response;
}
