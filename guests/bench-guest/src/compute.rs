//! Work for a processor, and nothing else: `compute millions=M`.

use core::hint::black_box;
use ilwaco::{clock, println};

/// Does M million steps of a generator of numbers, and says when it began and ended; `false` if the arguments ask for something else.
pub fn run(arguments: &str) -> bool {
    let mut words = arguments.split_whitespace();
    if words.next() != Some("compute") {
        return false;
    }
    let millions = words.find_map(|word| word.strip_prefix("millions=")?.parse::<u64>().ok()).unwrap_or(1);
    let start = clock::now();
    println!("COMPUTE begins at={start}");
    let mut number = black_box(88_172_645_463_325_252u64);
    for _ in 0..millions * 1_000_000 {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
    }
    black_box(number);
    println!("COMPUTE ends at={} began={start}", clock::now());
    true
}
