//! Random bytes that nobody can guess, for servers: keys and seeds.
//!
//! [`random`] makes a generator keyed with what the machine has; [`Random`] is the generator.
#![no_std]

#[cfg(test)]
extern crate std;

mod hardware;
mod random;

pub use hardware::random;
pub use random::Random;
