//! The swap server: owner of all memory of VMs, their pager and gatekeeper.

use super::{Service, VmNumber, VmRef};
use alloc::{string::String, vec::Vec};
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// The service of the swap server.
pub struct Pager;

/// A guest image that the pager knows.
pub type ImageNumber = u32;

/// A loadable part of a guest image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct Part {
    /// First byte in the VM's memory.
    pub address: u64,
    /// Bytes in memory.
    pub length: u64,
    /// First byte in the lent range.
    pub data_offset: u64,
    /// Bytes in the lent range; the rest is zero.
    pub data_length: u64,
    /// May be written (then each VM gets copies on write).
    pub write: bool,
    /// May be executed.
    pub execute: bool,
}

/// A VM in a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct VmEntry {
    /// The VM.
    pub vm: VmNumber,
    /// Where it is, if it is in memory.
    pub at: Option<VmRef>,
    /// Its image.
    pub image: ImageNumber,
    /// Whether that is a template.
    pub clone: bool,
    /// Whether it was ever started.
    pub started: bool,
    /// Why it stopped, if it did.
    pub stop: Option<Stop>,
}

/// What is asked of the pager. Managing images and VMs is for the loader; any client may ask for figures and
/// have pages brought.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Request {
    /// Takes in a guest image, checked by the loader. The caller lends a range that holds the data
    /// ([`crate::abi::Lend`]); it is copied before the answer.
    DefineImage {
        /// Parts, by address, not overlapping.
        parts: Vec<Part>,
    },
    /// Forgets an image, or a template, once no VM uses it.
    DropImage(ImageNumber),
    /// Creates a VM with all the swap space that it can ever need. The caller lends one page: the contents of its virtual
    /// register page. From a template it makes a clone: memory and windows must be those of the template, the kernel's part of the register page is the
    /// template's, and line [`crate::domain::line::CLONE`] is pending.
    Create {
        /// The VM's number; its place must be free.
        vm: VmNumber,
        /// Image.
        image: ImageNumber,
        /// Bytes of memory.
        memory: u64,
        /// First instruction.
        entry: u64,
        /// Windows of NIC, disk and console: address and bytes.
        windows: [(u64, u64); 3],
        /// Whether it is started at once, as by [`Request::Start`]; else it is stopped.
        start: bool,
    },
    /// Starts a VM, or lets it go on after `ready`; so a clone too.
    Start(VmNumber),
    /// Destroys a VM and cleans its memory.
    Destroy(VmNumber),
    /// Takes the next VM that stopped: those that ended, did something forbidden, or said `ready`. The pager raises
    /// the channel's line when there is one.
    NextStop,
    /// VMs, as many as fit into an answer, from position `from` on (0 at first): how a restarted loader finds them again.
    /// What it is told of stops here it is not told by [`Request::NextStop`] again.
    List {
        /// Position.
        from: u32,
    },
    /// Figures of a VM.
    Usage(VmNumber),
    /// Figures of the pool.
    Pool,
    /// Brings pages of a VM into memory, writable if `write`, and the VM itself if it is not there. Answered `Here` if all is in memory
    /// now, else `Later`: then the pager raises the channel's line once that has changed, and the client asks
    /// [`Request::Brought`] and does again what met [`crate::abi::Error::NotPresent`] or [`crate::abi::Error::Gone`].
    Bring {
        /// The VM.
        vm: VmNumber,
        /// First byte.
        address: u64,
        /// Bytes, at most 64 KiB.
        length: u32,
        /// For writing.
        write: bool,
    },
    /// VMs whose pages this client has asked for and that it may try again, each told once; some of them may be no more.
    Brought,
    /// Keeps a VM that said `ready` and was not started since as a *template*: an image from which [`Request::Create`] makes clones that go on
    /// where the VM was. Answered `Image`. `NotWhole`: part of it is not in memory, it is too large (more than 1,024 pages of its own, or over 64 MiB apart), or
    /// it is a clone itself. Whatever comes of it, the VM says `ready` once more; but for `BadArgument`: it is not waiting.
    MakeTemplate(VmNumber),
    /// Makes clones of a template, as by [`Request::Create`], and starts them, one after the other until one cannot be made now. The caller lends a page for
    /// each: the contents of its virtual register page. Answered `Cloned`; `NotFound`: it is no template.
    Clone {
        /// The template.
        template: ImageNumber,
        /// The clones' numbers.
        vms: Vec<VmNumber>,
    },
}

/// Why a VM stopped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Stop {
    /// It ended itself with this code.
    Exit(u32),
    /// It said `ready` and waits for `Start`.
    Ready,
    /// It touched memory it does not have, or in a way it may not.
    BadAccess {
        /// Address.
        address: u64,
        /// Instruction pointer.
        instruction: u64,
        /// Whether it wrote.
        write: bool,
        /// Whether it fetched an instruction.
        execute: bool,
    },
    /// A processor exception.
    Exception {
        /// Vector.
        vector: u32,
        /// Error code.
        error: u64,
        /// Instruction pointer.
        instruction: u64,
    },
    /// The pager could not serve it.
    Pager(String),
}

/// What the pager answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Response {
    /// Done.
    Done,
    /// An image's number.
    Image(ImageNumber),
    /// A new VM.
    Created(VmRef),
    /// A VM that stopped; `None` when there is no more.
    Stopped(Option<(VmNumber, Stop)>),
    /// Figures of a VM.
    Usage {
        /// Frames of its own (tables and control block included).
        frames: u64,
        /// Pages that are in swap space only.
        swapped: u64,
        /// Page faults served.
        faults: u64,
        /// Nanoseconds of processor time.
        cpu_time: u64,
    },
    /// VMs, and the position to go on from if there are more.
    Vms(Vec<VmEntry>, Option<u32>),
    /// Figures of the pool, in frames.
    Pool {
        /// All.
        total: u64,
        /// Neither in use nor promised to a VM: what new VMs and images can get.
        free: u64,
        /// VMs.
        vms: u64,
        /// Those of them that have left memory whole.
        suspended: u64,
        /// Those that are to run and wait to be admitted.
        waiting: u64,
        /// Pages of swap space: all.
        swap_total: u64,
        /// Pages of swap space that no VM has.
        swap_free: u64,
        /// Pages read from swap space since boot.
        page_ins: u64,
        /// Pages written to swap space since boot.
        page_outs: u64,
        /// Frames that are neither a VM's nor an image's: records of VMs, and a few others.
        own: u64,
        /// Most reads of swap disks that were under way at once: faults that were being served, and VMs on their way back.
        most_reads: u64,
    },
    /// The VM is here, and the pages asked for are in memory.
    Here(VmRef),
    /// Not yet; the channel's line is raised.
    Later,
    /// VMs that were brought; empty when there is no more.
    Brought(Vec<VmNumber>),
    /// No such VM or image.
    NotFound,
    /// Not enough memory.
    OutOfMemory,
    /// Not enough swap space.
    OutOfSwap,
    /// An argument makes no sense.
    BadArgument,
    /// The image is in use.
    InUse,
    /// The request is not allowed to this client.
    Denied,
    /// The VM is not all in memory, or has too much of it, to be kept as a template.
    NotWhole,
    /// So many clones were made, the first of those that were asked for.
    Cloned(u32),
}

impl Service for Pager {
    const NAME: &'static str = "pager";
    type Request<'a> = Request;
    type Response = Response;
}
