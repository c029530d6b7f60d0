//! Watching a snapshot from its taking to its release.
//!
//! Crash story: the thread ends with the snapshot's release, or with the process; it holds nothing itself. It extends
//! and gives up, and never makes anything.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use model::size::Bytes;
use os::lvm::{Fill, Gauge, LvmError};

use super::taken::{Lost, Taken};

/// Between two looks.
const LONGEST: Duration = Duration::from_secs(1);
/// Between two looks at what fills fast.
const SHORTEST: Duration = Duration::from_millis(100);
/// Nobody looks sooner after the snapshot: that is when writers are held.
const FIRST: Duration = Duration::from_millis(500);
/// So many looks in a row may fail before the snapshot is not to be relied on.
const BLIND: u32 = 10;

/// From where on something is done.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Limits {
    /// Share from which on it is extended.
    extend: f64,
    /// Share from which on it is given up if it cannot be.
    full: f64,
    /// The same if it would be full so soon.
    soon: Duration,
}

/// A classic snapshot hurts nobody but the backup: it is used almost to its end.
const CLASSIC: Limits = Limits { extend: 0.60, full: 0.97, soon: Duration::from_secs(1) };
/// A full pool hurts the original: its writers wait, then fail.
const POOL: Limits = Limits { extend: 2.0, full: 0.95, soon: Duration::from_secs(3) };
/// Of the space that may be used up.
const SPACE: Limits = Limits { extend: 2.0, full: 1.0, soon: Duration::from_secs(1) };

/// What to do after a look.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Wait(Duration),
    Extend,
    GiveUp,
}

/// Decides from how full it is, and how much fuller it becomes in a second.
fn judge(fill: f64, rate: f64, may_extend: bool, limits: Limits) -> Step {
    let left = if rate > 0.0 { ((1.0 - fill).max(0.0) / rate).min(86_400.0) } else { 86_400.0 };
    let left = Duration::from_secs_f64(left);
    if may_extend && limits.extend <= 1.0 && (fill >= limits.extend || left < Duration::from_secs(15)) {
        return Step::Extend;
    }
    if fill >= limits.full || (fill >= 0.8 && left < limits.soon) {
        return Step::GiveUp;
    }
    Step::Wait((left / 8).clamp(SHORTEST, LONGEST))
}

/// What is looked at.
pub(super) enum Watched {
    /// A logical volume's snapshot, or its pool.
    Volume(Gauge),
    /// A filesystem that shares its space with its snapshots.
    Space {
        /// A directory of it.
        path: PathBuf,
        /// What was free in the beginning.
        start: Bytes,
        /// What has to stay free, so that the original does not suffer.
        least: Bytes,
    },
}

impl Watched {
    /// The space of the filesystem under a path, if that can be told.
    pub fn space(path: PathBuf) -> Option<Self> {
        let found = rustix::fs::statvfs(&path).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let start = bytes(found.f_bavail);
        let least = Bytes((bytes(found.f_blocks) / 50).min(start / 2));
        Some(Self::Space { path, start: Bytes(start), least })
    }

    fn limits(&self) -> Limits {
        match self {
            Self::Volume(gauge) if gauge.is_thin() => POOL,
            Self::Volume(_) => CLASSIC,
            Self::Space { .. } => SPACE,
        }
    }

    fn read(&self) -> Result<Fill, LvmError> {
        match self {
            Self::Volume(gauge) => gauge.read(),
            Self::Space { path, start, least } => {
                let free =
                    rustix::fs::statvfs(path).map(|found| found.f_bavail.saturating_mul(found.f_frsize));
                let free = free.map_err(|error| LvmError::System {
                    what: format!("{} cannot be looked at", path.display()),
                    source: error.into(),
                })?;
                #[allow(clippy::cast_precision_loss, reason = "a share")]
                let data =
                    start.0.saturating_sub(free) as f64 / start.0.saturating_sub(least.0).max(1) as f64;
                Ok(Fill::Used { data, metadata: 0.0 })
            }
        }
    }

    fn extend(&self) -> Result<Bytes, LvmError> {
        match self {
            Self::Volume(gauge) => gauge.extend(),
            Self::Space { .. } => Ok(Bytes(0)),
        }
    }

