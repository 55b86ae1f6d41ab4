//! The service by which the path of real servers is measured: typed requests, encoded, decoded, dispatched.

use postcard_schema::Schema;
use protocol::service::Service;
use serde::{Deserialize, Serialize};

/// See the module.
pub struct Echo;

/// A number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct Request(pub u64);

/// The same number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct Response(pub u64);

impl Service for Echo {
    const NAME: &'static str = "bench-echo";
    type Request<'a> = Request;
    type Response = Response;
}
