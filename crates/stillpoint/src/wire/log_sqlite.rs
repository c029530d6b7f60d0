//! The write-ahead log of an SQLite database, put into the log archive.
//!
//! Crash story: the helper protects what is not synced, and ends with us; what is synced stays, and the next start goes on
//! from there or records a hole. A base that was not finished is removed by the next start.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::Sender,
    thread,
    time::{Duration, Instant},
};

use engines::sqlite::wal::{self, SEGMENT_LEAD, follow};
use jiff::Timestamp;
use model::{
    id::{EpochId, SourceId},
    logs::{
        Added, Beginning, EpochRecord, HoleCause, LOGS_VERSION, LogKind, LogPlace, LogStatus, SegmentHead,
        Span, WalPosition, WholePart,
    },
    port::{Failure, FailureKind},
};
use orchestrate::ship::{Report, Settings};
use os::command::Helper;
use vault::logs::{LogsError, Spool, Tail, Writer};

use crate::{output::logs::Event, signals::Interrupt};

/// So old an epoch's base may be: what is replayed over it is at most what was written in that time.
const BASE_EVERY: Duration = Duration::from_secs(24 * 3600);
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
const STATUS_EVERY: Duration = Duration::from_secs(1);
const BASE: &str = "base.db";

/// Reads segments of write-ahead logs.
pub struct WalTail;

impl Tail for WalTail {
    fn whole(&self, head: &SegmentHead, segment: &mut dyn io::Read) -> io::Result<WholePart> {
        wal::whole_of(head, segment)
    }
}

/// Archives the log of the database at this path until it is interrupted.
///
/// # Errors
/// As [`SqliteLog::run`]; if another process archives it, and does not end soon.
pub fn run(
    spool: &Spool,
    source: &SourceId,
    path: &Path,
    settings: Settings,
    interrupt: &Interrupt,
    tell: &Sender<(SourceId, Event)>,
) -> Result<(), Failure> {
    let writer = writer(spool, source, interrupt)?;
    let mut report = |report: &Report| {
        // Nobody listens any more only if the command is ending.
        let _ = tell.send((source.clone(), Event::Report(report.clone())));
    };
    SqliteLog::new(writer, source, path, settings, &mut report).run(&|| interrupt.is_asked())
}

/// One that was killed may still be ending.
fn writer(spool: &Spool, source: &SourceId, interrupt: &Interrupt) -> Result<Writer, LogsError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let from = Instant::now();
    loop {
        match spool.writer(source, LogKind::SqliteWal, Box::new(WalTail)) {
            Err(LogsError::Busy { .. }) if from.elapsed() < PATIENCE && !interrupt.is_asked() => {
                thread::sleep(Duration::from_millis(100));
            }
            opened => {
                let dir = spool.source_dir(source);
                if opened.is_ok()
                    && let Err(error) = remove_unfinished(&dir)
                {
                    tracing::warn!(%error, "an unfinished epoch in {} cannot be removed", dir.display());
                }
                return opened;
            }
        }
    }
}

/// The archive of one database.
struct SqliteLog<'a> {
    source: SourceId,
    path: PathBuf,
    writer: Writer,
    settings: Settings,
    report: &'a mut dyn FnMut(&Report),
    started_at: Timestamp,
    told: Option<Instant>,
    caught_up_at: Option<Timestamp>,
    lag: Duration,
    max_lag: Duration,
    /// When the oldest transaction that is not synced was seen.
    unsynced: Option<Timestamp>,
    /// Since the last sync that worked, there was no room for one.
    had_no_space: bool,
}

impl<'a> SqliteLog<'a> {
    fn new(
        writer: Writer,
        source: &SourceId,
        path: &Path,
        settings: Settings,
        report: &'a mut dyn FnMut(&Report),
    ) -> Self {
        Self {
            source: source.clone(),
            path: path.to_owned(),
            writer,
            settings,
            report,
            started_at: Timestamp::now(),
            told: None,
            caught_up_at: None,
            lag: Duration::ZERO,
            max_lag: Duration::ZERO,
            unsynced: None,
            had_no_space: false,
        }
    }

    /// Archives until it is told to stop.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] and [`FailureKind::Damaged`]: a person has to do something. Everything else is tried again.
    fn run(&mut self, stop: &dyn Fn() -> bool) -> Result<(), Failure> {
        let helper = Helper::this_program();
        let mut wait = FIRST_WAIT;
        while !stop() {
            let path = self.path.clone();
            let reached = wal::Archive::reached(self);
            match follow(&helper, &path, self, stop) {
                Ok(()) => return self.write_status(None),
                Err(failure) if matches!(failure.kind, FailureKind::Refused | FailureKind::Damaged) => {
                    return Err(failure);
                }
                Err(failure) => self.trouble(&failure),
            }
            wait = if wal::Archive::reached(self) == reached {
                (wait * 2).min(LONGEST_WAIT)
            } else {
                FIRST_WAIT
            };
            pause(wait, stop);
            while let Err(error) = self.writer.resume() {
                let failure = Failure::from(error);
                if failure.kind == FailureKind::Damaged || stop() {
                    return Err(failure);
                }
                self.trouble(&failure);
                pause(LONGEST_WAIT, stop);
            }
        }
        Ok(())
    }

    fn trouble(&mut self, failure: &Failure) {
        self.had_no_space |= failure.kind == FailureKind::NoSpace;
        self.unsynced = None;
        let what = failure.in_full();
        (self.report)(&Report::Trouble(what.clone()));
        // A status that cannot be written is told by the next one that can.
        let _ = self.write_status(Some(what));
    }