    /// Why it is given up.
    fn lost(&self, fill: Fill) -> Lost {
        let percent = (fill.most() * 100.0).round();
        match self {
            Self::Volume(gauge) if gauge.is_thin() => Lost {
                what: format!(
                    "{} was {percent} % full, at which the original would have suffered: the snapshot was given up",
                    gauge.what()
                ),
                remedy: "extend the pool with `lvextend`, or make the backup when less is written".to_owned(),
            },
            Self::Volume(gauge) => Lost {
                what: match fill {
                    Fill::Invalid => format!("{} overflowed and was given up", gauge.what()),
                    Fill::Used { .. } => format!(
                        "{} was {percent} % full, its volume group had no room to extend it, and it was given up",
                        gauge.what()
                    ),
                },
                remedy:
                    "add room to the volume group with `vgextend`, or make the backup when less is written"
                        .to_owned(),
            },
            Self::Space { path, least, .. } => Lost {
                what: format!(
                    "less than {least} was left free at {}, and the snapshot that kept old data was given up",
                    path.display()
                ),
                remedy: "free some space there, or make the backup when less is written".to_owned(),
            },
        }
    }
}

/// A thread that watches. Dropping it ends it.
pub(super) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches this snapshot.
    pub fn start(taken: Arc<Taken>, watched: Watched) -> Self {
        let (stop, stopped) = channel();
        let thread = thread::spawn(move || {
            let mut eye = Eye { watched, last: None, may_extend: true, blind: 0 };
            let mut wait = FIRST;
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                match eye.look() {
                    Ok(next) => wait = next,
                    Err(lost) => {
                        taken.give_up(lost);
                        return;
                    }
                }
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that watched a snapshot ended in a panic");
        }
    }
}

struct Eye {
    watched: Watched,
    last: Option<(Instant, f64)>,
    may_extend: bool,
    blind: u32,
}

impl Eye {
    /// One look, and what has to be done. Says when to look again, or why it is to be given up.
    fn look(&mut self) -> Result<Duration, Lost> {
        let fill = match self.watched.read() {
            Ok(fill) => fill,
            Err(error) => return self.seen_nothing(&error),
        };
        self.blind = 0;
        if fill == Fill::Invalid {
            return Err(self.watched.lost(fill));
        }
        let (now, share) = (Instant::now(), fill.most());
        let rate = self.last.map_or(0.0, |(then, before)| {
            (share - before).max(0.0) / now.duration_since(then).as_secs_f64().max(0.001)
        });
        self.last = Some((now, share));
        match judge(share, rate, self.may_extend, self.watched.limits()) {
            Step::Wait(time) => Ok(time),
            Step::GiveUp => Err(self.watched.lost(fill)),
            Step::Extend => {
                self.extend();
                Ok(SHORTEST)
            }
        }
    }

    fn extend(&mut self) {
        match self.watched.extend() {
            Ok(Bytes(0)) => self.may_extend = false,
            Ok(by) => {
                tracing::info!("a snapshot was extended by {by}");
                // The shares before are those of another size.
                self.last = None;
            }
            Err(error) => {
                tracing::warn!(?error, "a snapshot cannot be extended");
                self.may_extend = false;
            }
        }
    }

    fn seen_nothing(&mut self, error: &LvmError) -> Result<Duration, Lost> {
        self.blind += 1;
        tracing::warn!(?error, "nobody can tell how full a snapshot is");
        if self.blind < BLIND {
            return Ok(LONGEST);
        }
        Err(Lost {
            what: format!("nobody could tell any more how full the snapshot was: {error}"),
            remedy: "run `lvs -a` and `dmsetup info` as root to see what is wrong".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CLASSIC, POOL, SPACE, Step, judge};

    #[test]
    fn what_fills_is_extended_or_given_up_before_it_is_full() {
        assert_eq!(judge(0.1, 0.0, true, CLASSIC), Step::Wait(Duration::from_secs(1)));
        assert_eq!(judge(0.6, 0.0, true, CLASSIC), Step::Extend);
        assert_eq!(judge(0.1, 0.1, true, CLASSIC), Step::Extend, "full in nine seconds");
        assert_eq!(judge(0.6, 0.001, false, CLASSIC), Step::Wait(Duration::from_secs(1)));
        assert_eq!(judge(0.6, 0.2, false, CLASSIC), Step::Wait(Duration::from_millis(250)));
        assert_eq!(judge(0.85, 0.2, false, CLASSIC), Step::GiveUp, "full in less than a second");
        assert_eq!(judge(0.97, 0.0, false, CLASSIC), Step::GiveUp);
    }

    #[test]
    fn a_pool_is_never_extended_and_given_up_early() {
        assert_eq!(judge(0.9, 0.0, true, POOL), Step::Wait(Duration::from_secs(1)));
        assert_eq!(judge(0.9, 0.05, true, POOL), Step::GiveUp, "full in two seconds");
        assert_eq!(judge(0.95, 0.0, true, POOL), Step::GiveUp);
        assert_eq!(judge(0.99, 0.0, true, SPACE), Step::Wait(Duration::from_secs(1)));
        assert_eq!(judge(1.0, 0.0, true, SPACE), Step::GiveUp);
    }
}
