//! The helper role that follows the log of one database.
//!
//! Crash story: whatever happens, the process ends and its locks with it; it writes nothing but replies, a base where it is
//! told to, and, by checkpoints, committed pages into the database file.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use model::{
    logs::{HoleCause, WalPosition},
    plan::JournalMode,
};

use super::{
    frames::{self, Unreadable},
    index::Index,
    keeper::Keeper,
    readers::Readers,
    stream::tell,
};
use crate::sqlite::{
    helper::{failed, say},
    lines::{Incoming, Lines},
    names::wal_of,
    protocol::{Reply, Request},
    reader,
};

/// How often the index is looked at: a fraction of the lag that is allowed.
const POLL: Duration = Duration::from_millis(20);
/// How often it is told that nothing is new, and looked whether the files are still there.
const IDLE: Duration = Duration::from_millis(250);
/// Writers wait for no more frames than these.
const SHORT_TAIL: u64 = 1000;
/// How often a snapshot whose place is known is tried before the writers are held back for it.
const TRIES: u32 = 50;
/// How often it is looked whether the log goes on, if somebody writes all the time so that writers cannot be held back.
const LOOKS: u32 = 20;

/// Why the role ends.
pub(super) enum Stop {
    /// It was asked to, or nobody is left to talk to.
    Quit,
    Pipe(io::Error),
    Sqlite(rusqlite::Error),
    Lost(String),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Pipe(error)
    }
}

impl From<Unreadable> for Stop {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Io(error) => Self::Pipe(error),
            Unreadable::Wrong(what) => Self::Lost(what),
        }
    }
}

/// Plays the role.
///
/// # Errors
/// If the main process cannot be reached.
pub(in crate::sqlite) fn play(path: PathBuf) -> io::Result<()> {
    match run(&path) {
        Ok(()) | Err(Stop::Quit) => Ok(()),
        Err(Stop::Pipe(error)) => Err(error),
        Err(Stop::Sqlite(error)) => say(&failed(&error)),
        Err(Stop::Lost(what)) => say(&Reply::Lost { what }),
    }
}

fn run(path: &Path) -> Result<(), Stop> {
    let Some(readers) = Readers::open(path)? else {
        say(&Reply::Ready)?;
        say(&Reply::Begun { journal: JournalMode::Rollback, moved: false })?;
        return Ok(());
    };
    let mut role = Role {
        log: File::open(wal_of(path))?,
        readers,
        keeper: Keeper::open(path)?,
        lines: Lines::default(),
        place: WalPosition { generation: 0, salts: (0, 0), frame: 0, checksum: (0, 0) },
        seen: None,
        told_at: Instant::now(),
        anew: false,
        judged: None,
    };
    say(&Reply::Ready)?;
    say(&Reply::Begun { journal: JournalMode::Wal, moved: false })?;
    let followed = role.follow(path);
    role.leave(path);
    followed
}

struct Role {
    readers: Readers,
    keeper: Keeper,
    log: File,
    lines: Lines,
    /// Everything up to here was told and is in the archive.
    place: WalPosition,
    /// What the index said before the newest read transaction began; nothing if it could not be read just then.
    seen: Option<Index>,
    told_at: Instant,
    /// A new epoch was asked for.
    anew: bool,
    /// Salts of the log of which it was found that it goes on, until it was first told from. The argument of
    /// [`super`] begins there: another log that begins before it would hide the end of this one.
    judged: Option<(u32, u32)>,
}

/// What an epoch that is about to begin comes after.
enum After {
    Nothing,
    /// The epoch before, without a hole: whatever was committed up to here has to be told for that one first.
    Epoch,
    Hole(HoleCause, String),
}

/// Salts of the log that goes on, or why something may be missing.
type Found = Result<(u32, u32), (HoleCause, String)>;

impl Role {
    fn follow(&mut self, path: &Path) -> Result<(), Stop> {
        let Some(Request::Follow { resume }) = self.request(None)? else { return Err(Stop::Quit) };
        self.start(resume)?;
        loop {
            match self.request(Some(POLL))? {
                None => {}
                Some(Request::Anew) => self.anew = true,
                Some(_) => return Err(Stop::Quit),
            }
            if self.anew {
                self.stand(After::Epoch)?;
            }
            self.look(path)?;
            self.keep_short()?;
        }
    }

    /// Finds out whether the log goes on from where the archive is.
    fn start(&mut self, resume: Option<WalPosition>) -> Result<(), Stop> {
        let Some(place) = resume else { return self.stand(After::Nothing) };
        self.place = place;
        match self.settled(&place)? {
            Ok(salts) => {
                self.judged = Some(salts);
                say(&Reply::Continues)?;
                if !self.is_tail_short() {
                    self.keeper.release_writers()?;
                }
                self.advance()?;
                Ok(self.keeper.release_writers()?)
            }
            Err((cause, detail)) => {
                self.keeper.release_writers()?;
                self.stand(After::Hole(cause, detail))
            }
        }
    }

