//! How hard a backup may go at the disks while applications run: a limit of what it reads, and a class of I/O.
//!
//! Crash story: plain values and arithmetic, no effects.

use std::time::Duration;

use serde::Serialize;

use crate::{size::Bytes, time::Moment};

/// A debt shorter than this is not worth waiting for by itself.
const SHORT: Duration = Duration::from_millis(10);

/// How hard a backup may go at the disks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pace {
    /// So many bytes of files are read in a second at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_limit: Option<Bytes>,
    /// How the kernel weighs what is read and written.
    pub io_class: IoClass,
}

/// Classes of I/O, ioprio_set(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoClass {
    /// As whoever started the program has it.
    #[default]
    Inherited,
    /// Only when nobody else wants the disk; and the processor likewise (nice 19).
    Idle,
}

impl Pace {
    /// For people, in one line; nothing if nothing is held back.
    #[must_use]
    pub fn describe(&self) -> Option<String> {
        let limit = self.read_limit.map(|limit| format!("at most {limit} of files a second"));
        let class =
            (self.io_class == IoClass::Idle).then(|| "only when nobody else wants the disk".to_owned());
        let words: Vec<String> = limit.into_iter().chain(class).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// A token bucket: what several readers together may take in a second.
#[derive(Debug)]
pub struct Bucket {
    limit: Bytes,
    /// When everything taken so far has been paid for.
    paid_at: Option<Moment>,
}

impl Bucket {
    /// Of a limit in bytes a second. One of 0 counts as 1.
    #[must_use]
    pub fn new(limit: Bytes) -> Self {
        Self { limit: Bytes(limit.0.max(1)), paid_at: None }
    }

    /// Takes so many bytes; says until when whoever takes them is to wait before reading them. Nobody is given credit
    /// for time in which nothing was taken.
    pub fn take(&mut self, bytes: u64, now: Moment) -> Option<Moment> {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.limit.0);
        let price = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let paid_at = self.paid_at.filter(|at| *at > now).unwrap_or(now).after(price);
        self.paid_at = Some(paid_at);
        (paid_at >= now.after(SHORT)).then_some(paid_at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Bucket, IoClass, Pace};
    use crate::{size::Bytes, time::Moment};

    /// Readers that need no time for the reading itself, by a clock of their own; how long they took.
    fn take_all(limit: u64, pieces: &[u64], readers: usize) -> Duration {
        let mut bucket = Bucket::new(Bytes(limit));
        let mut clocks = vec![Moment(0); readers];
        for piece in pieces {
            // Whoever is ready first is next.
            let next = clocks.iter_mut().min_by_key(|at| at.0).unwrap();
            if let Some(until) = bucket.take(*piece, *next) {
                *next = until;
            }
        }
        Duration::from_nanos(clocks.iter().map(|at| at.0).max().unwrap())
    }

    #[test]
    fn readers_together_get_the_limit_and_no_more() {
        let second = Duration::from_secs(1);
        for (readers, piece) in [(1, 1 << 20), (4, 1 << 20), (4, 777), (3, 50 << 20)] {
            let pieces = vec![piece; usize::try_from((100_u64 << 20) / piece).unwrap()];
            let took = take_all(10 << 20, &pieces, readers);
            assert!(took > 9 * second && took <= 10 * second, "{readers} readers of {piece}: {took:?}");
        }
    }

    #[test]
    fn a_rest_is_no_credit() {
        let mut bucket = Bucket::new(Bytes(1000));
        let (later, second) = (Moment(3_600_000_000_000), Duration::from_secs(1));
        assert_eq!(bucket.take(1000, Moment(0)), Some(Moment(0).after(second)));
        assert_eq!(bucket.take(1000, later), Some(later.after(second)));
        assert_eq!(bucket.take(1, later.after(second)), None, "it is too short to wait for");
        assert!(Bucket::new(Bytes(0)).take(u64::MAX, Moment(0)).is_some());
    }

    #[test]
    fn only_what_is_held_back_is_told() {
        assert_eq!(Pace::default().describe(), None);
        let pace = Pace { read_limit: Some(Bytes(50 << 20)), io_class: IoClass::Idle };
        let told = "at most 50.0 MiB of files a second, only when nobody else wants the disk";
        assert_eq!(pace.describe().as_deref(), Some(told));
    }
}
