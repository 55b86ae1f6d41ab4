//! Entries of submission and completion queues (4.2, 4.6).

use core::fmt;

/// What the controller is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Opcode {
    /// NVM: flush (6.8).
    Flush = 0x00,
    /// NVM: write (6.15).
    Write = 0x01,
    /// NVM: read (6.9).
    Read = 0x02,
    /// NVM: write zeroes (6.17).
    WriteZeroes = 0x08,
    /// Admin: identify (5.15).
    Identify = 0x86,
    /// Admin: set features (5.21).
    SetFeatures = 0x89,
    /// Admin: create an I/O completion queue (5.3).
    CreateCompletionQueue = 0x85,
    /// Admin: create an I/O submission queue (5.4).
    CreateSubmissionQueue = 0x81,
}

/// In an [`Opcode`]: it is an admin command. The two sets share numbers.
const ADMIN: u8 = 0x80;

impl Opcode {
    /// As the controller knows it.
    pub const fn code(self) -> u8 {
        self as u8 & !ADMIN
    }
}

/// Bytes of a command.
pub const COMMAND: usize = 64;

/// A command; what is not named is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// What to do.
    pub opcode: Opcode,
    /// Namespace; 0 for none.
    pub namespace: u32,
    /// Physical addresses of the data: the first page, and the second or a list of all others (4.3).
    pub pages: [u64; 2],
    /// Dwords 10 to 12.
    pub words: [u32; 3],
}

impl Command {
    /// An admin command that concerns no namespace.
    pub const fn admin(opcode: Opcode, page: u64, words: [u32; 3]) -> Command {
        Command { opcode, namespace: 0, pages: [page, 0], words }
    }

    /// The entry of the queue, as 64-bit words.
    #[inline]
    pub fn entry(&self, id: u16) -> [u64; COMMAND / 8] {
        let [first, second, third] = self.words.map(u64::from);
        [
            u64::from(self.opcode.code()) | u64::from(id) << 16 | u64::from(self.namespace) << 32,
            0,
            0,
            self.pages[0],
            self.pages[1],
            first | second << 32,
            third,
            0,
        ]
    }
}

/// Bytes of a completion.
pub const COMPLETION: usize = 16;

/// A command that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The command.
    pub id: u16,
    /// What became of it.
    pub status: Status,
    /// Result of an admin command.
    pub result: u32,
    /// The queue that it was in.
    pub queue: u16,
}

/// What became of a command (4.6.1): code in bits 0-7, type in bits 8-10.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status(pub u16);

impl Status {
    /// Done.
    pub const OK: Status = Status(0);
    /// Generic: there is no such command.
    pub const INVALID_OPCODE: Status = Status(0x01);
    /// Generic: something in the command cannot be.
    pub const INVALID_FIELD: Status = Status(0x02);

    /// From dword 3 of a completion.
    pub const fn from_word(word: u32) -> Status {
        Status((word >> 17) as u16 & 0x7ff)
    }

    /// Whether it says that such a command is never carried out.
    pub const fn is_unsupported(self) -> bool {
        matches!(self, Status::INVALID_OPCODE | Status::INVALID_FIELD)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {:#x} of type {}", self.0 & 0xff, self.0 >> 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_laid_out() {
        let command =
            Command { opcode: Opcode::Read, namespace: 1, pages: [0x1000, 0x2000], words: [7, 1, 0x0200_000f] };
        let entry = command.entry(0x1234);
        assert_eq!(entry[0].to_le_bytes(), [2, 0, 0x34, 0x12, 1, 0, 0, 0]);
        assert_eq!(entry[1..], [0, 0, 0x1000, 0x2000, 1 << 32 | 7, 0x0200_000f, 0]);
        assert_eq!(Command::admin(Opcode::Identify, 0x3000, [1, 0, 0]).entry(0)[0], 6);
        assert_eq!(Opcode::CreateCompletionQueue.code(), 5);
    }

    #[test]
    fn a_status_is_read() {
        // Phase, code 0x02, do not retry.
        let status = Status::from_word(0x8005_0001);
        assert!(status == Status::INVALID_FIELD && status.is_unsupported());
        assert_eq!(Status::from_word(0x0001_ffff), Status::OK);
        assert_eq!(std::format!("{}", Status::from_word(0x0281 << 17)), "status 0x81 of type 2");
    }
}
