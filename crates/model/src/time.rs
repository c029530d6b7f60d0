//! Times: wall-clock instants are [`jiff::Timestamp`]; what is measured or bounded is a [`Moment`].
//!
//! Crash story: plain values, no effects.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// A point on this machine's monotonic clock (`CLOCK_MONOTONIC`, nanoseconds since boot). Every process of
/// one machine reads the same clock, so a moment can be handed to a watchdog. Meaningless after a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment `duration` after this one.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// How long after `earlier` this moment is; zero if it is before it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The moment by which something has to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Deadline(pub Moment);

impl Deadline {
    /// What is left at `now`; zero if the deadline has passed.
    #[must_use]
    pub fn left(self, now: Moment) -> Duration {
        self.0.since(now)
    }

    /// Whether the deadline has come.
    #[must_use]
    pub fn has_passed(self, now: Moment) -> bool {
        now >= self.0
    }
}

/// A length of time in milliseconds with microsecond precision, for records and people.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub f64);

impl From<Duration> for Millis {
    fn from(duration: Duration) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "microseconds of any stall fit into 52 bits")]
        Self(duration.as_micros() as f64 / 1000.0)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms", self.0)
    }
}
