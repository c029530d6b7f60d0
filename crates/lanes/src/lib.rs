//! The loops over every byte that is stored: SHA-256 of several contents at once ([`hashes()`]), where the content of a file
//! says that it is cut ([`Roller`]), the cipher ([`cipher`]), and the digits of hashes ([`digits()`], [`from_digits`]).
//!
//! A crate of their own because they are unusably slow unoptimised (forty times, and with them every test that stores
//! something): this crate is optimised in every profile, as the dependencies are, and the rest need not be.
//!
//! Crash story: pure functions.

pub mod cipher;
mod digits;
mod hashes;
mod roll;

pub use self::{
    digits::{digits, from_digits},
    hashes::hashes,
    roll::{Roller, Rolling, WINDOW},
};
