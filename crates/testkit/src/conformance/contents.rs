//! What all [`Contents`] have to do.
//!
//! Crash story: see the parent.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use model::{
    entry::Kind,
    port::{Failure, FailureKind},
    port_restore::Contents,
};

use super::cases;

/// A backup under test.
pub trait Bench {
    /// Stores these regular files, and what is read from now on is that backup. Paths are relative to
    /// [`Bench::root`].
    fn store(&self, files: &BTreeMap<PathBuf, Vec<u8>>);
    /// Where they are in the backup.
    fn root(&self) -> PathBuf;
    /// Opens the backup.
    fn open(&self, look: &mut dyn FnMut(&dyn Contents));
    /// Damages what is stored; whether that is possible.
    fn damage(&self) -> bool;
}

/// Runs every case, each on a fresh bench.
pub fn suite(make: impl Fn() -> Box<dyn Bench>) {
    cases!(make:
        what_was_stored_is_listed_and_read,
        any_range_can_be_read,
        files_are_read_together,
        what_is_the_same_matches_and_nothing_else,
        a_sink_that_fails_ends_the_reading,
        threads_read_side_by_side,
        what_is_not_there_is_an_error,
        damage_is_never_handed_over,
    );
}

/// Bytes by path.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Empty, small, and in several parts; two alike.
fn files() -> Files {
    let noise = |count: u32| -> Vec<u8> {
        (0..count).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect()
    };
    let files = [
        ("empty", vec![]),
        ("small", b"small".to_vec()),
        ("sub/same", b"small".to_vec()),
        ("sub/large", noise(2_000_000)),
    ];
    files.map(|(path, bytes)| (PathBuf::from(path), bytes)).into()
}

fn item(contents: &dyn Contents, path: &Path) -> usize {
    contents.listing().position(path).unwrap_or_else(|| panic!("{} is not listed", path.display()))
}

fn size(contents: &dyn Contents, item: usize) -> u64 {
    contents.listing().entries().get(item).map_or(0, |entry| entry.meta.size.0)
}

fn read(contents: &dyn Contents, item: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    contents.read(item, 0..size(contents, item), &mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    })?;
    Ok(bytes)
}

/// Stores the files and opens the backup.
fn stored(bench: &dyn Bench, mut look: impl FnMut(&dyn Contents, &Files)) {
    let files: Files = files().into_iter().map(|(p, b)| (bench.root().join(p), b)).collect();
    bench.store(&self::files());
    bench.open(&mut |contents| look(contents, &files));
}

/// Every file with its size and its bytes, again and again.
pub fn what_was_stored_is_listed_and_read(bench: &dyn Bench) {
    stored(bench, |contents, files| {
        let listing = contents.listing();
        let listed =
            listing.entries().iter().filter(|e| e.kind == Kind::File && e.path.starts_with(bench.root()));
        assert_eq!(listed.count(), files.len());
        for (path, bytes) in files.iter().chain(files) {
            let item = item(contents, path);
            assert_eq!(listing.entries()[item].meta.size.0, bytes.len() as u64);
            match read(contents, item) {
                Ok(found) => assert!(found == *bytes, "{} has other bytes", path.display()),
                Err(failure) => panic!("{}: {}", path.display(), failure.in_full()),
            }
        }
    });
}

/// Wherever parts begin and end.
pub fn any_range_can_be_read(bench: &dyn Bench) {
    stored(bench, |contents, files| {
        for (path, bytes) in files {
            let (item, size) = (item(contents, path), bytes.len());
            for (from, to) in
                [(0, 0), (0, 1), (1, size), (size / 3, size / 2), (size / 2, size), (size, size)]
            {
                let (from, to) = (from.min(size), to.min(size));
                let mut found = Vec::new();
                let read = contents.read(item, from as u64..to as u64, &mut |part| {
                    found.extend_from_slice(part);
                    Ok(())
                });
                assert!(read.is_ok() && found == bytes[from..to], "{} from {from} to {to}", path.display());
            }
        }
    });
}

/// Each once, in the order asked for, whatever is among them.
pub fn files_are_read_together(bench: &dyn Bench) {
    stored(bench, |contents, files| {
        let mut items: Vec<(usize, Option<&[u8]>)> =
            files.iter().map(|(path, bytes)| (item(contents, path), Some(bytes.as_slice()))).collect();
        items.insert(2, (usize::MAX, None));
        let numbers: Vec<usize> = items.iter().map(|(item, _)| *item).collect();
        let mut taken = 0;
        contents.read_each(&numbers, &mut |number, found| {
            assert_eq!(number, taken);
            taken += 1;
            match (found, items[number].1) {
                (Ok(found), Some(bytes)) => assert!(found == bytes, "file {number} has other bytes"),
                (Err(_), None) => {}
                (found, _) => panic!("{number}: {:?}", found.map_err(|failure| failure.in_full())),
            }
        });
        assert_eq!(taken, numbers.len());
        contents.read_each(&[], &mut |_, _| panic!("nothing was asked for"));
    });
}

