//! What tests are made of: fakes of every port over one simulated machine ([`fakes`]), decorators that make
//! any port fail, delay or panic at its n-th call ([`faults`]), changes to bytes that somebody reads ([`changes`]), the suites that fakes and real drivers
//! both pass ([`conformance`]), private database servers with load that proves its own copies ([`server`]), and a
//! scripted server that stands in for MySQL 8 ([`scripted`]).
//!
//! Everything here asserts by panicking: it is for tests and never part of the program.
//!
//! Crash story: nothing here outlives a test process, servers included (the kernel kills them with it); what it
//! makes on disk lies in temporary directories.

pub mod changes;
pub mod conformance;
pub mod fakes;
pub mod faults;
pub mod scripted;
pub mod server;
