//! What tests are made of: fakes of every port over one simulated machine ([`fakes`]), decorators that make
//! any port fail, delay or panic at its n-th call ([`faults`]), and the suites that fakes and real drivers
//! both pass ([`conformance`]).
//!
//! Everything here asserts by panicking: it is for tests and never part of the program.
//!
//! Crash story: nothing here outlives a test process; what it makes on disk lies in temporary directories.

pub mod conformance;
pub mod fakes;
pub mod faults;
