//! What clients ask, and when: loads for benchmarks that drive a machine from outside.

pub mod arrivals;
pub mod latency;
pub mod zipf;
