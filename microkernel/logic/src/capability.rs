//! Capabilities as the kernel keeps them.
//!
//! A capability names an object by its frame and that frame's generation. Destroying the object bumps the
//! generation, so every copy is dead at once with no tree to walk. A domain capability also
//! carries the domain's incarnation: after a restart in place it is good again, but its holder is told
//! once that the peer is not the one it knew.

use crate::Frame;
use protocol::{
    abi::Error,
    capability::{Description, Kind, Narrow, Rights},
    domain::line,
};

/// A slot's content: 32 bytes.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Capability {
    kind: u8,
    /// Line that [`Rights::RAISE`] raises.
    pub line: u8,
    /// Window that [`Rights::WINDOW`] opens (a device number).
    pub window: u8,
    reserved: u8,
    rights: u16,
    reserved2: u16,
    /// Memory: frames; Ports: ports.
    pub count: u32,
    /// Memory: first frame; Domain: frame of the control block; Ports: first port; Interrupt: vector.
    pub first: u32,
    /// Domain: generation of the frame; Interrupt: generation of the vector.
    pub generation: u32,
    /// Domain: incarnation last known to the holder.
    pub incarnation: u32,
    /// What a called server is told.
    pub badge: u64,
}

const _: () = assert!(size_of::<Capability>() == 32);

impl Capability {
    /// An empty slot.
    pub const EMPTY: Capability = Capability {
        kind: 0,
        line: line::NONE,
        window: 0,
        reserved: 0,
        rights: 0,
        reserved2: 0,
        count: 0,
        first: 0,
        generation: 0,
        incarnation: 0,
        badge: 0,
    };

    /// A capability over `count` things from `first` on.
    pub const fn new(kind: Kind, rights: Rights, first: u32, count: u32) -> Capability {
        Capability { kind: kind as u8, rights: rights.bits(), first, count, ..Capability::EMPTY }
    }

    /// What it names.
    #[inline]
    pub fn kind(&self) -> Kind {
        Kind::from_u8(self.kind).unwrap_or(Kind::Empty)
    }

    /// What the holder may do.
    #[inline]
    pub fn rights(&self) -> Rights {
        Rights::from_bits_truncate(self.rights)
    }

    /// `Ok` if it is of this kind and has these rights.
    #[inline]
    pub fn require(&self, kind: Kind, rights: Rights) -> Result<(), Error> {
        if self.kind != kind as u8 {
            Err(Error::NoCapability)
        } else if !self.rights().contains(rights) {
            Err(Error::Denied)
        } else {
            Ok(())
        }
    }

    /// Whether frame `frame` lies in this extent.
    pub fn holds(&self, frame: Frame) -> bool {
        frame >= self.first && frame - self.first < self.count
    }

    /// A copy that can do what `narrow` says, which must be within what this one can.
    pub fn narrowed(&self, narrow: &Narrow) -> Result<Capability, Error> {
        let mut copy = *self;
        let rights = Rights::from_bits(narrow.rights).ok_or(Error::BadArgument)?;
        if !self.rights().contains(rights) {
            return Err(Error::Denied);
        }
        copy.rights = rights.bits();
        if matches!(self.kind(), Kind::Memory | Kind::Ports) {
            let first = if narrow.first == 0 {
                self.first
            } else {
                u32::try_from(narrow.first).map_err(|_| Error::BadArgument)?
            };
            let skipped = first.checked_sub(self.first).ok_or(Error::Denied)?;
            let left = self.count.checked_sub(skipped).ok_or(Error::Denied)?;
            let count = if narrow.count == 0 { left } else { narrow.count };
            if count > left {
                return Err(Error::Denied);
            }
            (copy.first, copy.count) = (first, count);
        }
        if self.rights().contains(Rights::CONTROL) {
            if rights.contains(Rights::RAISE) && narrow.line >= line::COUNT {
                return Err(Error::BadArgument);
            }
            if rights.contains(Rights::WINDOW) && !(1..=3).contains(&narrow.window) {
                return Err(Error::BadArgument);
            }
            (copy.line, copy.window, copy.badge) = (narrow.line, narrow.window, narrow.badge);
        }
        Ok(copy)
    }

    /// What its holder is told of it.
    pub fn describe(&self) -> Description {
        Description {
            kind: self.kind,
            line: self.line,
            rights: self.rights,
            count: self.count,
            first: u64::from(self.first),
            badge: self.badge,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory() -> impl Strategy<Value = Capability> {
        (any::<u16>(), 1u32..1000, 0u32..1000, 0u8..64, 1u8..4).prop_map(|(rights, first, count, line, window)| {
            let mut capability = Capability::new(Kind::Memory, Rights::from_bits_truncate(rights), first, count);
            (capability.line, capability.window) = (line, window);
            capability
        })
    }

    fn narrow() -> impl Strategy<Value = Narrow> {
        (
            any::<u16>(),
            any::<u8>(),
            any::<u8>(),
            prop_oneof![0u32..1200, any::<u32>()],
            prop_oneof![0u64..2200, any::<u64>()],
            any::<u64>(),
        )
            .prop_map(|(rights, line, window, count, first, badge)| Narrow {
                rights,
                line,
                window,
                count,
                first,
                badge,
            })
    }

    proptest! {
        /// However often a capability is copied and narrowed, the copy never reaches beyond the original.
        #[test]
        fn narrowing_never_adds(original in memory(), narrows in proptest::collection::vec(narrow(), 1..6)) {
            let mut last = original;
            for narrow in narrows {
                let Ok(next) = last.narrowed(&narrow) else { continue };
                prop_assert!(last.rights().contains(next.rights()));
                prop_assert!(next.first >= last.first);
                prop_assert!(u64::from(next.first) + u64::from(next.count) <= u64::from(last.first) + u64::from(last.count));
                if !last.rights().contains(Rights::CONTROL) {
                    prop_assert_eq!((next.line, next.window, next.badge), (last.line, last.window, last.badge));
                }
                last = next;
            }
        }

        #[test]
        fn a_frame_is_held_only_within(capability in memory(), frame: u32) {
            let inside = (u64::from(capability.first)..u64::from(capability.first) + u64::from(capability.count)).contains(&u64::from(frame));
            prop_assert_eq!(capability.holds(frame), inside);
        }
    }

    #[test]
    fn kinds_and_rights_are_checked() {
        let capability = Capability::new(Kind::Memory, Rights::READ, 1, 1);
        assert_eq!(capability.require(Kind::Domain, Rights::READ), Err(Error::NoCapability));
        assert_eq!(capability.require(Kind::Memory, Rights::WRITE), Err(Error::Denied));
        assert_eq!(capability.require(Kind::Memory, Rights::READ), Ok(()));
        assert_eq!(Capability::EMPTY.require(Kind::Memory, Rights::empty()), Err(Error::NoCapability));
    }
}
