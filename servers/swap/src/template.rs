//! Templates: images made of a VM that has started.
//!
//! A template is an [`Image`](crate::image::Image) like others: its parts say what a VM finds in a page that it has not written. Pages that the VM had written are
//! the template's own copies; all else is its base image's, which it keeps alive. So a clone is a VM like others too, which finds more in its
//! image than one that begins at the entry, and has the registers that the VM had.

use crate::{
    decide,
    frames::Frame,
    image::{Content, Image, ImagePart},
};
use alloc::vec::Vec;
use protocol::{
    domain::{SavedDomain, line},
    layout::PAGE,
    memory::{Access, MapOperation},
    registers::KERNEL_PART,
};

/// Most pages of a VM's own in a template.
pub const PAGES_MAX: usize = 1024;
/// Most pages from the first to the last of a part.
const PART_MAX: u32 = 16_384;
/// Most pages that are mapped at once for a clone.
pub const TOUCHED_MAX: usize = 128;

/// What makes an image a template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    /// The image of the VM.
    pub base: u32,
    /// Pages of its memory.
    pub pages: u32,
    /// Its state, made that of a VM which has just begun.
    pub state: SavedDomain,
    /// The frame of its record.
    pub record: Frame,
    /// Pages that clones touch before they first wait: they have them when they are made.
    pub begin: Plan,
    /// Pages that they touch then, until they wait for longer: they get them with the first one that they need.
    pub then: Plan,
    /// How much of that is known.
    pub known: Known,
}

/// Pages, and whether they are written.
pub type Touched = Vec<(u32, bool)>;

/// What is mapped at once for a clone. It is found once, and not for each clone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The pages.
    pub touched: Touched,
    /// Maps what the clones share.
    pub shared: Vec<MapOperation>,
    /// What each gets of its own.
    pub own: Vec<OwnPage>,
}

/// A page that a clone gets of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnPage {
    /// The page.
    pub page: u32,
    /// Copied from this frame; `None`: zeros.
    pub from: Option<Frame>,
    /// Access.
    pub access: Access,
    /// A shared page is mapped there before.
    pub replaces: bool,
}

/// How much is known of what clones touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// Nothing: the next clone shows it.
    Nothing,
    /// Nothing yet: this clone shows it, once it waits.
    Watched(u64),
    /// What they begin with. The same clone shows the rest, once it has had more than `faults` faults and has waited for a while.
    Begin {
        /// The clone.
        vm: u64,
        /// Its faults when it first waited.
        faults: u32,
        /// How often it had run when it was last looked at, and since when, in nanoseconds, it has not run since.
        seen: (u64, u64),
    },
    /// All.
    All,
}

/// The state of a clone, from that of a VM which waits for its `ready` to be answered: it has used no time, no timer runs, and the line is pending that tells
/// it that it is a clone.
pub fn begun(mut state: SavedDomain) -> SavedDomain {
    state.state = 1;
    state.trap = [0; 3];
    (state.deadline, state.clock) = (protocol::abi::NEVER, protocol::abi::NEVER);
    (state.cpu_ticks, state.switches) = (0, 0);
    state.pending = 1 << line::CLONE;
    state
}

/// The kernel's part of a register page for clones: nothing is pending, nothing was delivered.
pub fn fresh_registers(mut registers: [u8; KERNEL_PART]) -> [u8; KERNEL_PART] {
    let fields = [
        core::mem::offset_of!(protocol::registers::RegisterPage, pending),
        core::mem::offset_of!(protocol::registers::RegisterPage, delivered),
    ];
    for at in fields {
        if let Some(word) = registers.get_mut(at..at + 8) {
            word.fill(0);
        }
    }
    registers
}

