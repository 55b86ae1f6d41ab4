//! Copies between a VM's console page and this server. The only `unsafe` of the console.

use hypercall::transfer;
use protocol::{
    abi::{Error, Target},
    memory::TransferOperation,
};
use server_runtime::hypercall;

/// Copies from `target`'s memory into `to`.
pub fn read(target: Target, address: u64, to: &mut [u8]) -> Result<(), Error> {
    let to_address = to.as_mut_ptr().expose_provenance() as u64;
    let length = to.len() as u32;
    one(TransferOperation {
        from: target.0,
        from_address: address,
        to: Target::OWN.0,
        to_address,
        length,
        ..Default::default()
    })
}

/// Copies `from` into `target`'s memory.
pub fn write(target: Target, address: u64, from: &[u8]) -> Result<(), Error> {
    let from_address = from.as_ptr().expose_provenance() as u64;
    let length = from.len() as u32;
    one(TransferOperation {
        from: Target::OWN.0,
        from_address,
        to: target.0,
        to_address: address,
        length,
        ..Default::default()
    })
}

fn one(operation: TransferOperation) -> Result<(), Error> {
    let mut operations = [operation];
    // SAFETY: own memory is a destination only in `read`, whose `to` is borrowed mutably for the time of the call.
    unsafe { transfer(&mut operations) }?;
    match Error::from_u8(operations[0].status as u8) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
