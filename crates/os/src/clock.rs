//! The machine's clocks.
//!
//! Crash story: reads only. `CLOCK_MONOTONIC` is one clock for all processes of this machine, so a deadline
//! can be handed to the watchdog; it stands still while the machine sleeps and begins anew at a boot.

use std::{thread, time::Duration};

use jiff::Timestamp;
use model::{
    port::Clock,
    time::{Deadline, Moment},
};
use rustix::time::{ClockId, clock_gettime};

/// The clocks of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn moment(&self) -> Moment {
        let time = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        Moment(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    fn sleep(&self, duration: Duration) {
        thread::sleep(duration);
    }
}

/// The deadline that is `duration` from now.
#[must_use]
pub fn deadline_in(duration: Duration) -> Deadline {
    Deadline(SystemClock.moment().after(duration))
}

/// What is left until `deadline`; zero once it has passed.
#[must_use]
pub fn left(deadline: Deadline) -> Duration {
    deadline.left(SystemClock.moment())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::port::Clock;

    use super::{SystemClock, deadline_in, left};

    #[test]
    fn moments_measure_sleep() {
        let before = SystemClock.moment();
        SystemClock.sleep(Duration::from_millis(20));
        let slept = SystemClock.moment().since(before);
        assert!(slept >= Duration::from_millis(20) && slept < Duration::from_secs(10), "{slept:?}");
    }

    #[test]
    fn a_deadline_comes_nearer_and_passes() {
        let deadline = deadline_in(Duration::from_secs(5));
        assert!(left(deadline) > Duration::from_secs(4));
        assert_eq!(left(deadline_in(Duration::ZERO)), Duration::ZERO);
    }
}
