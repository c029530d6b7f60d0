//! What the tests share: a writer, its pid file, journals.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use model::{
    inventory::ProcessSelector,
    port::{Failure, FailureKind, Journal},
    time::Deadline,
    undo::{Hook, ProcessRef, Ticket, Undo},
};
use os::{
    command::{Helper, HelperChild},
    watchdog::Watchdog,
};

pub const LONG: Duration = Duration::from_secs(20);

/// A journal in memory.
#[derive(Default)]
pub struct Memory {
    pub open: Mutex<Vec<(Ticket, Undo, Option<Deadline>)>>,
    pub next: AtomicU64,
    pub broken: bool,
}

impl Journal for Memory {
    fn intend(&self, undo: Undo, until: Option<Deadline>) -> Result<Ticket, Failure> {
        if self.broken {
            return Err(Failure::new(FailureKind::NoSpace, "no space", ""));
        }
        let ticket = Ticket(self.next.fetch_add(1, Ordering::Relaxed));
        self.open.lock().unwrap().push((ticket, undo, until));
        Ok(ticket)
    }

    fn amend(&self, ticket: Ticket, undo: Undo, until: Option<Deadline>) -> Result<(), Failure> {
        let mut open = self.open.lock().unwrap();
        let entry = open.iter_mut().find(|(t, ..)| *t == ticket).expect("amended while open");
        *entry = (ticket, undo, until);
        Ok(())
    }

    fn done(&self, ticket: Ticket) {
        self.open.lock().unwrap().retain(|(t, ..)| *t != ticket);
    }
}

/// A journal that is only the watchdog.
pub struct Told(pub Watchdog);

impl Journal for Told {
    fn intend(&self, undo: Undo, until: Option<Deadline>) -> Result<Ticket, Failure> {
        self.0.intend(Ticket(1), &undo, until)?;
        Ok(Ticket(1))
    }

    fn amend(&self, ticket: Ticket, undo: Undo, until: Option<Deadline>) -> Result<(), Failure> {
        Ok(self.0.amend(ticket, &undo, until)?)
    }

    fn done(&self, ticket: Ticket) {
        self.0.done(ticket).unwrap();
    }
}

pub fn hook(run: &str) -> Hook {
    Hook { run: run.to_owned(), timeout: LONG }
}

/// A child of the test that writes, with its pid file.
pub struct Writer {
    pub dir: tempfile::TempDir,
    pub child: HelperChild,
}

impl Writer {
    pub fn start(role: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = start(role, &[dir.path().join("data").into()]);
        fs::write(dir.path().join("pid"), child.process().pid.to_string()).unwrap();
        let writer = Self { dir, child };
        eventually("the writer writes", || fs::metadata(writer.data()).is_ok_and(|m| m.len() > 0));
        writer
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn process(&self) -> ProcessRef {
        self.child.process()
    }

    pub fn selector(&self) -> ProcessSelector {
        ProcessSelector::PidFile(self.dir.path().join("pid"))
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(self.data()).unwrap()
    }

    pub fn assert_still_for(&self, time: Duration) {
        let before = self.bytes();
        thread::sleep(time);
        assert_eq!(before, self.bytes(), "it wrote while it was held");
    }

    pub fn assert_runs(&self) {
        let before = self.bytes();
        eventually("the writer goes on", || before != self.bytes());
        for (tid, state) in states(self.process()) {
            assert!(!matches!(state, 'T' | 't'), "thread {tid} is in state {state}");
        }
    }
}

/// This program in a role, when it says that it is ready.
pub fn start(role: &str, args: &[OsString]) -> HelperChild {
    let mut child = Helper::this_program().spawn(role, args).unwrap();
    child.receive::<serde_json::Value>(LONG).unwrap_or_else(|e| panic!("{role}: {e}"));
    child
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    within(LONG, what, &mut condition);
}

pub fn within(time: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < time, "not within {time:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub fn state_of(pid: u32, tid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

pub fn states(process: ProcessRef) -> Vec<(u32, char)> {
    let pid = process.pid;
    os::process::threads(pid).into_iter().filter_map(|tid| Some((tid, state_of(pid, tid)?))).collect()
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
