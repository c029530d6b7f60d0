//! The log archive's loop: follow a server's log, put what comes on disk, go on after anything.
//!
//! Crash story: nothing is kept here but what the sink says it has ([`LogSink::reached`]). Stopped between any two lines, the next
//! run goes on from there: events that were not synced are read again, none that was is read twice. The server never waits
//! for us, unless it was told to (`wants_ack`): then after its own timeout it goes on without.

mod state;

use std::time::Duration;

use jiff::Timestamp;
use model::{
    follow::{Cut, FIRST, Go, Held, begun_anew, decide, purged},
    id::{EpochId, SourceId},
    logs::{Added, EpochRecord, LOGS_VERSION, LogKind, LogPlace, LogStatus, SegmentHead, Span},
    port::{Clock, Failure, FailureKind},
    port_logs::{LogEvent, LogSink, LogSource, LogStream, Next, Start},
    server::BinlogPosition,
    size::Bytes,
    time::Moment,
};

use self::state::{Begin, End, Last, Progress, Unsynced, Wrong, end_of, is_same_state};

/// How the archive works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A segment is closed when it is this large,
    pub segment: Bytes,
    /// or this old, whichever is first.
    pub rotate: Duration,
    /// What came is on disk after this time at the latest.
    pub sync: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { segment: Bytes(16 << 20), rotate: Duration::from_secs(3600), sync: Duration::from_millis(100) }
    }
}

/// What the loop works with.
pub struct Ship<'a> {
    /// Whose log.
    pub source_id: SourceId,
    /// The server.
    pub source: &'a mut dyn LogSource,
    /// Where it is put.
    pub sink: &'a mut dyn LogSink,
    /// The clocks.
    pub clock: &'a dyn Clock,
    /// How.
    pub settings: Settings,
    /// Where the newest backup stands, for an archive that is begun.
    pub cut: Option<Cut>,
    /// Random bytes for the names of epochs.
    pub random: &'a mut dyn FnMut() -> [u8; 3],
    /// Whether to end.
    pub stop: &'a dyn Fn() -> bool,
    /// Told what changes.
    pub report: &'a mut dyn FnMut(&Report),
}

/// What changes, for people.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// An epoch was begun.
    Begun(EpochRecord),
    /// It goes on after a start, or after trouble.
    On(BinlogPosition),
    /// Everything before this place is on disk since this moment; several times a second.
    Synced(BinlogPosition, Timestamp),
    /// How far it is; at most once a second.
    Status(LogStatus),
    /// It does not go on at this moment, and is tried again.
    Trouble(String),
}

/// How long after it was told to stop what was committed before that is waited for.
const LAST: Duration = Duration::from_secs(3);
const QUIET: Duration = Duration::from_millis(250);
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// Enough of a segment to tell from which file it is.
const BEGINNING: usize = 64;
/// So often a place must be gone to be believed gone.
const CERTAIN: u32 = 3;