    fn tell(&mut self) -> Result<(), Failure> {
        if self.told.is_none_or(|told| told.elapsed() >= STATUS_EVERY) {
            self.write_status(None)?;
        }
        Ok(())
    }

    fn write_status(&mut self, trouble: Option<String>) -> Result<(), Failure> {
        let (Some(epoch), Some(place)) = (self.writer.epoch(), self.writer.reached()) else { return Ok(()) };
        let status = LogStatus {
            version: LOGS_VERSION,
            source: self.source.clone(),
            epoch: epoch.epoch.clone(),
            place: place.clone(),
            caught_up_at: self.caught_up_at,
            at: Timestamp::now(),
            started_at: self.started_at,
            lag_s: self.lag.as_secs_f64(),
            max_lag_s: self.max_lag.as_secs_f64(),
            acknowledging: false,
            trouble,
        };
        self.writer.status(&status)?;
        self.told = Some(Instant::now());
        (self.report)(&Report::Status(status));
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.writer.segment().is_some_and(|(head, bytes)| {
            let age = Duration::try_from(Timestamp::now().duration_since(head.begun_at)).unwrap_or_default();
            bytes >= self.settings.segment.0 || (bytes > head.lead && age >= self.settings.rotate)
        })
    }

    fn beginning(&self, hole: Option<(HoleCause, String)>) -> Beginning {
        let Some(epoch) = self.writer.epoch() else { return Beginning::First };
        let after = epoch.epoch.clone();
        match hole {
            None => Beginning::Continues { after },
            Some((cause, detail)) => {
                let cause = if self.had_no_space { HoleCause::NoSpace } else { cause };
                Beginning::Hole { after, cause, detail }
            }
        }
    }
}

impl wal::Archive for SqliteLog<'_> {
    fn reached(&self) -> Option<WalPosition> {
        match self.writer.reached() {
            Some(LogPlace::SqliteWal(place)) => Some(*place),
            _ => None,
        }
    }

    fn begin(
        &mut self,
        at: WalPosition,
        by: Timestamp,
        hole: Option<(HoleCause, String)>,
        base: &mut dyn FnMut(&Path) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let now = Timestamp::now();
        let record = EpochRecord {
            version: LOGS_VERSION,
            epoch: EpochId::at(now, rand::random()),
            source: self.source.clone(),
            kind: LogKind::SqliteWal,
            begun_at: now,
            beginning: self.beginning(hole),
            from: LogPlace::SqliteWal(at),
            server: None,
            gtid_state: None,
            has_base: true,
        };
        let mut failed = None;
        let begun = self.writer.begin_epoch_with(record.clone(), |dir| {
            let path = dir.join(BASE);
            // Made by us, so that nobody else can ever read it.
            os::durable::write_new(&path, b"", 0o600)?;
            base(&path).map_err(|failure| {
                failed = Some(failure);
                // It may be large, and is worthless.
                let _ = fs::remove_dir_all(dir);
                io::Error::other("its base cannot be made")
            })?;
            os::durable::sync_dir(dir)
        });
        match failed {
            Some(failure) => return Err(failure),
            None => begun?,
        }
        (self.had_no_space, self.caught_up_at) = (false, Some(by));
        (self.report)(&Report::Begun(record));
        self.write_status(None)
    }

    fn append(&mut self, bytes: &[u8], ends: Option<(WalPosition, Timestamp)>) -> Result<(), Failure> {
        if self.writer.segment().is_none() {
            let from = self.writer.reached().cloned();
            let from = from.ok_or(LogsError::Order("no epoch was begun"))?;
            let lead = SEGMENT_LEAD.len() as u64;
            let begun_at = Timestamp::now();
            let head = SegmentHead { version: LOGS_VERSION, from, lead, gtid_state: None, begun_at };
            self.writer.begin_segment(head, SEGMENT_LEAD)?;
        }
        let added = match ends {
            None => Added::Part,
            Some((to, captured)) => {
                self.unsynced = self.unsynced.or(Some(captured));
                Added::Whole {
                    to: LogPlace::SqliteWal(to),
                    transactions: 1,
                    commits: Some(Span { first: captured, last: captured }),
                }
            }
        };
        Ok(self.writer.append(bytes, &added)?)
    }

    fn sync(&mut self, at: Timestamp) -> Result<(), Failure> {
        self.writer.sync(None)?;
        self.caught_up_at = Some(at);
        if let Some(oldest) = self.unsynced.take() {
            self.lag = Duration::try_from(Timestamp::now().duration_since(oldest)).unwrap_or_default();
            self.max_lag = self.max_lag.max(self.lag);
        }
        if self.is_full() {
            self.writer.close_segment()?;
        }
        self.tell()
    }

    fn idle(&mut self, at: Timestamp) -> Result<(), Failure> {
        self.caught_up_at = Some(at);
        if self.is_full() {
            self.writer.close_segment()?;
        }
        self.tell()
    }

    fn wants_new_base(&self) -> bool {
        self.writer.epoch().is_some_and(|epoch| {
            let age = Timestamp::now().duration_since(epoch.begun_at);
            Duration::try_from(age).is_ok_and(|age| age >= BASE_EVERY)
                && self.writer.reached() != Some(&epoch.from)
        })
    }
}

/// Removes epochs whose record was not written: their bases were not finished.
fn remove_unfinished(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && path.join(BASE).exists() && !path.join("epoch.json").exists() {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

fn pause(wait: Duration, stop: &dyn Fn() -> bool) {
    let until = Instant::now() + wait;
    while !stop() && Instant::now() < until {
        thread::sleep(Duration::from_millis(100).min(wait));
    }
}
