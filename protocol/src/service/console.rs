//! The console server: the machine's serial line, shared by servers, VMs and the operator.

use super::{Service, VmNumber, VmRef};
use alloc::{string::String, vec::Vec};
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Longest text of one request, in bytes.
pub const TEXT_MAX: usize = 1024;

/// Bytes of a VM's name that are printed; it is cut there.
pub const NAME_MAX: usize = 64;

/// The console service.
pub struct Console;

/// A VM's console: its output is printed with `name` before each line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct Attachment<'a> {
    /// The VM.
    pub vm: VmNumber,
    /// Where it is now; [`VmRef::NOWHERE`] if it has not run yet, or does not exist yet.
    pub at: VmRef,
    /// Its name.
    pub name: &'a str,
    /// Address of its console page.
    pub page: u64,
}

/// What a client asks of the console.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Request<'a> {
    /// Prints one line, with the client's name before it.
    Log(&'a str),
    /// Prints text as it is (the operator's prompt).
    Write(&'a str),
    /// Waits for a line typed by the operator. Only one client can wait at a time.
    ReadLine,
    /// VMs have consoles, as many as fit into a message. From the loader; answered `Attached`.
    #[serde(borrow)]
    Attach(Vec<Attachment<'a>>),
    /// The VM is no more.
    Detach(VmNumber),
}

/// What the console answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Response {
    /// Done.
    Done,
    /// A line, without its end.
    Line(String),
    /// Another client waits for lines already.
    Taken,
    /// The text is too long.
    TooLong,
    /// What became of each console that was asked for, in order.
    Attached(Vec<Attached>),
}

/// What became of a console.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Attached {
    /// The VM has it.
    Done,
    /// No room for another VM.
    Full,
    /// The page is none that a VM can have.
    BadPage,
}

impl Service for Console {
    const NAME: &'static str = "console";
    type Request<'a> = Request<'a>;
    type Response = Response;
}
