//! What to do when a VM touches a page: the policy, apart from how it is done.

use crate::{
    frames::Frame,
    image::{Content, Found},
    record::Touch,
};
use protocol::{
    domain::{FAULT_EXECUTE, FAULT_WRITE},
    memory::Access,
};

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

/// What a VM has of a page, beside what its image says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Present {
    /// Nothing.
    No,
    /// A frame of its own. It may be on its way out and mapped nowhere.
    Private(Frame),
    /// It is being read from the VM's region.
    Coming,
    /// It is in the VM's region.
    Swapped,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The VM may not do that.
    Illegal,
    /// Map its own frame, if that is not mapped.
    Back {
        /// The frame.
        frame: Frame,
        /// Access.
        access: Access,
    },
    /// Map a page of the image.
    Share {
        /// Its frame; `None`: the frame of zeros that all share.
        frame: Option<Frame>,
        /// Access.
        access: Access,
    },
    /// Map a frame of the VM's own, in place of a shared page if one is mapped.
    Fill {
        /// Copied from this frame; `None`: zeros.
        from: Option<Frame>,
        /// Access.
        access: Access,
    },
    /// Wait until it was read.
    Wait,
    /// Read it from the VM's region.
    Read,
}

/// How a page may be used: as its image says; outside the image readable and writable, and never executable.
pub fn access(found: Option<Found>) -> Access {
    found.map_or(Access::WRITE, |found| found.part.access)
}

/// Decides for a page inside the VM's memory, given what its image says of the page. A page outside the image is zero.
pub fn decide(found: Option<Found>, present: Present, touch: Touch) -> Decision {
    let access = access(found);
    let legal = match touch {
        Touch::Read => true,
        Touch::Write => access.contains(Access::WRITE),
        Touch::Execute => access.contains(Access::EXECUTE),
    };
    if !legal {
        return Decision::Illegal;
    }
    match present {
        Present::Private(frame) => return Decision::Back { frame, access },
        Present::Coming => return Decision::Wait,
        Present::Swapped => return Decision::Read,
        Present::No => {}
    }
    let zeros = Decision::Fill { from: None, access };
    let Some(content) = found.and_then(|found| found.content()) else { return zeros };
    match content {
        Content::Zero if access.contains(Access::WRITE) => zeros,
        Content::Zero => Decision::Share { frame: None, access },
        Content::Stored(frame) if touch == Touch::Write => Decision::Fill { from: Some(frame), access },
        Content::Stored(frame) => Decision::Share { frame: Some(frame), access: access - Access::WRITE },
    }
}

/// Whether a page of zeros need not be kept: the VM would get it again.
pub fn is_zero_by_itself(found: Option<Found>) -> bool {
    !matches!(found.and_then(|found| found.content()), Some(Content::Stored(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImagePart;
    use std::vec;

    fn part(access: Access) -> ImagePart {
        ImagePart { page: 1, pages: 3, access, data: vec![Content::Stored(77), Content::Zero] }
    }

    const NONE: Access = Access::empty();
    const TOUCHES: [Touch; 3] = [Touch::Read, Touch::Write, Touch::Execute];

    #[test]
    fn heap_is_zero_and_never_code() {
        let zeros = Decision::Fill { from: None, access: Access::WRITE };
        assert_eq!(decide(None, Present::No, Touch::Read), zeros);
        assert_eq!(decide(None, Present::No, Touch::Write), zeros);
        for present in [Present::No, Present::Private(5), Present::Coming, Present::Swapped] {
            assert_eq!(decide(None, present, Touch::Execute), Decision::Illegal);
        }
        let back = Decision::Back { frame: 5, access: Access::WRITE };
        assert_eq!(decide(None, Present::Private(5), Touch::Write), back);
    }

    #[test]
    fn what_is_in_swap_space_is_read_whatever_the_image_says() {
        let part = part(Access::WRITE);
        for found in [None, Some(Found { part: &part, index: 0 }), Some(Found { part: &part, index: 1 })] {
            for touch in [Touch::Read, Touch::Write] {
                assert_eq!(decide(found, Present::Swapped, touch), Decision::Read);
                assert_eq!(decide(found, Present::Coming, touch), Decision::Wait);
            }
        }
    }

    #[test]
    fn code_is_shared_and_never_written() {
        let part = part(Access::EXECUTE);
        let at = |index| Some(Found { part: &part, index });
        let share = |frame| Decision::Share { frame, access: Access::EXECUTE };
        for touch in [Touch::Read, Touch::Execute] {
            assert_eq!(decide(at(0), Present::No, touch), share(Some(77)));
            assert_eq!(decide(at(1), Present::No, touch), share(None));
            assert_eq!(decide(at(2), Present::No, touch), Decision::Fill { from: None, access: Access::EXECUTE });
        }
        for index in 0..3 {
            for present in [Present::No, Present::Private(5), Present::Coming, Present::Swapped] {
                assert_eq!(decide(at(index), present, Touch::Write), Decision::Illegal);
            }
        }
    }

    #[test]
    fn data_are_shared_until_written() {
        let part = part(Access::WRITE);
        let at = |index| Some(Found { part: &part, index });
        let zeros = Decision::Fill { from: None, access: Access::WRITE };
        assert_eq!(decide(at(0), Present::No, Touch::Read), Decision::Share { frame: Some(77), access: NONE });
        assert_eq!(decide(at(0), Present::No, Touch::Write), Decision::Fill { from: Some(77), access: Access::WRITE });
        assert_eq!(decide(at(1), Present::No, Touch::Read), zeros);
        assert_eq!(decide(at(2), Present::No, Touch::Write), zeros);
        assert_eq!(decide(at(0), Present::No, Touch::Execute), Decision::Illegal);
        assert!(
            !is_zero_by_itself(at(0))
                && is_zero_by_itself(at(1))
                && is_zero_by_itself(at(2))
                && is_zero_by_itself(None)
        );
    }

    #[test]
    fn constants_cannot_be_executed() {
        let part = part(NONE);
        let found = Some(Found { part: &part, index: 0 });
        assert_eq!(decide(found, Present::No, Touch::Execute), Decision::Illegal);
        assert_eq!(decide(found, Present::No, Touch::Read), Decision::Share { frame: Some(77), access: NONE });
        assert!(TOUCHES.iter().any(|touch| Touch::from_code(FAULT_WRITE) == *touch));
    }
}
