//! The way to a driver through the kernel.

use crate::{Driver, Info, OpenError};
use protocol::{
    abi::Target,
    service::block_driver::{BlockDriver, Request, Response},
};
use server_runtime::{CallError, Client, hypercall};

/// Times that opening is tried again because the driver was restarted in between.
const ATTEMPTS: usize = 4;

/// A channel to a block driver.
pub struct Channel {
    client: Client<BlockDriver>,
}

impl Channel {
    /// The channel in this slot.
    pub const fn new(slot: u8) -> Channel {
        Channel { client: Client::new(slot) }
    }

    /// What the driver counts.
    pub fn statistics(&mut self) -> Result<Response, CallError> {
        self.client.call(&Request::Statistics)
    }
}

impl Driver for Channel {
    fn open(&mut self) -> Result<Info, OpenError> {
        let mut answer = self.client.call(&Request::Open);
        for _ in 1..ATTEMPTS {
            if answer != Err(CallError::Restarted) {
                break;
            }
            answer = self.client.call(&Request::Open);
        }
        // This session is a new one in any case.
        self.client.take_restarted();
        match answer.map_err(OpenError::Driver)? {
            Response::Opened { blocks, partition, read_only } => Ok(Info { blocks, partition, read_only }),
            Response::NoDevice => Err(OpenError::NoDevice),
            Response::NoPartition => Err(OpenError::NoPartition),
            Response::Denied => Err(OpenError::Denied),
            Response::Statistics { .. } => Err(OpenError::Driver(CallError::Malformed)),
        }
    }

    fn was_restarted(&mut self) -> bool {
        self.client.call(&Request::Statistics).is_err() || self.client.take_restarted()
    }

    fn raise(&mut self) {
        // A driver that is being restarted is opened anew.
        let _ = hypercall::raise(Target::slot(self.client.slot()));
    }
}
