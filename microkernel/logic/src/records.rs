//! Records in a caller's memory, read one after the other: the page that they lie in is looked up once, not for each.

use crate::{
    Frame, Kernel, Machine,
    paging::{Missing, UserRange},
};
use protocol::{abi::Error, layout::PAGE};

/// Where the records of one call lie.
#[derive(Clone, Copy)]
pub(crate) struct Records {
    /// Top-level table of the caller.
    root: Frame,
    /// The page that was looked up last, and where it is; [`Records::NO_PAGE`]: none.
    page: u64,
    physical: u64,
}

/// A record.
pub(crate) struct Record<const N: usize> {
    /// What it contained when it was read.
    pub bytes: [u8; N],
    /// Where it is, if it lies in one page.
    pub physical: Option<u64>,
}

/// Why a record cannot be read.
pub(crate) enum Unread {
    /// It is not where records may be.
    Bad(Error),
    /// Its page is missing.
    Missing(Missing),
}

impl Records {
    const NO_PAGE: u64 = u64::MAX;

    /// Records in the memory below `root`.
    pub(crate) const fn new(root: Frame) -> Records {
        Records { root, page: Records::NO_PAGE, physical: 0 }
    }

    /// The caller's pages have changed.
    pub(crate) fn forget(&mut self) {
        self.page = Records::NO_PAGE;
    }
}

impl<M: Machine> Kernel<M> {
    /// Reads the record at `at`.
    #[inline(always)]
    pub(crate) fn record<const N: usize>(&self, records: &mut Records, at: u64) -> Result<Record<N>, Unread> {
        let range = UserRange::records::<[u8; N]>(at, 1).map_err(Unread::Bad)?;
        let mut bytes = [0; N];
        let offset = at % PAGE;
        if offset + N as u64 > PAGE {
            self.read_user(records.root, range, &mut bytes).map_err(Unread::Missing)?;
            return Ok(Record { bytes, physical: None });
        }
        if at - offset != records.page {
            records.physical = self.translate(records.root, at - offset, false).map_err(Unread::Missing)?;
            records.page = at - offset;
        }
        let physical = records.physical + offset;
        self.machine.read(physical, &mut bytes);
        Ok(Record { bytes, physical: Some(physical) })
    }
}