    /// What [`Self::goes_on`] finds; a hole only if writers were held back while it looked, or if it was found again and
    /// again. A writer that is just beginning the log anew, or that was interrupted between the two copies of the index's
    /// header, would look like one.
    fn settled(&mut self, place: &WalPosition) -> Result<Found, Stop> {
        let mut looks = 0;
        loop {
            // While writers wait, a log that is folded in already is not begun anew under our eyes.
            if looks > 0 || self.is_tail_short() {
                self.keeper.hold_writers()?;
            }
            let found = self.goes_on(place)?;
            looks += 1;
            if found.is_ok() || self.keeper.holds_until().is_some() || looks == LOOKS {
                return Ok(found);
            }
        }
    }

    /// Whether the log goes on from this place; its salts then, and otherwise what may be missing.
    fn goes_on(&self, place: &WalPosition) -> Result<Found, Stop> {
        let Some(index) = self.readers.index() else {
            return Ok(Err((HoleCause::WalReset, "its index cannot be read".into())));
        };
        let header = frames::header(&self.log)?;
        if index.salts != place.salts || place.salts == (0, 0) {
            let follows = match header {
                Some(header) => header.follows(&self.log, place, (index.salts, index.frames))?,
                None => false,
            };
            let hole = (HoleCause::WalReset, "another log was begun meanwhile".to_owned());
            return Ok(if follows { Ok(index.salts) } else { Err(hole) });
        }
        // The machine has crashed, and the application had not synced what it had committed.
        if index.frames < place.frame {
            let detail = format!("the log ends at frame {}, before {}", index.frames, place.frame);
            return Ok(Err((HoleCause::Diverged, detail)));
        }
        let has = match header.filter(|header| header.salts == index.salts) {
            Some(header) => header.has(&self.log, place)?,
            None => place.frame == 0,
        };
        let other = format!("frame {} of the log is another one than was captured", place.frame);
        Ok(if has { Ok(index.salts) } else { Err((HoleCause::Diverged, other)) })
    }

    /// Makes the newest read transaction one whose place in the log is known, says so, and makes a copy of what it sees.
    fn stand(&mut self, after: After) -> Result<(), Stop> {
        self.anew = false;
        let (index, by) = self.exact(matches!(after, After::Epoch))?;
        self.place = WalPosition {
            generation: 0,
            salts: index.salts,
            frame: index.frames,
            checksum: if index.frames == 0 { (0, 0) } else { index.checksum },
        };
        let (cause, detail) = match after {
            After::Nothing | After::Epoch => (None, String::new()),
            After::Hole(cause, detail) => (Some(cause), detail),
        };
        say(&Reply::Stands { at: self.place, by, cause, detail })?;
        let Some(Request::Copy { to }) = self.request(None)? else { return Err(Stop::Quit) };
        let copied = reader::copy(self.readers.current(), &to)?;
        say(&copied)?;
        match self.request(None)? {
            Some(Request::Written) => Ok(()),
            _ => Err(Stop::Quit),
        }
    }

    /// Begins a read transaction that sees exactly what the index says; what was committed before it is told first, if
    /// `captures`. Whatever was committed by the moment that comes with it is in it.
    fn exact(&mut self, captures: bool) -> Result<(Index, Timestamp), Stop> {
        let mut tries = 0;
        loop {
            tries += 1;
            if tries > TRIES {
                self.keeper.hold_writers()?;
            }
            let before = self.readers.index();
            if self.readers.begin_next()? {
                let by = Timestamp::now();
                let after = self.readers.index();
                if let (Some(before), Some(after)) = (before, after)
                    && (before.change, before.frames, before.salts)
                        == (after.change, after.frames, after.salts)
                {
                    if captures {
                        self.tell_and_wait(&after, by)?;
                    }
                    self.readers.end_previous()?;
                    self.keeper.release_writers()?;
                    self.seen = Some(before);
                    return Ok((after, by));
                }
                self.readers.abandon_next()?;
            }
            if tries > 20 * TRIES {
                return Err(Stop::Lost("its index is never at rest".into()));
            }
            thread::sleep(Duration::from_millis(u64::from(tries.min(10))));
        }
    }

    /// Looks whether something is new, and moves on if so.
    fn look(&mut self, path: &Path) -> Result<(), Stop> {
        let at = Timestamp::now();
        let index = self.readers.index();
        if index.is_none() || index != self.seen {
            self.advance()?;
        }
        if self.told_at.elapsed() >= IDLE {
            self.still_there(path)?;
            if index.is_some() && index == self.seen {
                say(&Reply::Idle { at })?;
            }
            self.told_at = Instant::now();
        }
        Ok(())
    }

