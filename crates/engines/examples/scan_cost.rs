//! What a pin in two passes costs under the freeze: makes so many files of a few bytes, ten directories of a tenth
//! each or as many directories as asked, and prints how long the looks at them take while nothing changes.
//!
//! `cargo run --release -p engines --example scan_cost -- 100000 [directories [where]]`

#![allow(clippy::print_stdout, reason = "figures are what this is for")]

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use engines::fs::{Form, TreePinner};
use model::{
    entry::SETTLING,
    id::SourceId,
    known::Known,
    plan::TreePlan,
    port::{Failure, Journal, Pinner, Silent},
    time::Deadline,
    undo::{Ticket, Undo},
};
use os::clock::{SystemClock, deadline_in};

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

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u32| arguments.next().map_or(Ok(default), |text| text.parse());
    let (files, directories) = (number(100_000)?, number(10)?);
    let place = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(place)?;
    let root = dir.path().canonicalize()?.join("root");
    make(&root, files, directories)?;
    std::thread::sleep(SETTLING + Duration::from_millis(100));

    let plan = TreePlan { root: root.clone(), exclude: vec![], carved: vec![], nested_mounts: vec![] };
    let source = SourceId::new("directory", root.display());
    let staging = dir.path().join("staging");
    let mut pinner =
        TreePinner::new(source, &plan, Form::Plain, staging, Arc::new(NoJournal), Arc::new(SystemClock))?;
    let resident = resident_kib();
    timed("prepare", || pinner.prepare(&Known::default()))?;
    println!("memory    {:8} KiB more at the peak", resident_kib().saturating_sub(resident));
    for _ in 0..5 {
        timed("round", || pinner.round())?;
        let mut pin = timed("pin", || pinner.pin(deadline_in(Duration::from_mins(1))))?;
        let stillness = timed("unchanged", || pin.unchanged(deadline_in(Duration::from_mins(1))))?;
        println!("          {stillness:?}");
    }
    let touched = root.join("0/new");
    fs::write(&touched, b"new")?;
    std::thread::sleep(Duration::from_millis(20));
    let mut pin = timed("pin+1", || pinner.pin(deadline_in(Duration::from_mins(1))))?;
    let stillness = timed("unchanged", || pin.unchanged(deadline_in(Duration::from_mins(1))))?;
    println!("          {stillness:?}");
    let harvest = timed("harvest", || pin.harvest(&Silent))?;
    println!("{} entries, {} problems", harvest.entries.len(), harvest.problems.len());
    Ok(pin.release()?)
}

fn make(root: &Path, files: u32, directories: u32) -> std::io::Result<()> {
    for directory in 0..directories {
        fs::create_dir_all(root.join(directory.to_string()))?;
    }
    for file in 0..files {
        let path = root.join((file % directories).to_string()).join(format!("some file number {file}"));
        fs::write(path, b"content")?;
    }
    Ok(())
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what:<9} {:8.1} ms", start.elapsed().as_secs_f64() * 1000.0);
    result
}

/// The most memory that was in use, proc_pid_status(5).
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
