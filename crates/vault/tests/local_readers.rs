//! Whatever bytes stand in the files that are kept beside a repository, reading them does not panic, and a log archive that
//! was changed is never taken for whole. `STILLPOINT_CASES` says how many changes are tried.

mod common;

use std::{fs, path::Path};

use common::spool::{Archive, Bytes};
use model::logs::{Beginning, LogKind};
use proptest::{
    collection::vec,
    prelude::{Strategy, any, prop_oneof},
    sample::{Index, select},
    test_runner::{Config, TestRunner},
};
use vault::{
    journal,
    logs::Spool,
    reference,
    repository::{Confirmation, Password},
};

/// What a number, a string or a bracket may become.
const WORDS: [&[u8]; 9] = [
    b"null",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"\"\"",
    b"[[[[",
    b"{\"a\":",
    b"\\ud800",
    b"\xff\x00",
];

#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Cut(Index),
    Drop(Index, Index),
    Insert(Index, Vec<u8>),
    All(Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (any::<Index>(), 1..=u8::MAX).prop_map(|(at, bits)| Change::Flip(at, bits)),
        2 => any::<Index>().prop_map(Change::Cut),
        4 => any::<(Index, Index)>().prop_map(|(from, to)| Change::Drop(from, to)),
        6 => (any::<Index>(), select(&WORDS[..])).prop_map(|(at, word)| Change::Insert(at, word.to_vec())),
        1 => vec(any::<u8>(), 0..100).prop_map(Change::All),
    ]
}

fn changed(mut bytes: Vec<u8>, change: &Change) -> Vec<u8> {
    let at = |index: &Index| index.index(bytes.len() + 1);
    match change {
        Change::Flip(index, bits) => {
            let at = at(index);
            bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= bits);
        }
        Change::Cut(index) => bytes.truncate(at(index)),
        Change::Drop(from, to) => {
            let (from, to) = (at(from), at(to));
            bytes.drain(from.min(to)..from.max(to));
        }
        Change::Insert(index, word) => {
            let at = at(index);
            bytes.splice(at..at, word.iter().copied());
        }
        Change::All(all) => bytes.clone_from(all),
    }
    bytes
}

fn cases() -> Config {
    let cases = std::env::var("STILLPOINT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    Config { cases, failure_persistence: None, ..Config::default() }
}

/// Puts a sample with changes at a path, again and again, and lets something read it.
fn read(sample: &str, path: &Path, reader: impl Fn()) {
    let sample = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(sample)).unwrap();
    let put = |bytes: &[u8]| {
        fs::write(path, bytes).unwrap();
        reader();
    };
    put(&sample);
    TestRunner::new(cases())
        .run(&vec(change(), 1..4), |changes| {
            put(&changes.iter().fold(sample.clone(), changed));
            Ok(())
        })
        .unwrap();
}

#[test]
fn references() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reference.json");
    read("reference.json", &path, || drop(reference::read(&path)));
}

#[test]
fn journals_of_dead_runs() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("journal")).unwrap();
    let path = dir.path().join("journal/20261120T031500Z-4711.jsonl");
    read("journal.jsonl", &path, || {
        for run in journal::dead_runs(dir.path()).unwrap() {
            drop((run.open_undos(), run.problems().len()));
        }
    });
    assert!(path.exists(), "the journals lie elsewhere");
}

#[test]
fn confirmations() {
    let dir = tempfile::tempdir().unwrap();
    let password = Password::generate();
    let path = Confirmation::path_for(&dir.path().join("password"));
    read("password.confirmed", &path, || {
        assert!(!matches!(Confirmation::read(&path, &password), Ok(Some(_))))
    });
}

/// A segment or its sidecar is changed: what is still called whole is what was written.
#[test]
fn log_archives() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("logs");
    let (source, epoch) = {
        let mut archive = Archive::new(at.clone());
        let epoch = archive.begin_epoch(1, Beginning::First);
        archive.segment(b"the first segment");
        archive.segment(b"the second one");
        archive.begin_segment();
        archive.append(b"the open one");
        (archive.source.clone(), epoch)
    };
    let spool = Spool::open(&at);
    let below = spool.epoch_dir(&source, &epoch);
    let mut files: Vec<_> = fs::read_dir(&below).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let whole: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let contents: [&[u8]; 2] = [b"the first segment", b"the second one"];
    let look = || {
        drop(spool.statuses());
        let Ok(catalogue) = spool.catalogue(&|_| Box::new(Bytes)) else { return };
        let Ok(wrong) = spool.verify(&catalogue, &mut |_| ()) else { return };
        if !wrong.is_empty() {
            return;
        }
        for (number, content) in (1..).zip(contents) {
            if let Some(path) = catalogue.sources[0].segment_path(&epoch, number) {
                assert!(
                    fs::read(path).unwrap().starts_with(content),
                    "segment {number} is not what was written"
                );
            }
        }
    };
    let random = (any::<Index>(), vec(change(), 1..3));
    TestRunner::new(cases())
        .run(&random, |(which, changes)| {
            let which = which.index(files.len());
            fs::write(&files[which], changes.iter().fold(whole[which].clone(), changed)).unwrap();
            look();
            drop(spool.writer(&source, LogKind::Binlog, Box::new(Bytes)));
            for entry in fs::read_dir(&below).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
            for (file, bytes) in files.iter().zip(&whole) {
                fs::write(file, bytes).unwrap();
            }
            Ok(())
        })
        .unwrap();
}