    /// The next read transaction takes the place of the one before: the one step by which protection moves on.
    fn advance(&mut self) -> Result<(), Stop> {
        let before = self.readers.index();
        if !self.readers.begin_next()? {
            return Ok(());
        }
        // A commit that comes after this look is the next step's: its read mark may be lower than what we tell now, never
        // higher.
        let by = Timestamp::now();
        let Some(index) = self.readers.index() else {
            self.readers.abandon_next()?;
            return Ok(());
        };
        self.tell_and_wait(&index, by)?;
        self.readers.end_previous()?;
        self.seen = before;
        Ok(())
    }

    /// Tells everything up to what the index said. `by` is a moment before it was asked: what was committed between that one
    /// and now may be missing.
    fn tell_and_wait(&mut self, index: &Index, by: Timestamp) -> Result<(), Stop> {
        let captured = Timestamp::now();
        if self.judged.take().is_some_and(|salts| salts != index.salts) {
            return Err(Stop::Lost("another log was begun just when it was looked at".into()));
        }
        if tell(&self.log, &mut self.place, index, captured)? == 0 {
            return Ok(());
        }
        say(&Reply::Captured { at: by })?;
        self.told_at = Instant::now();
        loop {
            let wait = self.keeper.holds_until().map(|until| until.saturating_duration_since(Instant::now()));
            match self.request(wait)? {
                Some(Request::Written) => return Ok(()),
                // It crossed what we tell.
                Some(Request::Anew) => self.anew = true,
                Some(_) => return Err(Stop::Quit),
                None => self.keeper.release_writers()?,
            }
        }
    }

    /// Folds a long log in, so that the next writer begins it anew.
    fn keep_short(&mut self) -> Result<(), Stop> {
        let Some(index) = self.readers.index() else { return Ok(()) };
        if !self.keeper.is_due(&index) {
            return Ok(());
        }
        // The long part, while writers go on: up to our read mark, then what came meanwhile.
        let mut folded = self.keeper.fold()?;
        if !folded {
            self.advance()?;
            folded = self.keeper.fold()?;
        }
        let mut others_read = false;
        if folded {
            // Read lock 0: from now on a writer may begin the log anew.
            self.advance()?;
        } else if self.keeper.may_hold(&index) && self.keeper.hold_writers()? {
            let done = if self.is_tail_short() { Some(self.fold_the_rest()) } else { None };
            self.keeper.release_writers()?;
            others_read = matches!(done.transpose()?, Some(false));
        }
        self.keeper.tried(others_read);
        Ok(())
    }

    /// Whether so little is not told yet that writers may wait for it.
    fn is_tail_short(&self) -> bool {
        self.readers.index().is_some_and(|index| {
            let told = if index.salts == self.place.salts { self.place.frame } else { 0 };
            index.frames.saturating_sub(told) <= SHORT_TAIL
        })
    }

    fn fold_the_rest(&mut self) -> Result<bool, Stop> {
        self.advance()?;
        let folded = self.keeper.fold()?;
        self.advance()?;
        Ok(folded)
    }

    /// Whether the files at their paths are still those that are open.
    fn still_there(&self, path: &Path) -> Result<(), Stop> {
        let mut moved = 0;
        let ask = rusqlite::FileControl::HasMoved(&mut moved);
        self.readers.current().file_control(Some(rusqlite::MAIN_DB), ask)?;
        let log = self.log.metadata()?;
        let same_log = fs::metadata(wal_of(path))
            .is_ok_and(|there| (there.dev(), there.ino()) == (log.dev(), log.ino()));
        if moved != 0 || !same_log {
            return Err(Stop::Lost("it was moved, removed or replaced by another file".into()));
        }
        Ok(())
    }

    /// The next request, waiting for it at most so long.
    fn request(&mut self, wait: Option<Duration>) -> Result<Option<Request>, Stop> {
        match self.lines.next(io::stdin().as_fd(), wait)? {
            Incoming::End => Err(Stop::Quit),
            Incoming::Silence => Ok(None),
            Incoming::Line(line) => match serde_json::from_str(&line).map_err(io::Error::other)? {
                Request::Quit => Err(Stop::Quit),
                request => Ok(Some(request)),
            },
        }
    }

    /// A log without content, which our opening may have made, goes as it does when any last connection closes.
    fn leave(self, path: &Path) {
        let is_empty = fs::metadata(wal_of(path)).is_ok_and(|log| log.len() == 0);
        let Self { readers, keeper, .. } = self;
        drop(keeper);
        readers.close(is_empty);
    }
}
