//! The console server: the machine's serial line, shared by servers, VMs and the operator.

use super::{Service, VmNumber, VmRef};
use alloc::string::String;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Longest text of one request, in bytes.
pub const TEXT_MAX: usize = 1024;

/// The console service.
pub struct Console;

/// What a client asks of the console.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Request<'a> {
    /// Prints one line, with the client's name before it.
    Log(&'a str),
    /// Prints text as it is (the operator's prompt).
    Write(&'a str),
    /// Waits for a line typed by the operator. Only one client can wait at a time.
    ReadLine,
    /// A VM has a console: its output is printed with `name` before each line. From the loader.
    Attach {
        /// The VM.
        vm: VmNumber,
        /// Where it is now.
        at: VmRef,
        /// Its name.
        name: &'a str,
        /// Address of its console page.
        page: u64,
    },
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