impl Ship<'_> {
    /// Follows the log until it is told to stop.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] and [`FailureKind::Damaged`]: a person has to do something. Everything else is tried again.
    pub fn run(&mut self) -> Result<(), Failure> {
        let mut progress = Progress::new(self.clock.now());
        let mut wait = FIRST_WAIT;
        let (mut wrong, mut refusals) = (None, 0);
        while !(self.stop)() {
            let reached = self.sink.reached();
            let failure = match self.session(&mut progress, wrong.take()) {
                Ok(End::Stopped) => return Ok(()),
                Ok(End::Gone { said, is_certain }) => {
                    refusals += 1;
                    // Once may be a file that is just being removed, or read wrongly.
                    if is_certain || refusals >= CERTAIN {
                        (wrong, self.cut) = (Some(Wrong::Gone(said.clone())), None);
                    }
                    Failure::new(FailureKind::Lost, said, "")
                }
                Ok(End::AnotherFile) => {
                    wrong = Some(Wrong::AnotherFile);
                    Failure::new(FailureKind::Lost, "the server's log was begun anew", "")
                }
                Err(failure) if matches!(failure.kind, FailureKind::Refused | FailureKind::Damaged) => {
                    return Err(failure);
                }
                Err(failure) => failure,
            };
            if self.sink.reached() != reached {
                (wait, refusals) = (FIRST_WAIT, 0);
            }
            self.trouble(&mut progress, &failure);
            self.pause(wait);
            wait = (wait * 2).min(LONGEST_WAIT);
            self.recover(&mut progress)?;
        }
        Ok(())
    }

    /// One connection.
    fn session(&mut self, progress: &mut Progress, wrong: Option<Wrong>) -> Result<End, Failure> {
        progress.is_whole = true;
        let held = self.held();
        let seen = self.source.look(held.as_ref().map(|held| &held.reached))?;
        let go = match (&held, wrong) {
            (Some(held), Some(Wrong::Gone(said))) => purged(held, &seen, &said),
            (Some(held), Some(Wrong::AnotherFile)) => begun_anew(held, &seen),
            _ => decide(held.as_ref(), self.cut.as_ref(), &seen),
        };
        let (start, gtid_state, beginning) = match go {
            Go::On { from } => (Start::Place(from), held.and_then(|held| held.gtid_state), None),
            Go::Begin { beginning, start, gtid_state } => (start, gtid_state, Some(beginning)),
            Go::Refuse { what, remedy } => return Err(Failure::new(FailureKind::Refused, what, remedy)),
        };
        let mut stream = self.source.follow(&start, gtid_state.as_ref())?;
        let mut beginning =
            beginning.map(|because| Begin { because, server: seen.server.clone(), gtid_state });
        if let (Start::Place(place), true) = (&start, beginning.is_none()) {
            (self.report)(&Report::On(place.clone()));
        }
        // What was not purged yet when we looked may be now: no epoch is begun before something came.
        let is_certain = matches!(start, Start::After(_));
        let known = match &start {
            Start::Place(place) if beginning.is_none() && place.offset > FIRST => self
                .sink
                .first_bytes(BEGINNING)
                .filter(|_| self.sink.reached() == Some(LogPlace::Binlog(place.clone()))),
            _ => None,
        };
        match self.pump(stream.as_mut(), &mut beginning, known, progress)? {
            End::Gone { said, .. } => Ok(End::Gone { said, is_certain }),
            end => Ok(end),
        }
    }

    /// Takes what comes until it is told to stop, or the log is not what we take it for. `known` is how the segment begins that
    /// is to go on.
    fn pump(
        &mut self,
        stream: &mut dyn LogStream,
        beginning: &mut Option<Begin>,
        mut known: Option<Vec<u8>>,
        progress: &mut Progress,
    ) -> Result<End, Failure> {
        let mut unsynced: Option<Unsynced> = None;
        let mut elsewhere = None;
        let mut last: Option<Last> = None;
        loop {
            let due = unsynced.as_ref().map(|unsynced| self.left(unsynced.since));
            let next = stream.next(due.unwrap_or(QUIET))?;
            if let Some(is_same) = known.as_ref().and_then(|bytes| stream.is_file_of(bytes)) {
                if !is_same {
                    return Ok(End::AnotherFile);
                }
                known = None;
            }
            match next {
                Next::Event(event) => {
                    if let Some(begin) = beginning.take() {
                        self.begin(begin, &event.start)?;
                    }
                    self.store(stream, &event, progress)?;
                    let begun = || Unsynced::new(self.clock.moment());
                    unsynced = Some(unsynced.take().unwrap_or_else(begun).with(&event));
                }
                Next::CaughtUp if unsynced.is_none() => {
                    self.is_at_the_end(stream, &mut elsewhere, progress)?
                }
                Next::CaughtUp | Next::Quiet => {}
                Next::Gone(said) => return Ok(End::Gone { said, is_certain: false }),
            }
            let is_due = |it: &Unsynced| it.ack.is_some() || self.left(it.since).is_zero();
            if unsynced.as_ref().is_some_and(is_due) {
                self.sync(stream, unsynced.take(), progress)?;
            }
            if last.is_none() && (self.stop)() {
                // What was committed before now lies before this place.
                let to = self.source.end().ok().map(|(place, _)| LogPlace::Binlog(place));
                last = Some(Last { to, since: self.clock.moment() });
            }
            let stopping = last.as_ref().is_some_and(|last| self.is_over(last, unsynced.as_ref()));
            if stopping {
                self.sync(stream, unsynced.take(), progress)?;
            }
            self.tell(stream, progress, stopping)?;
            if stopping {
                return Ok(End::Stopped);
            }
        }
    }

    /// The server says on this connection that we have everything. That is so if it also says so when it is asked: after
    /// `RESET MASTER` a connection stays at the end of a file that is no more.
    fn is_at_the_end(
        &mut self,
        stream: &dyn LogStream,
        elsewhere: &mut Option<LogPlace>,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let before = self.clock.now();
        let (place, gtids) = self.source.end()?;
        let reached = self.sink.reached();
        let is_there = reached == Some(LogPlace::Binlog(place.clone()))
            && is_same_state(stream.gtid_state().as_ref(), gtids.as_ref());
        if is_there {
            (progress.caught_up_at, *elsewhere) = (Some(before), None);
            return Ok(());
        }
        // Once may be what was committed just now.
        if reached.is_some() && *elsewhere == reached {
            let what = format!("the server stands at {place}, but sends nothing from there");
            return Err(Failure::new(FailureKind::Lost, what, ""));
        }
        *elsewhere = reached;
        Ok(())
    }

    /// Whether what was committed before we were told to stop is here, or is waited for no longer.
    fn is_over(&self, last: &Last, unsynced: Option<&Unsynced>) -> bool {
        let received = unsynced.and_then(|unsynced| unsynced.to.clone()).map(LogPlace::Binlog);
        let reached = received.or_else(|| self.sink.reached());
        let is_here = match (&last.to, reached) {
            (Some(to), Some(reached)) => reached.order(to).is_some_and(std::cmp::Ordering::is_ge),
            (to, _) => to.is_none(),
        };
        is_here || self.clock.moment().since(last.since) >= LAST
    }

    fn left(&self, since: Moment) -> Duration {
        self.settings.sync.saturating_sub(self.clock.moment().since(since))
    }

    fn begin(&mut self, begin: Begin, from: &BinlogPosition) -> Result<(), Failure> {
        let now = self.clock.now();
        let record = EpochRecord {
            version: LOGS_VERSION,
            epoch: EpochId::at(now, (self.random)()),
            source: self.source_id.clone(),
            kind: LogKind::Binlog,
            begun_at: now,
            beginning: begin.because,
            from: LogPlace::Binlog(from.clone()),
            server: Some(begin.server),
            gtid_state: begin.gtid_state,
            has_base: false,
        };
        self.sink.begin_epoch(record.clone())?;
        (self.report)(&Report::Begun(record));
        Ok(())
    }

    /// Appends an event; in another segment if it does not follow what is in this one.
    fn store(
        &mut self,
        stream: &dyn LogStream,
        event: &LogEvent,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let follows = self.sink.segment().is_some_and(|(head, bytes)| {
            let LogPlace::Binlog(from) = &head.from else { return false };
            from.file == event.start.file && from.offset + (bytes - head.lead) == event.start.offset
        });
        if !follows {
            // The segment that ends here, and the head of the next, tell the state at this very place.
            self.sink.sync(stream.gtid_state())?;
            if !std::mem::replace(&mut progress.is_whole, true) {
                // A transaction that its file does not end was never committed: the server crashed in it.
                self.sink.resume()?;
            }
            let lead = stream.lead(event);
            let head = SegmentHead {
                version: LOGS_VERSION,
                from: LogPlace::Binlog(event.start.clone()),
                lead: lead.len() as u64,
                gtid_state: self.sink.gtid_state(),
                begun_at: self.clock.now(),
            };
            self.sink.begin_segment(head, &lead)?;
        }
        let added = if event.is_boundary {
            Added::Whole {
                to: LogPlace::Binlog(end_of(event)),
                transactions: u64::from(event.commit.is_some()),
                commits: event.commit.map(Span::at),
            }
        } else {
            Added::Part
        };
        progress.is_whole = event.is_boundary;
        self.sink.append(&event.bytes, &added)
    }

    /// Puts on disk, then tells the server, then sees whether the segment is done.
    fn sync(
        &mut self,
        stream: &mut dyn LogStream,
        unsynced: Option<Unsynced>,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let Some(unsynced) = unsynced else { return Ok(()) };
        self.sink.sync(stream.gtid_state())?;
        if let Some(place) = &unsynced.ack {
            stream.acknowledge(place)?;
        }
        let now = self.clock.now();
        if let Some(LogPlace::Binlog(place)) = self.sink.reached() {
            (self.report)(&Report::Synced(place, now));
        }
        if let Some(commit) = unsynced.commit {
            progress.committed(commit, now);
        }
        progress.trouble = None;
        if unsynced.is_whole && self.is_full(now) {
            self.sink.close_segment()?;
        }
        Ok(())
    }

    fn is_full(&self, now: Timestamp) -> bool {
        self.sink.segment().is_some_and(|(head, bytes)| {
            let age = Duration::try_from(now.duration_since(head.begun_at)).unwrap_or_default();
            bytes >= self.settings.segment.0 || (bytes > head.lead && age >= self.settings.rotate)
        })
    }

    /// Writes down and reports how far we are, once a second.
    fn tell(&mut self, stream: &dyn LogStream, progress: &mut Progress, now: bool) -> Result<(), Failure> {
        const EVERY: Duration = Duration::from_secs(1);
        let moment = self.clock.moment();
        let is_due = progress.told.is_none_or(|told| moment.since(told) >= EVERY);
        if !is_due && !now {
            return Ok(());
        }
        progress.told = Some(moment);
        progress.acknowledging = stream.is_acknowledging();
        progress.trouble = None;
        self.write_status(progress)
    }

    fn write_status(&mut self, progress: &Progress) -> Result<(), Failure> {
        let (Some(epoch), Some(place)) = (self.sink.epoch(), self.sink.reached()) else { return Ok(()) };
        let status = LogStatus {
            version: LOGS_VERSION,
            source: self.source_id.clone(),
            epoch: epoch.epoch,
            place,
            caught_up_at: progress.caught_up_at,
            at: self.clock.now(),
            started_at: progress.started_at,
            lag_s: progress.lag.as_secs_f64(),
            max_lag_s: progress.max_lag.as_secs_f64(),
            acknowledging: progress.acknowledging,
            trouble: progress.trouble.clone(),
        };
        self.sink.status(&status)?;
        (self.report)(&Report::Status(status));
        Ok(())
    }

    fn held(&self) -> Option<Held> {
        let epoch = self.sink.epoch()?;
        let LogPlace::Binlog(reached) = self.sink.reached()? else { return None };
        Some(Held { epoch: epoch.epoch, server: epoch.server?, reached, gtid_state: self.sink.gtid_state() })
    }

    fn trouble(&mut self, progress: &mut Progress, failure: &Failure) {
        progress.trouble = Some(failure.in_full());
        (self.report)(&Report::Trouble(failure.in_full()));
        // A status that cannot be written is told by the next one that can.
        let _ = self.write_status(progress);
    }

    /// Cuts off what does not count. Without room for even that it is tried again.
    fn recover(&mut self, progress: &mut Progress) -> Result<(), Failure> {
        while let Err(failure) = self.sink.resume() {
            if matches!(failure.kind, FailureKind::Damaged) || (self.stop)() {
                return Err(failure);
            }
            self.trouble(progress, &failure);
            self.pause(LONGEST_WAIT);
        }
        Ok(())
    }

    fn pause(&self, wait: Duration) {
        const STEP: Duration = Duration::from_millis(200);
        let from = self.clock.moment();
        while !(self.stop)() && self.clock.moment().since(from) < wait {
            self.clock.sleep(STEP.min(wait));
        }
    }
}
