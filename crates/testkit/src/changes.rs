//! Changes that a file's bytes may undergo before somebody reads them: for tests that no reader panics, whatever it
//! reads.
//!
//! Crash story: works on memory only.

use std::ops::Range;

use proptest::{
    collection::vec,
    prelude::{Strategy, any, prop_oneof},
    sample::{Index, select},
    test_runner::{Config, TestRunner},
};

/// How many cases are tried unless `STILLPOINT_CASES` says another number.
const CASES: u32 = 300;

/// What a number, a string or a bracket may become.
const WORDS: [&[u8]; 11] = [
    b"null",
    b"-1",
    b"4294967295",
    b"4294967296",
    b"18446744073709551616",
    b"1e999",
    b"\"\"",
    b"[[[[",
    b"{\"a\":",
    b"\\ud800",
    b"\xff\x00",
];

/// A change to some bytes.
#[derive(Debug, Clone)]
pub enum Change {
    /// Bits of one byte are others.
    Flip(Index, u8),
    /// It ends here.
    Cut(Index),
    /// The bytes between these places are missing.
    Drop(Index, Index),
    /// These come in here.
    Insert(Index, Vec<u8>),
    /// The bytes between these places are there twice.
    Twice(Index, Index),
    /// It is something else.
    All(Vec<u8>),
}

impl Change {
    /// The bytes with this change.
    #[must_use]
    pub fn applied(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let at = |index: &Index| index.index(bytes.len() + 1);
        let part = |a: &Index, b: &Index| at(a).min(at(b))..at(a).max(at(b));
        match self {
            Self::Flip(index, bits) => {
                let at = at(index);
                bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= bits);
            }
            Self::Cut(index) => bytes.truncate(at(index)),
            Self::Drop(a, b) => drop(bytes.drain(part(a, b))),
            Self::Insert(index, more) => {
                let at = at(index);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Twice(a, b) => {
                let part = part(a, b);
                let again = bytes[part.clone()].to_vec();
                bytes.splice(part.start..part.start, again);
            }
            Self::All(all) => bytes.clone_from(all),
        }
        bytes
    }
}

/// Some bytes with all these changes, one after the other.
#[must_use]
pub fn changed(sample: &[u8], changes: &[Change]) -> Vec<u8> {
    changes.iter().fold(sample.to_vec(), |bytes, change| change.applied(bytes))
}

/// So many changes of any kind.
pub fn changes(number: Range<usize>) -> impl Strategy<Value = Vec<Change>> {
    let word = prop_oneof![select(&WORDS[..]).prop_map(<[u8]>::to_vec), vec(any::<u8>(), 0..6)];
    let change = prop_oneof![
        4 => (any::<Index>(), 1..=u8::MAX).prop_map(|(at, bits)| Change::Flip(at, bits)),
        3 => any::<Index>().prop_map(Change::Cut),
        4 => any::<(Index, Index)>().prop_map(|(from, to)| Change::Drop(from, to)),
        6 => (any::<Index>(), word).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        3 => any::<(Index, Index)>().prop_map(|(from, to)| Change::Twice(from, to)),
        1 => vec(any::<u8>(), 0..200).prop_map(Change::All),
    ];
    vec(change, number)
}

/// Tries as many cases as are asked for.
#[must_use]
pub fn runner() -> TestRunner {
    let cases =
        std::env::var("STILLPOINT_CASES").ok().and_then(|number| number.parse().ok()).unwrap_or(CASES);
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}
