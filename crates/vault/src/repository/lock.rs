//! restic's locks: files under `locks/` that say who uses a repository.
//!
//! Form and rules: "Locks" in restic's `doc/design.rst`. Shared while writing, exclusive for whatever
//! deletes. A lock is checked for, created, and checked for again 200 ms later, so that of two exclusive
//! takers at least one sees the other. A shared or exclusive lock is written anew every five minutes; restic
//! takes one that is older than 30 minutes for dead.
//!
//! Crash story: the lock is in the journal before it is made, so watchdog, `thaw` or the next run removes
//! it. Whoever finds a lock of this host whose process is gone removes it too; anybody else's is respected,
//! however old. When a lock is refreshed, old and new overlap, each with its own line in the journal.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use model::{port::Journal, undo::Ticket, undo::Undo};
use serde::{Deserialize, Serialize};

use super::{
    crypt::{SecretKey, name_of},
    disk::Disk,
    error::{RepositoryError, StorageError},
};

const REFRESH: Duration = Duration::from_secs(5 * 60);
const RECHECK: Duration = Duration::from_millis(200);
/// The log archive takes an exclusive lock for an instant every minute. Whoever meets a lock this young waits for it to
/// go, in seconds.
const YOUNG_S: i64 = 3;
/// How long that may take in all.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a lock keeps others from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockKind {
    /// Deleting.
    Shared,
    /// Everything but reading.
    Exclusive,
}

/// A lock file's content.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Written {
    time: Timestamp,
    exclusive: bool,
    hostname: String,
    username: String,
    pid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
}

/// Whoever holds a lock that is in our way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The lock's file.
    pub path: PathBuf,
    /// Who, if the lock can be read.
    pub who: Option<Who>,
}

/// The holder of a lock, by its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Its host.
    pub hostname: String,
    /// Its user.
    pub username: String,
    /// Its process id on that host.
    pub pid: u32,
    /// When the lock was written or last refreshed.
    pub time: Timestamp,
    /// How long ago that was when we looked, in seconds.
    pub age_s: i64,
    /// Whether it is exclusive.
    pub exclusive: bool,
    /// Whether it is of this host.
    pub here: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(who) = &self.who else {
            return write!(f, "{}, which cannot be read", self.path.display());
        };
        let kind = if who.exclusive { "exclusively" } else { "for writing" };
        let age = SignedDuration::from_secs(who.age_s);
        write!(
            f,
            "process {} of {}@{} ({kind}, taken or refreshed {age:#} ago)",
            who.pid, who.username, who.hostname
        )
    }
}

impl Holder {
    /// What a person can do about it.
    pub(crate) fn remedy(&self) -> String {
        let elsewhere = "make sure that nothing there uses the repository, then run `restic unlock`";
        match &self.who {
            Some(who) if who.here => "wait until it has ended, or end it".into(),
            Some(who) if who.age_s < 30 * 60 => "wait until it has ended".into(),
            Some(_) => format!("it has not been refreshed for over 30 minutes: {elsewhere}"),
            None => elsewhere.into(),
        }
    }
}

/// This host and user, as locks and keys name them.
#[derive(Debug, Clone)]
pub(crate) struct Me {
    pub(crate) hostname: String,
    pub(crate) username: String,
    uid: u32,
    gid: u32,
}

impl Me {
    pub(crate) fn here() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let username = super::node::Names::default().user(uid).unwrap_or_else(|| uid.to_string());
        Self { hostname, username, uid, gid: rustix::process::getegid().as_raw() }
    }
}

/// What is needed to write and read locks.
#[derive(Clone)]
pub(crate) struct Locks {
    pub(crate) dir: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) key: SecretKey,
    pub(crate) me: Me,
    pub(crate) journal: Arc<dyn Journal>,
}

/// The second look, which is still to come.
pub(crate) struct Look {
    thread: JoinHandle<Result<(), RepositoryError>>,
    dir: PathBuf,
}