/// Byte for byte, and no byte more or less, as a whole and in ranges.
pub fn what_is_the_same_matches_and_nothing_else(bench: &dyn Bench) {
    stored(bench, |contents, files| {
        for (path, bytes) in files {
            let item = item(contents, path);
            let size = size(contents, item);
            let match_in = |bytes: &[u8], range: std::ops::Range<u64>| {
                // A tap may give less than it was asked for.
                let same = contents.matches(item, range, &mut |offset, buffer| {
                    let rest = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
                    let length = buffer.len().min(rest.len()).min(10_000);
                    buffer[..length].copy_from_slice(&rest[..length]);
                    Ok(length)
                });
                same.unwrap_or_else(|failure| panic!("{}", failure.in_full()))
            };
            let matches = |bytes: &[u8]| {
                let whole = match_in(bytes, 0..size);
                let (first, second) = (match_in(bytes, 0..size / 3), match_in(bytes, size / 3..size));
                assert_eq!(whole, first && second, "{}", path.display());
                whole
            };
            assert!(matches(bytes), "{}", path.display());
            assert!(!matches(&[bytes.as_slice(), b"."].concat()), "{} goes on", path.display());
            if let Some((last, front)) = bytes.split_last() {
                assert!(!matches(front), "{} ends early", path.display());
                assert!(!matches(&[front, &[last ^ 1]].concat()), "{} is other", path.display());
            }
        }
    });
}

/// It is called no more, and its failure comes out as it is.
pub fn a_sink_that_fails_ends_the_reading(bench: &dyn Bench) {
    stored(bench, |contents, _| {
        let mut calls = 0;
        let large = item(contents, &bench.root().join("sub/large"));
        let failed = contents.read(large, 0..size(contents, large), &mut |_| {
            calls += 1;
            Err(Failure::new(FailureKind::NoSpace, "the disk is full", ""))
        });
        assert!(matches!(failed, Err(failure) if failure.kind == FailureKind::NoSpace));
        assert_eq!(calls, 1);
    });
}

/// Each gets its own file.
pub fn threads_read_side_by_side(bench: &dyn Bench) {
    stored(bench, |contents, files| {
        std::thread::scope(|scope| {
            for (path, bytes) in files.iter().chain(files) {
                scope.spawn(move || {
                    let found = read(contents, item(contents, path));
                    assert!(found.is_ok_and(|found| found == *bytes), "{}", path.display());
                });
            }
        });
    });
}

/// Nothing is handed over for an index that nothing has.
pub fn what_is_not_there_is_an_error(bench: &dyn Bench) {
    stored(bench, |contents, _| {
        assert!(read(contents, contents.listing().entries().len()).is_err());
    });
}

/// What is handed over is right as far as it goes, and a file that lacks anything fails.
pub fn damage_is_never_handed_over(bench: &dyn Bench) {
    let files: Files = files().into_iter().map(|(p, b)| (bench.root().join(p), b)).collect();
    bench.store(&self::files());
    if !bench.damage() {
        return;
    }
    let mut failed = 0;
    bench.open(&mut |contents| {
        let mut together = 0;
        let items: Vec<usize> = files.keys().map(|path| item(contents, path)).collect();
        contents.read_each(&items, &mut |number, found| match (found, files.values().nth(number)) {
            (Ok(found), bytes) => assert_eq!(Some(found), bytes.map(Vec::as_slice)),
            (Err(failure), _) => {
                together += 1;
                assert_eq!(failure.kind, FailureKind::Damaged, "{}", failure.in_full());
            }
        });
        assert!(together > 0 && together < items.len(), "{together} of {} are damaged", items.len());
        for (path, bytes) in &files {
            let mut found = Vec::new();
            let done = contents.read(item(contents, path), 0..bytes.len() as u64, &mut |part| {
                found.extend_from_slice(part);
                Ok(())
            });
            match done {
                Ok(()) => assert!(found == *bytes, "{} has other bytes", path.display()),
                Err(failure) => {
                    failed += 1;
                    assert_eq!(failure.kind, FailureKind::Damaged, "{}", failure.in_full());
                    assert!(bytes.starts_with(&found), "{}: wrong bytes are handed over", path.display());
                }
            }
        }
    });
    assert!(failed > 0, "the damage is not noticed");
}
