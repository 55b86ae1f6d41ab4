//! What to do when a VM touches a page: the policy, apart from how it is done.

use crate::{
    frames::Frame,
    image::{Content, Found},
};
use protocol::{
    domain::{FAULT_EXECUTE, FAULT_WRITE},
    memory::Access,
};

/// How a page is touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// Read.
    Read,
    /// Written.
    Write,
    /// An instruction is fetched from it.
    Execute,
}

impl Touch {
    /// From the `code` of a page fault.
    pub const fn from_code(code: u32) -> Touch {
        if code & FAULT_WRITE != 0 {
            Touch::Write
        } else if code & FAULT_EXECUTE != 0 {
            Touch::Execute
        } else {
            Touch::Read
        }
    }
}

/// What a VM has at a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Present {
    /// Nothing.
    No,
    /// A page shared with its image.
    Shared,
    /// A frame of its own.
    Private,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The VM may not do that.
    Illegal,
    /// Nothing: what the VM needs is there.
    Nothing,
    /// Map a page of the image.
    Share {
        /// Its frame; `None`: the frame of zeros that all share.
        frame: Option<Frame>,
        /// Its number among the data pages of the image.
        bit: u32,
        /// Access.
        access: Access,
    },
    /// Map a frame of the VM's own.
    Fill {
        /// Copied from this frame; `None`: zeros.
        from: Option<Frame>,
        /// The shared page that it replaces, by its number among the data pages of the image.
        replaces: Option<u32>,
        /// Access.
        access: Access,
    },
}

/// Decides for a page inside the VM's memory, given what its image says of the page.
///
/// A page outside the image is zero, readable and writable, and never executable.
pub fn decide(found: Option<Found>, present: Present, touch: Touch) -> Decision {
    let access = found.map_or(Access::WRITE, |found| found.part.access);
    let legal = match touch {
        Touch::Read => true,
        Touch::Write => access.contains(Access::WRITE),
        Touch::Execute => access.contains(Access::EXECUTE),
    };
    if !legal {
        return Decision::Illegal;
    }
    if present == Present::Private {
        return Decision::Nothing;
    }
    let zeros = Decision::Fill { from: None, replaces: None, access };
    let Some((content, bit)) = found.and_then(|found| found.data()) else { return zeros };
    match content {
        _ if present == Present::Shared && touch != Touch::Write => Decision::Nothing,
        Content::Zero if access.contains(Access::WRITE) => zeros,
        Content::Zero => Decision::Share { frame: None, bit, access },
        Content::Stored(frame) if touch == Touch::Write => {
            let replaces = (present == Present::Shared).then_some(bit);
            Decision::Fill { from: Some(frame), replaces, access }
        }
        Content::Stored(frame) => Decision::Share { frame: Some(frame), bit, access: access - Access::WRITE },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImagePart;
    use std::vec;

    fn part(access: Access) -> ImagePart {
        let data = vec![Content::Stored(77), Content::Zero];
        ImagePart { page: 1, pages: 3, access, data, first_bit: 10 }
    }

    const NONE: Access = Access::empty();

    #[test]
    fn heap_is_zero_and_never_code() {
        let zeros = Decision::Fill { from: None, replaces: None, access: Access::WRITE };
        assert_eq!(decide(None, Present::No, Touch::Read), zeros);
        assert_eq!(decide(None, Present::No, Touch::Write), zeros);
        assert_eq!(decide(None, Present::No, Touch::Execute), Decision::Illegal);
        assert_eq!(decide(None, Present::Private, Touch::Execute), Decision::Illegal);
        assert_eq!(decide(None, Present::Private, Touch::Write), Decision::Nothing);
    }

    #[test]
    fn code_is_shared_and_never_written() {
        let part = part(Access::EXECUTE);
        let at = |index| Some(Found { part: &part, index });
        let share = |frame, bit| Decision::Share { frame, bit, access: Access::EXECUTE };
        for touch in [Touch::Read, Touch::Execute] {
            assert_eq!(decide(at(0), Present::No, touch), share(Some(77), 10));
            assert_eq!(decide(at(1), Present::No, touch), share(None, 11));
            assert_eq!(decide(at(0), Present::Shared, touch), Decision::Nothing);
            let zeros = Decision::Fill { from: None, replaces: None, access: Access::EXECUTE };
            assert_eq!(decide(at(2), Present::No, touch), zeros);
        }
        for index in 0..3 {
            for present in [Present::No, Present::Shared, Present::Private] {
                assert_eq!(decide(at(index), present, Touch::Write), Decision::Illegal);
            }
        }
    }

    #[test]
    fn data_are_shared_until_written() {
        let part = part(Access::WRITE);
        let at = |index| Some(Found { part: &part, index });
        let copy = |replaces| Decision::Fill { from: Some(77), replaces, access: Access::WRITE };
        let zeros = Decision::Fill { from: None, replaces: None, access: Access::WRITE };
        assert_eq!(decide(at(0), Present::No, Touch::Read), Decision::Share { frame: Some(77), bit: 10, access: NONE });
        assert_eq!(decide(at(0), Present::Shared, Touch::Read), Decision::Nothing);
        assert_eq!(decide(at(0), Present::No, Touch::Write), copy(None));
        assert_eq!(decide(at(0), Present::Shared, Touch::Write), copy(Some(10)));
        assert_eq!(decide(at(0), Present::Private, Touch::Write), Decision::Nothing);
        assert_eq!(decide(at(1), Present::No, Touch::Read), zeros);
        assert_eq!(decide(at(2), Present::No, Touch::Write), zeros);
        assert_eq!(decide(at(0), Present::No, Touch::Execute), Decision::Illegal);
    }

    #[test]
    fn constants_cannot_be_executed() {
        let part = part(NONE);
        let found = Some(Found { part: &part, index: 0 });
        assert_eq!(decide(found, Present::No, Touch::Execute), Decision::Illegal);
        assert_eq!(decide(found, Present::No, Touch::Read), Decision::Share { frame: Some(77), bit: 10, access: NONE });
    }
}