impl Look {
    /// Waits for it.
    ///
    /// # Errors
    /// As [`Lock::settle`].
    pub(crate) fn wait(self) -> Result<(), RepositoryError> {
        self.thread.join().unwrap_or(Err(RepositoryError::LockLost { dir: self.dir }))
    }
}

/// Tries again while somebody of this host holds a lock that is young.
fn patiently<T>(
    mut take: impl FnMut() -> Result<(Lock, T), RepositoryError>,
) -> Result<(Lock, T), RepositoryError> {
    let begun = Instant::now();
    loop {
        match take() {
            Err(RepositoryError::Locked { holder, .. })
                if holder.who.as_ref().is_some_and(|who| who.here && who.age_s < YOUNG_S)
                    && begun.elapsed() < PATIENCE =>
            {
                thread::sleep(RECHECK);
            }
            taken => return taken,
        }
    }
}

/// A lock of ours, kept fresh by a thread. [`Lock::release`] ends it; dropping it does the same and can only
/// log a failure.
pub(crate) struct Lock {
    held: Arc<Mutex<Option<Held>>>,
    locks: Locks,
    stop: Arc<(Mutex<bool>, Condvar)>,
    refresher: Option<JoinHandle<()>>,
    /// The second look, until its result was asked for.
    look: Option<Look>,
}

struct Held {
    path: PathBuf,
    ticket: Ticket,
}

impl Locks {
    /// Takes a lock, or says who is in the way and has been for a moment.
    pub(crate) fn take(&self, kind: LockKind) -> Result<Lock, RepositoryError> {
        Ok(self.take_meanwhile(kind, |_| Ok(()))?.0)
    }

    /// The same, with a task that reads what the lock protects; it is given the lock's file. It runs while the lock
    /// waits for its second look, and its result is handed out only if that shows nobody: whoever deletes has seen
    /// this lock before, or is seen then.
    pub(crate) fn take_meanwhile<T>(
        &self,
        kind: LockKind,
        mut task: impl FnMut(&Path) -> Result<T, RepositoryError>,
    ) -> Result<(Lock, T), RepositoryError> {
        patiently(|| {
            let (mut lock, done) = self.try_unsettled(kind, &mut task)?;
            lock.settle()?;
            Ok((lock, done))
        })
    }

    /// The same, but the second look is still to come: it is taken in time whatever the caller does meanwhile, and before
    /// anything is written on the ground of the result [`Lock::settle`] has to say that it showed nobody.
    pub(crate) fn take_unsettled<T>(
        &self,
        kind: LockKind,
        mut task: impl FnMut(&Path) -> Result<T, RepositoryError>,
    ) -> Result<(Lock, T), RepositoryError> {
        patiently(|| self.try_unsettled(kind, &mut task))
    }

    /// Takes a lock, or says who is in the way.
    pub(crate) fn take_at_once(&self, kind: LockKind) -> Result<Lock, RepositoryError> {
        let (mut lock, ()) = self.try_unsettled(kind, &mut |_| Ok(()))?;
        lock.settle()?;
        Ok(lock)
    }

    fn try_unsettled<T>(
        &self,
        kind: LockKind,
        task: &mut impl FnMut(&Path) -> Result<T, RepositoryError>,
    ) -> Result<(Lock, T), RepositoryError> {
        self.refuse_if_conflicting(kind, None)?;
        let held = self.write(kind)?;
        let written = Instant::now();
        // Before the task reads anything: writing may have taken long enough for somebody to look twice in between, delete, and be
        // gone at our second look.
        if let Err(refusal) = self.refuse_if_conflicting(kind, Some(&held.path)) {
            self.remove(held)?;
            return Err(refusal);
        }
        let own = held.path.clone();
        let look = self.look_later(kind, own.clone(), written);
        let mut lock = Lock::kept(self.clone(), kind, held, look);
        match task(&own) {
            Ok(done) => Ok((lock, done)),
            Err(error) => {
                // Who is in the way says more than what came of it.
                lock.settle()?;
                lock.release()?;
                Err(error)
            }
        }
    }

