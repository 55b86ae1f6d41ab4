//! The servers that the loader calls: the seam behind which tests put servers of their own.

use core::fmt;
use protocol::{
    registers::RegisterPage,
    service::{console, pager, switch, vdisk},
};
use server_runtime::CallError;

/// What is lent to the pager for the time of a call.
#[derive(Clone, Copy, Debug)]
pub enum Lent<'a> {
    /// Nothing.
    Nothing,
    /// The virtual register pages of new VMs.
    Registers(&'a [RegisterPage]),
    /// Pages of the bundle.
    Bundle {
        /// Offset of the first, in bytes.
        offset: u64,
        /// How many.
        pages: u64,
    },
}

/// Calls of other servers.
pub trait Peers {
    /// Calls the pager.
    fn pager(&mut self, request: &pager::Request, lent: Lent) -> Result<pager::Response, CallError>;
    /// True once after a call of the pager that was the first since it was restarted: whatever that call was, the pager has dropped images that no
    /// VM used before it.
    fn take_pager_restarted(&mut self) -> bool;
    /// Calls the switch.
    fn switch(&mut self, request: &switch::Request) -> Result<switch::Response, CallError>;
    /// Calls the console.
    fn console(&mut self, request: &console::Request) -> Result<console::Response, CallError>;
    /// Calls the server of virtual disks.
    fn vdisk(&mut self, request: &vdisk::Request) -> Result<vdisk::Response, CallError>;
    /// Nanoseconds since kernel entry.
    fn now(&mut self) -> u64;
    /// A line for the operator.
    fn log(&mut self, text: fmt::Arguments);
}
