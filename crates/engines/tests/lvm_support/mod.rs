//! Shared by the tests on logical volumes: the way into the virtual machine, volume groups and filesystems that
//! are gone afterwards, writers, a journal that survives its process.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::print_stdout, reason = "this is a test runner")]

pub mod disks;

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    io::{Seek, SeekFrom, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use model::{
    port::{Failure, Journal},
    time::Deadline,
    undo::{Ticket, Undo},
};
use rustix::process::{Pid, Signal, kill_process};

pub type Case = (&'static str, fn());

/// What this program is in another role, if its first argument names one.
pub type Roles = fn(role: &str, args: &[OsString]) -> Option<ExitCode>;

/// As the test program on the host: runs itself in a virtual machine with empty disks. Inside: runs the cases
/// whose names contain one of the arguments, or all. `program` is another program that the cases need.
pub fn run(cases: &[Case], roles: Roles, program: Option<&str>) -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    let first = args.first().and_then(|a| a.to_str()).unwrap_or_default();
    if let Some(code) = roles(first, &args) {
        return code;
    }
    let filters: Vec<&str> = args.iter().filter_map(|a| a.to_str()).filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let cases: Vec<&Case> = cases.iter().filter(|(name, _)| chosen(name)).collect();
    if first != "--inside" {
        return if cases.is_empty() { ExitCode::SUCCESS } else { in_the_machine(&filters, program) };
    }
    let mut failed = 0;
    for (name, case) in cases {
        let started = Instant::now();
        let ok = catch_unwind(AssertUnwindSafe(case)).is_ok();
        println!("test {name} ... {} ({:.1?})", if ok { "ok" } else { "FAILED" }, started.elapsed());
        failed += u32::from(!ok);
    }
    ExitCode::from(u8::from(failed > 0))
}

/// Of `program` and of this program copies are run: a build that goes on beside would change them under the machine,
/// which may not notice, and mix both.
fn in_the_machine(filters: &[&str], program: Option<&str>) -> ExitCode {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the crate lies two levels down");
    let copies = tempfile::tempdir().expect("a directory");
    let copy = |from: &Path, name: &str| {
        fs::copy(from, copies.path().join(name)).expect("a copy");
        copies.path().join(name)
    };
    let this = copy(&env::current_exe().expect("this program"), "test");
    let mut command = Command::new(root.join("scripts/in-vm"));
    command.arg(this).arg("--inside").args(filters).env("STILLPOINT_VM_DISKS", "2G 2G");
    // On busy processors it takes several times as long as on idle ones.
    command.env("STILLPOINT_VM_TIMEOUT", env::var("STILLPOINT_VM_TIMEOUT").unwrap_or("90m".to_owned()));
    if let Some(program) = program {
        command.env(PROGRAM, copy(Path::new(program), "program"));
    }
    let status = command.status().expect("scripts/in-vm");
    println!("the virtual machine: {status}");
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Inside: where the program is that was given to [`run`].
pub const PROGRAM: &str = "STILLPOINT_PROGRAM";

pub fn ok<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{}", failure.in_full()))
}

/// Waits for something that happens by itself, at most a minute.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within a minute");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A thread that counts in two files: `first`, then `second`, in place, and appends to a third. A state of all at
/// one instant has `second` equal to `first` or one behind.
pub struct Counter {
    root: PathBuf,
    gate: Arc<(Mutex<bool>, Condvar)>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Counter {
    pub fn start(root: &Path) -> Self {
        let (gate, stop, count) =
            (Arc::new((Mutex::new(false), Condvar::new())), Arc::default(), Arc::default());
        let counter = Self { root: root.to_owned(), gate, stop, count, thread: None };
        let (root, gate) = (counter.root.clone(), Arc::clone(&counter.gate));
        let (stop, count): (Arc<AtomicBool>, Arc<AtomicU64>) =
            (Arc::clone(&counter.stop), Arc::clone(&counter.count));
        let work = move || {
            let open = |name| fs::File::create(root.join(name)).unwrap();
            let (mut first, mut second, mut log) = (open("first"), open("second"), open("log"));
            let put = |file: &mut fs::File, n: u64| {
                file.seek(SeekFrom::Start(0)).unwrap();
                file.write_all(format!("{n:012}\n").as_bytes()).unwrap();
            };
            for n in 1.. {
                let held = gate.1.wait_while(gate.0.lock().unwrap(), |held| *held).unwrap();
                put(&mut first, n);
                put(&mut second, n);
                log.write_all(format!("{n:08}\n").as_bytes()).unwrap();
                drop(held);
                count.store(n, Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                thread::sleep(Duration::from_millis(1));
            }
        };
        let thread = Some(thread::spawn(work));
        let counter = Self { thread, ..counter };
        counter.goes_on();
        counter
    }

    /// Holds the writer back while `then` runs, as a lock on its database would.
    pub fn held<T>(&self, then: impl FnOnce() -> T) -> T {
        *self.gate.0.lock().unwrap() = true;
        let result = then();
        *self.gate.0.lock().unwrap() = false;
        self.gate.1.notify_all();
        result
    }

    /// The writer is alive: it counts to two more than now.
    pub fn goes_on(&self) {
        let from = self.count.load(Ordering::SeqCst);
        eventually("the writer goes on", || (self.count.load(Ordering::SeqCst) >= from + 2).then_some(()));
    }

    /// Ends it; fails if it failed.
    pub fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().expect("the writer never met an error");
    }
}

/// Both counters as some copy of the tree has them, and that they are of one instant.
pub fn counted(read: impl Fn(&str) -> Vec<u8>) -> u64 {
    let number = |name| String::from_utf8(read(name)).unwrap().trim().parse::<u64>().unwrap();
    let (first, second) = (number("first"), number("second"));
    assert!(second == first || second + 1 == first, "{first} and {second} are not of one instant");
    let log = read("log");
    assert!(
        (second.saturating_sub(1)..=second).contains(&(log.len() as u64 / 9)),
        "{} of {second}",
        log.len()
    );
    first
}

/// A thread that writes other bytes over files again and again, which is what fills a snapshot of them.
pub struct Rewriter {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Rewriter {
    /// Rewrites these files from end to end, a mebibyte at a time, each synced; rests for `pace` between.
    pub fn start(files: Vec<PathBuf>, pace: Duration) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (seen, count) = (Arc::clone(&stop), Arc::clone(&written));
        let work = move || {
            for round in 1_u8.. {
                for path in &files {
                    let mut file = fs::File::options().write(true).open(path).unwrap();
                    let length = file.metadata().unwrap().len();
                    for _ in 0..length / disks::MIB {
                        if seen.load(Ordering::SeqCst) {
                            return;
                        }
                        file.write_all(&noise(usize::try_from(disks::MIB).unwrap(), u64::from(round)))
                            .unwrap();
                        file.sync_data().expect("the origin takes what is written");
                        count.fetch_add(disks::MIB, Ordering::SeqCst);
                        thread::sleep(pace);
                    }
                }
            }
        };
        Self { stop, written, thread: Some(thread::spawn(work)) }
    }

    /// Waits until so many more bytes are written.
    pub fn wait_for(&self, bytes: u64) {
        let from = self.written.load(Ordering::SeqCst);
        eventually("the origin takes writes", || {
            (self.written.load(Ordering::SeqCst) >= from + bytes).then_some(())
        });
    }

    /// Ends it; fails if a write failed.
    pub fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().expect("the origin took all writes");
    }
}

/// Pages of which no two are equal, the same for the same seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    const PAGE: usize = 4096;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let page: Vec<u8> = (0..PAGE / 8)
        .flat_map(|_| {
            // xorshift64: Marsaglia, "Xorshift RNGs".
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    let mut bytes = page.repeat(length.div_ceil(PAGE));
    for (number, page) in bytes.chunks_mut(PAGE).enumerate() {
        page[..8].copy_from_slice(&seed.to_le_bytes());
        page[8..16].copy_from_slice(&number.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// When the process is to be killed: after so many entries in its journal.
pub type Fuse = Option<u64>;

/// A journal in a file, for a process that is killed and for whoever cleans up after it.
pub struct PaperFile {
    path: PathBuf,
    fuse: Fuse,
    state: Mutex<(u64, BTreeMap<u64, Undo>)>,
}

impl PaperFile {
    pub fn new(path: &Path, fuse: Fuse) -> Self {
        Self { path: path.to_owned(), fuse, state: Mutex::default() }
    }

    fn write(&self, change: impl FnOnce(&mut BTreeMap<u64, Undo>, u64)) -> u64 {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        let number = state.0;
        change(&mut state.1, number);
        let undos: Vec<&Undo> = state.1.values().collect();
        fs::write(&self.path, serde_json::to_vec(&undos).unwrap()).unwrap();
        if self.fuse == Some(number) {
            kill_process(Pid::from_raw(i32::try_from(std::process::id()).unwrap()).unwrap(), Signal::KILL)
                .unwrap();
            thread::sleep(Duration::from_secs(60));
        }
        number
    }
}

impl Journal for PaperFile {
    fn intend(&self, undo: Undo, _until: Option<Deadline>) -> Result<Ticket, Failure> {
        Ok(Ticket(self.write(|open, number| {
            open.insert(number, undo);
        })))
    }
    fn amend(&self, ticket: Ticket, undo: Undo, _until: Option<Deadline>) -> Result<(), Failure> {
        self.write(|open, _| {
            open.insert(ticket.0, undo);
        });
        Ok(())
    }
    fn done(&self, ticket: Ticket) {
        self.write(|open, _| {
            open.remove(&ticket.0);
        });
    }
}

/// What a dead process's journal says is still to be undone, oldest first.
pub fn left_open(path: &Path) -> Vec<Undo> {
    fs::read(path).map(|bytes| serde_json::from_slice(&bytes).unwrap()).unwrap_or_default()
}