    /// The second look, by a thread of its own so that it is taken in time.
    fn look_later(&self, kind: LockKind, own: PathBuf, written: Instant) -> Look {
        let (locks, dir) = (self.clone(), self.dir.clone());
        let thread = thread::spawn(move || {
            thread::sleep(RECHECK.saturating_sub(written.elapsed()));
            locks.refuse_if_conflicting(kind, Some(&own))
        });
        Look { thread, dir }
    }

    /// Whether nobody holds a lock but the one in this file. A dead one of this host does not count.
    pub(crate) fn is_alone(&self, own: &Path) -> Result<bool, RepositoryError> {
        for path in self.list()? {
            if own == path {
                continue;
            }
            let holder = self.look(&path)?;
            if holder.is_some_and(|holder| holder.who.is_none_or(|who| !who.here || !is_gone(&who))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a lock other than `own` is in the way of one of this kind. Dead ones of this host are removed.
    fn refuse_if_conflicting(&self, kind: LockKind, own: Option<&Path>) -> Result<(), RepositoryError> {
        for path in self.list()? {
            if own == Some(path.as_path()) {
                continue;
            }
            let Some(holder) = self.look(&path)? else { continue };
            let in_the_way = match &holder.who {
                Some(who) if who.here && is_gone(who) => {
                    self.unlink(&path)?;
                    false
                }
                Some(who) => who.exclusive || kind == LockKind::Exclusive,
                None => true,
            };
            if in_the_way {
                return Err(RepositoryError::Locked { dir: self.dir.clone(), holder: Box::new(holder) });
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<PathBuf>, StorageError> {
        let dir = self.dir.join("locks");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StorageError::read(dir, error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| StorageError::read(&dir, source))?;
            let is_lock = entry.file_name().to_str().is_some_and(|n| n.len() == 64 && hex::decode(n).is_ok());
            if is_lock {
                paths.push(entry.path());
            }
        }
        Ok(paths)
    }

    /// Who holds this lock; nothing if it is gone meanwhile.
    fn look(&self, path: &Path) -> Result<Option<Holder>, StorageError> {
        let sealed = match fs::read(path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::read(path, error)),
        };
        let written: Option<Written> =
            self.key.decrypt_file(&sealed).ok().and_then(|json| serde_json::from_slice(&json).ok());
        let who = written.map(|w| Who {
            here: w.hostname == self.me.hostname,
            age_s: Timestamp::now().duration_since(w.time).as_secs(),
            hostname: w.hostname,
            username: w.username,
            pid: w.pid,
            time: w.time,
            exclusive: w.exclusive,
        });
        Ok(Some(Holder { path: path.into(), who }))
    }

    fn write(&self, kind: LockKind) -> Result<Held, RepositoryError> {
        let written = Written {
            time: Timestamp::now(),
            exclusive: kind == LockKind::Exclusive,
            hostname: self.me.hostname.clone(),
            username: self.me.username.clone(),
            pid: std::process::id(),
            uid: Some(self.me.uid),
            gid: Some(self.me.gid),
        };
        let dir = self.dir.join("locks");
        let damaged = |what: String| StorageError::Damaged { path: dir.clone(), what };
        let json = serde_json::to_vec(&written).map_err(|e| damaged(e.to_string()))?;
        let sealed = self.key.encrypt(&json).map_err(|e| damaged(e.to_string()))?;
        let path = dir.join(name_of(&sealed));
        let undo = Undo::RemoveLock { path: path.clone() };
        let ticket = self.journal.intend(undo, None).map_err(|source| RepositoryError::Journal { source })?;
        // Nobody but `prune` would remove half a lock under another name.
        if let Err(source) = self.disk.put_unseen(&path, &sealed) {
            // It may be there although it could not be made durable; if it cannot be removed either, it
            // stays in the journal.
            let error = StorageError::write(&path, source);
            if let Err(left) = self.remove(Held { path, ticket }) {
                tracing::warn!("{left}: the next run removes it");
            }
            return Err(error.into());
        }
        Ok(Held { path, ticket })
    }

    /// Removes a lock of ours and crosses it off; if it cannot be removed it stays in the journal.
    fn remove(&self, held: Held) -> Result<(), StorageError> {
        self.unlink(&held.path)?;
        self.journal.done(held.ticket);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> Result<(), StorageError> {
        match self.disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::remove(path, error)),
            _ => Ok(()),
        }
    }
}

impl Lock {
    fn kept(locks: Locks, kind: LockKind, held: Held, look: Look) -> Self {
        let held = Arc::new(Mutex::new(Some(held)));
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let refresher = {
            let (locks, held, stop) = (locks.clone(), held.clone(), stop.clone());
            thread::spawn(move || {
                while !stopped_within(&stop, REFRESH) {
                    refresh(&locks, kind, &held);
                }
            })
        };
        Self { held, locks, stop, refresher: Some(refresher), look: Some(look) }
    }

    /// Waits for the second look, if it was not yet asked for.
    ///
    /// # Errors
    /// Who is in the way; nothing that was read under this lock is to be believed then, and the lock is to be released.
    pub(crate) fn settle(&mut self) -> Result<(), RepositoryError> {
        self.look.take().map_or(Ok(()), Look::wait)
    }

    /// The second look, if it was not yet asked for: whoever takes it waits for it.
    pub(crate) fn second_look(&mut self) -> Option<Look> {
        self.look.take()
    }

    /// Whether the lock's file is still there: whoever takes us for dead may remove it.
    pub(crate) fn stands(&self) -> bool {
        guard(&self.held).as_ref().is_some_and(|held| held.path.exists())
    }

    /// Removes the lock.
    ///
    /// # Errors
    /// If its file cannot be removed; it stays in the journal then.
    pub(crate) fn release(mut self) -> Result<(), StorageError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), StorageError> {
        *guard(&self.stop.0) = true;
        self.stop.1.notify_all();
        if let Some(refresher) = self.refresher.take() {
            // It cannot panic: everything in it returns errors, which it logs.
            let _ended = refresher.join();
        }
        match guard(&self.held).take() {
            Some(held) => self.locks.remove(held),
            None => Ok(()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("a lock is left behind, the next run removes it: {error}");
        }
    }
}

/// Writes the lock anew and removes the old file. If that fails the old lock stands, and the next try is in
/// five minutes: there are five before anybody takes it for dead.
fn refresh(locks: &Locks, kind: LockKind, held: &Mutex<Option<Held>>) {
    let renewed = locks.write(kind).map_err(|e| e.to_string()).and_then(|fresh| {
        let old = guard(held).replace(fresh);
        old.map_or(Ok(()), |old| locks.remove(old).map_err(|e| e.to_string()))
    });
    if let Err(error) = renewed {
        tracing::warn!("the lock of {} was not refreshed: {error}", locks.dir.display());
    }
}

fn stopped_within(stop: &(Mutex<bool>, Condvar), time: Duration) -> bool {
    let stopped = guard(&stop.0);
    let waited = stop.1.wait_timeout_while(stopped, time, |stopped| !*stopped);
    *waited.unwrap_or_else(PoisonError::into_inner).0
}

fn guard<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the process that wrote a lock of this host is gone: no process has its number, or the one that
/// has it started after the lock was written.
fn is_gone(who: &Who) -> bool {
    match started_at(who.pid) {
        Some(start) => start.duration_since(who.time) > SignedDuration::from_secs(2),
        None => !Path::new(&format!("/proc/{}", who.pid)).exists(),
    }
}

/// When a process started, to the second: boot time of `/proc/stat` and field 22 of `/proc/[pid]/stat`,
/// proc(5).
fn started_at(pid: u32) -> Option<Timestamp> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    let ticks: i64 = after_name.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let all = fs::read_to_string("/proc/stat").ok()?;
    let boot: i64 = all.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    let per_second = i64::try_from(rustix::param::clock_ticks_per_second()).ok()?;
    Timestamp::from_second(boot + ticks / per_second).ok()
}
