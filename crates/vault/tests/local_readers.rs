//! Whatever bytes stand in the files that are kept beside a repository, reading them does not panic, and a log archive that
//! was changed is never taken for whole. `STILLPOINT_CASES` says how many changes are tried.

mod common;

use std::{fs, path::Path};

use common::spool::{Archive, Bytes};
use model::logs::{Beginning, LogKind};
use proptest::{prelude::any, sample::Index};
use testkit::changes::{changed, changes, runner};
use vault::{
    journal,
    logs::Spool,
    reference,
    repository::{Confirmation, Password},
};

/// Puts a sample with changes at a path, again and again, and lets something read it.
fn read(sample: &str, path: &Path, reader: impl Fn()) {
    let sample = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(sample)).unwrap();
    let put = |bytes: &[u8]| {
        fs::write(path, bytes).unwrap();
        reader();
    };
    put(&sample);
    runner()
        .run(&changes(1..4), |changes| {
            put(&changed(&sample, &changes));
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
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/journal.jsonl");
    fs::copy(sample, &path).unwrap();
    assert_eq!(journal::dead_runs(dir.path()).unwrap().len(), 1, "the journals lie elsewhere");
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
    let random = (any::<Index>(), changes(1..3));
    runner()
        .run(&random, |(which, changes)| {
            let which = which.index(files.len());
            fs::write(&files[which], changed(&whole[which], &changes)).unwrap();
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
