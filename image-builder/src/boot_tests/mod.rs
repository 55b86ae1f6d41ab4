//! Tests that boot a system and look at it from outside: by HTTP, by TCP, by Ethernet frames and on
//! its serial line.
//!
//! One file for each subject; each has a `TESTS` list that [`all`] collects. To add a test, write a
//! function that takes a [`Context`] and returns an error with the reason if the system misbehaves,
//! and put it into the list. [`harness`] boots systems, ends them whatever happens, and keeps a log.

mod clones;
mod damage;
mod disk;
mod echo;
mod frames;
pub mod harness;
mod hostile;
mod image;
mod journal;
mod lan;
mod machines;
mod nic;
mod pages;
mod platform;
mod restart;
mod scale;
mod screen;
mod smp;
mod swap;
mod swap_faults;
mod vdisk;
mod web;

use std::time::{Duration, Instant};

use miette::Result;

use crate::interrupt;
use crate::session::Session;
use crate::ui;
use harness::Context;

/// Lines of the serial log shown when a test fails.
const SHOWN: usize = 25;

/// A test that boots a system.
#[derive(Clone, Copy, Debug)]
pub struct BootTest {
    /// Its name.
    pub name: &'static str,
    /// What it shows, for people.
    pub about: &'static str,
    /// How long it may take after the system was built.
    pub limit: Duration,
    /// Whether it runs only with `--long`.
    pub long: bool,
    /// The test.
    pub run: fn(&mut Context<'_>) -> Result<()>,
}

/// All tests.
pub fn all() -> Vec<BootTest> {
    [
        web::TESTS,
        echo::TESTS,
        frames::TESTS,
        lan::TESTS,
        nic::TESTS,
        image::TESTS,
        machines::TESTS,
        pages::TESTS,
        platform::TESTS,
        hostile::TESTS,
        restart::TESTS,
        scale::TESTS,
        screen::TESTS,
        smp::TESTS,
        clones::TESTS,
        damage::TESTS,
        disk::TESTS,
        swap::TESTS,
        swap_faults::TESTS,
        vdisk::TESTS,
    ]
    .concat()
}

/// How many tests passed and failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs the tests whose name contains `filter`.
pub fn run(session: &mut Session, filter: Option<&str>, long: bool) -> Result<Count> {
    let mut count = Count::default();
    for test in all() {
        if filter.is_some_and(|filter| !test.name.contains(filter)) {
            continue;
        }
        if test.long && !long {
            println!("boot test {} ... left out (--long runs it)", test.name);
            continue;
        }
        let mut context = Context::new(session, &test)?;
        let started = Instant::now();
        let result = (test.run)(&mut context);
        interrupt::check()?;
        let (log, last) = context.end();
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                println!("boot test {} ... ok ({seconds:.1} s)", test.name);
                count.passed += 1;
            }
            Err(report) => {
                println!("boot test {} ... FAILED ({seconds:.1} s)", test.name);
                println!("{report:?}");
                println!("The last lines on the serial line:");
                last[last.len().saturating_sub(SHOWN)..].iter().for_each(|line| println!("  | {line}"));
                ui::note(&format!("The whole log: {}", log.display()));
                count.failed += 1;
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_test_has_a_name_of_its_own_and_a_limit() {
        let tests = all();
        let names: BTreeSet<_> = tests.iter().map(|test| test.name).collect();
        assert_eq!(names.len(), tests.len());
        for test in &tests {
            assert!(test.limit >= Duration::from_secs(1) && !test.about.is_empty(), "{}", test.name);
        }
    }
}
