//! What clones of a database's files cost under the freeze: makes files, rewrites pages of them at random places as
//! a server does, and prints how long the rounds and the pin take; then again after so many nights, each with
//! clones and with a twentieth of all pages rewritten.
//!
//! `cargo run --release -p engines --example clone_cost -- WHERE [files [MiB each [nights [pages a second]]]]`

#![allow(clippy::print_stdout, reason = "figures are what this is for")]

use std::{
    error::Error,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use engines::fs::{Form, TreePinner};
use model::{
    id::SourceId,
    known::Known,
    plan::TreePlan,
    port::{Failure, Journal, Pinner, Silent},
    time::Deadline,
    undo::{Ticket, Undo},
};
use os::{
    clock::{SystemClock, deadline_in},
    extents::extent_count,
};

/// A page of InnoDB.
const PAGE: u64 = 16 << 10;
/// How many cuts each figure is of.
const CUTS: u32 = 5;

/// The staging directory stands in a temporary directory, which goes in any case.
struct NoJournal;

impl Journal for NoJournal {
    fn intend(&self, _undo: Undo, _until: Option<Deadline>) -> Result<Ticket, Failure> {
        Ok(Ticket(0))
    }
    fn amend(&self, _ticket: Ticket, _undo: Undo, _until: Option<Deadline>) -> Result<(), Failure> {
        Ok(())
    }
    fn done(&self, _ticket: Ticket) {}
}

/// Pages, aligned as direct writes need them.
#[repr(align(4096))]
struct Page([u8; 16 << 10]);

struct Tables {
    root: PathBuf,
    files: u64,
    pages: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let place = arguments.next().ok_or("where?")?;
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse());
    let (files, mib, nights, rate) = (number(230)?, number(10)?, number(10)?, number(1000)?);
    let dir = tempfile::tempdir_in(place)?;
    let tables = Tables { root: dir.path().canonicalize()?.join("root"), files, pages: (mib << 20) / PAGE };
    fs::create_dir(&tables.root)?;
    for file in 0..files {
        let mut table = File::create(tables.path(file))?;
        (0..mib).try_for_each(|_| table.write_all(&vec![7; 1 << 20]))?;
        table.sync_all()?;
    }
    cuts("fresh", &tables, dir.path(), rate)?;
    let kept = dir.path().join("kept");
    for night in 0..nights {
        let _ = fs::remove_dir_all(&kept);
        fs::create_dir(&kept)?;
        for file in 0..files {
            os::extents::clone_file(
                &File::open(tables.path(file))?,
                &File::create(kept.join(file.to_string()))?,
            )?;
        }
        let some = files * tables.pages / 20;
        (0..some).try_for_each(|seed| tables.write(night * some + seed))?;
    }
    fs::remove_dir_all(&kept)?;
    cuts("aged", &tables, dir.path(), rate)
}

impl Tables {
    fn path(&self, file: u64) -> PathBuf {
        self.root.join(format!("table{file}.ibd"))
    }

    /// Rewrites one page somewhere, past the page cache.
    fn write(&self, seed: u64) -> std::io::Result<()> {
        let place = mix(seed);
        let table = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(self.path((place >> 32) % self.files))?;
        let page = Page([place as u8; 16 << 10]);
        table.write_all_at(&page.0, (place % self.pages) * PAGE)
    }

    fn extents(&self) -> std::io::Result<u64> {
        (0..self.files).map(|file| Ok(extent_count(&File::open(self.path(file))?)?.unwrap_or(0))).sum()
    }
}

/// SplitMix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Cuts while pages are rewritten; the writer rests while it is held.
fn cuts(age: &str, tables: &Tables, dir: &Path, rate: u64) -> Result<(), Box<dyn Error>> {
    println!("{age}: {} extents in {} files", tables.extents()?, tables.files);
    let (held, over, written) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            for seed in 1_000_000.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                while held.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_micros(100));
                }
                if tables.write(seed).is_err() {
                    return;
                }
                let done = written.fetch_add(1, Ordering::Relaxed);
                let ahead =
                    Duration::from_secs_f64(done as f64 / rate as f64).saturating_sub(start.elapsed());
                thread::sleep(ahead);
            }
        });
        let result = (0..CUTS).try_for_each(|_| cut(tables, dir, &held, &written));
        over.store(true, Ordering::Relaxed);
        held.store(false, Ordering::Relaxed);
        result
    })
}

fn cut(tables: &Tables, dir: &Path, held: &AtomicBool, written: &AtomicU64) -> Result<(), Box<dyn Error>> {
    let plan = TreePlan { root: tables.root.clone(), exclude: vec![], carved: vec![], nested_mounts: vec![] };
    let (source, staging) = (SourceId::new("directory", tables.root.display()), dir.join("staging"));
    let mut pinner =
        TreePinner::new(source, &plan, Form::Fast, staging, Arc::new(NoJournal), Arc::new(SystemClock))?;
    let (prepared, _) = timed(|| pinner.prepare(&Known::default()))?;
    let (first, _) = timed(|| pinner.round())?;
    let (second, _) = timed(|| pinner.round())?;
    let before = written.load(Ordering::Relaxed);
    thread::sleep(Duration::from_millis(50));
    held.store(true, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(20));
    let since = written.load(Ordering::Relaxed) - before;
    let (pinned, mut pin) = timed(|| pinner.pin(deadline_in(Duration::from_mins(1))))?;
    let (looked, stillness) = timed(|| pin.unchanged(deadline_in(Duration::from_mins(1))))?;
    held.store(false, Ordering::Relaxed);
    let (harvested, harvest) = timed(|| pin.harvest(&Silent))?;
    println!(
        "  prepare {prepared:7.1}, rounds {first:7.1} {second:7.1}, UNDER THE FREEZE: pin {pinned:6.1}, unchanged \
         {looked:5.1} ms; harvest {harvested:6.1}, {} problems, {since} pages since the last round, {stillness:?}",
        harvest.problems.len()
    );
    Ok(pin.release()?)
}

fn timed<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<(f64, T), Failure> {
    let start = Instant::now();
    let result = work()?;
    Ok((start.elapsed().as_secs_f64() * 1000.0, result))
}