/// The parts of a template: those of its base, with `own` pages (sorted, with their frames) in place of the base's; between the parts, new ones that hold what
/// is own there. `None`: they lie too far apart, or there is no memory.
pub fn overlay(base: &[ImagePart], own: &[(u32, Frame)]) -> Option<Vec<ImagePart>> {
    let mut parts = Vec::new();
    parts.try_reserve_exact(base.len() * 2 + 1).ok()?;
    let mut rest = own;
    for part in base {
        let (before, from) = rest.split_at(rest.partition_point(|(page, _)| *page < part.page));
        let (inside, after) = from.split_at(from.partition_point(|(page, _)| *page < part.page + part.pages));
        rest = after;
        parts.extend(gap(before)?);
        parts.push(covered(part.page, part.pages, part.access, &part.data, inside)?);
    }
    parts.extend(gap(rest)?);
    Some(parts)
}

/// A part of what is own outside of the base's parts; none if nothing is.
fn gap(own: &[(u32, Frame)]) -> Option<Option<ImagePart>> {
    let (Some((first, _)), Some((last, _))) = (own.first(), own.last()) else { return Some(None) };
    covered(*first, last - first + 1, Access::WRITE, &[], own).map(Some)
}

fn covered(page: u32, pages: u32, access: Access, base: &[Content], own: &[(u32, Frame)]) -> Option<ImagePart> {
    let end = own.last().map_or(0, |(last, _)| last - page + 1).max(base.len() as u32);
    if end > PART_MAX.max(base.len() as u32) {
        return None;
    }
    let mut data = Vec::new();
    data.try_reserve_exact(end as usize).ok()?;
    data.extend_from_slice(base);
    data.resize(end as usize, Content::Zero);
    for (own, frame) in own {
        *data.get_mut((own - page) as usize)? = Content::Stored(*frame);
    }
    Some(ImagePart { page, pages, access, data })
}

/// The pages of a VM that a template needs of its own: not those that it would get again as they are.
pub fn needs_copy(image: &Image, page: u32, bytes: &[u8; PAGE as usize]) -> bool {
    !(bytes.iter().all(|byte| *byte == 0) && decide::is_zero_by_itself(image.find(page)))
}

/// Where a template's part of the record of an image begins.
const RECORD: usize = 1024;
/// First word of it.
const MAGIC: u32 = u32::from_le_bytes(*b"tmpl");
const STATE: usize = RECORD + 12 + KERNEL_PART;
const END: usize = STATE + size_of::<SavedDomain>();

impl Template {
    /// Writes it into the record of its image, with the kernel's part of the VM's virtual register page.
    pub fn write(&self, registers: &[u8; KERNEL_PART], record: &mut [u8; PAGE as usize]) {
        for (index, word) in [MAGIC, self.base, self.pages].into_iter().enumerate() {
            record[RECORD + index * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
        record[RECORD + 12..STATE].copy_from_slice(registers);
        record[STATE..END].copy_from_slice(&self.state.to_bytes());
    }

    /// Reads it from there, which is this frame; `None`: it is the record of an image that is no template.
    pub fn read(record: &[u8; PAGE as usize], frame: Frame) -> Option<Template> {
        let word = |index: usize| record.as_chunks().0.get(RECORD / 4 + index).map(|word| u32::from_le_bytes(*word));
        let (magic, base, pages) = (word(0)?, word(1)?, word(2)?);
        let state = SavedDomain::from_bytes(record.get(STATE..END)?.try_into().ok()?);
        (magic == MAGIC).then_some(Template {
            base,
            pages,
            state,
            record: frame,
            begin: Plan::default(),
            then: Plan::default(),
            known: Known::Nothing,
        })
    }

    /// Where the kernel's part of the register page lies in the record: offset and bytes.
    pub const fn registers_at() -> (u64, u32) {
        (RECORD as u64 + 12, KERNEL_PART as u32)
    }

    /// Whether a VM with this memory and these windows can be a clone.
    pub fn fits(&self, pages: u32, windows: &[(u64, u64); 3]) -> bool {
        let own = self.state.windows.map(|[address, length]| (address, length));
        self.pages == pages && own == *windows
    }
}

const _: () = assert!(END <= PAGE as usize);
