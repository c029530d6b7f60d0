//! From the helper into an archive.
//!
//! Crash story: a transaction is acknowledged after the archive has synced it; the helper protects it until then.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use model::{
    logs::{HoleCause, WalPosition},
    port::{Failure, Silent},
};
use os::{command::Helper, tree::resolve};

use super::{
    super::error::SqliteError,
    capture::{Capture, News},
};

/// How often `stop` is asked.
const LOOK: Duration = Duration::from_millis(200);
/// How long after `stop` what was committed before it is waited for.
const LAST: Duration = Duration::from_secs(3);

/// Where transactions go.
pub trait Archive {
    /// The end of what is on disk in the newest epoch; nothing before the first.
    fn reached(&self) -> Option<WalPosition>;

    /// Begins an epoch at this place; all that was committed by the moment `by` is before it. `hole` says why something may be
    /// missing before it; without, it goes on where the one before ended, or is the first. `base` copies the database as it is
    /// there to a path that does not exist.
    ///
    /// # Errors
    /// If it cannot be written.
    fn begin(
        &mut self,
        at: WalPosition,
        by: Timestamp,
        hole: Option<(HoleCause, String)>,
        base: &mut dyn FnMut(&Path) -> Result<(), Failure>,
    ) -> Result<(), Failure>;

    /// Appends a piece of a record; the last one comes with its end, and when it was captured.
    ///
    /// # Errors
    /// If it cannot be written.
    fn append(&mut self, bytes: &[u8], ends: Option<(WalPosition, Timestamp)>) -> Result<(), Failure>;

    /// Puts on disk what was appended. All that was committed by `at` is then there.
    ///
    /// # Errors
    /// If it cannot be written.
    fn sync(&mut self, at: Timestamp) -> Result<(), Failure>;

    /// Nothing is new: all that was committed by `at` is there.
    ///
    /// # Errors
    /// If that cannot be written down.
    fn idle(&mut self, at: Timestamp) -> Result<(), Failure>;

    /// Whether it is time for a new epoch with a base of its own, so that restoring does not take for ever.
    fn wants_new_base(&self) -> bool;
}

/// Follows the log of the database at this path into the archive, until `stop` says so; what was committed before that is
/// still taken.
///
/// # Errors
/// [`FailureKind::Refused`](model::port::FailureKind::Refused) if the database has no write-ahead log. After any other error
/// it may be called again: it goes on where the archive is, or begins an epoch with a hole.
pub fn follow(
    helper: &Helper,
    path: &Path,
    archive: &mut dyn Archive,
    stop: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let real = real(path)?;
    let mut capture = Capture::start(helper, &real, archive.reached())?;
    let mut asked = false;
    let mut last: Option<(Timestamp, Instant)> = None;
    loop {
        if stop() && last.is_none() {
            last = Some((Timestamp::now(), Instant::now() + LAST));
        }
        if last.is_some_and(|(_, until)| Instant::now() >= until) {
            break;
        }
        let Some(news) = capture.next(LOOK)? else { continue };
        let is_all = |at: Timestamp| last.is_some_and(|(asked, _)| at >= asked);
        match news {
            News::Continues => {}
            News::Stands { at, by, hole } => {
                if hole.is_none() {
                    none_is_missing(&real, archive.reached(), at)?;
                }
                let mut base = |to: &Path| copy_base(&mut capture, to);
                archive.begin(at, by, hole, &mut base)?;
                capture.written()?;
                asked = false;
            }
            News::Transaction { bytes, to, captured } => take(&mut capture, archive, bytes, (to, captured))?,
            News::Captured(at) => {
                archive.sync(at)?;
                capture.written()?;
                if is_all(at) {
                    break;
                }
            }
            News::Idle(at) => {
                archive.idle(at)?;
                if is_all(at) {
                    break;
                }
            }
        }
        if !asked && last.is_none() && archive.wants_new_base() {
            capture.anew()?;
            asked = true;
        }
    }
    capture.quit();
    Ok(())
}

fn real(path: &Path) -> Result<PathBuf, SqliteError> {
    let missing = |source| SqliteError::Io { path: path.to_owned(), what: "is not there", source };
    resolve(path).map(|resolved| resolved.real).map_err(missing)
}

/// An epoch may say that it goes on only if the one before ends where its base stands. If it does not, the archive goes on
/// from where it is, with everything that is missing.
fn none_is_missing(path: &Path, ended: Option<WalPosition>, at: WalPosition) -> Result<(), SqliteError> {
    match ended {
        Some(ended) if !at.is_right_after(&ended) => {
            let what = format!("a base at frame {} would leave a hole after {}", at.frame, ended.frame);
            Err(SqliteError::Lost { path: path.to_owned(), what })
        }
        _ => Ok(()),
    }
}

fn take(
    capture: &mut Capture,
    archive: &mut dyn Archive,
    bytes: u64,
    ends: (WalPosition, Timestamp),
) -> Result<(), Failure> {
    let mut left = bytes;
    capture.read(bytes, |piece| {
        left -= piece.len() as u64;
        archive.append(piece, (left == 0).then_some(ends))
    })
}

fn copy_base(capture: &mut Capture, to: &Path) -> Result<(), Failure> {
    capture.copy_base(to, &Silent)?;
    let synced = File::open(to).and_then(|base| base.sync_all());
    Ok(synced.map_err(|source| SqliteError::Io { path: to.to_owned(), what: "cannot be synced", source })?)
}
