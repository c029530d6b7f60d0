//! How far a long task is: bars with rate and remaining time on a terminal, JSON lines with `--json`, and
//! nothing otherwise.
//!
//! Crash story: writes to standard error only.

use std::{
    io::IsTerminal,
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use model::{
    port::{Progress, Silent, Stage},
    size::Bytes,
};

use crate::output::{Output, stderr};

/// How often a JSON line is written within a stage.
const EVERY: Duration = Duration::from_millis(500);

/// The progress that suits where standard error goes.
#[must_use]
pub fn progress(output: Output) -> Box<dyn Progress> {
    if output.json {
        Box::new(Lines::default())
    } else if std::io::stderr().is_terminal() {
        Box::new(Bars::default())
    } else {
        Box::new(Silent)
    }
}

fn words(stage: Stage) -> &'static str {
    match stage {
        Stage::Scanning => "looking",
        Stage::StoringAhead => "storing ahead",
        Stage::Copying => "copying databases",
        Stage::Checking => "checking databases",
        Stage::Storing => "storing",
        Stage::Comparing => "comparing",
        Stage::Reading => "reading back",
        Stage::Restoring => "restoring",
        Stage::Verifying => "verifying",
        Stage::Replaying => "replaying the log",
        Stage::Reclaiming => "freeing space",
    }
}

/// How far a stage is.
#[derive(Debug, Clone, Copy)]
struct Tally {
    stage: Stage,
    total: Option<Bytes>,
    done: Bytes,
    begun: Instant,
}

impl Tally {
    /// A stage begins, after this one. What is stored ahead comes in parts: one goes on where the one before it ended.
    fn begin(stage: Stage, total: Option<Bytes>, before: Option<Self>) -> Self {
        match before {
            Some(before) if before.stage == stage && stage == Stage::StoringAhead => {
                let total = before.total.zip(total).map(|(before, more)| before + more);
                Self { total, ..before }
            }
            _ => Self { stage, total, done: Bytes::default(), begun: Instant::now() },
        }
    }
}

/// One bar at a time.
#[derive(Default)]
struct Bars {
    shown: Mutex<Shown>,
}

/// The bar, and what it shows or the last one showed.
#[derive(Default)]
struct Shown {
    bar: Option<ProgressBar>,
    tally: Option<Tally>,
}

impl Shown {
    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Bars {
    fn style(total: Option<Bytes>) -> ProgressStyle {
        let template = match total {
            Some(_) => {
                "{msg:18} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta}"
            }
            None => "{msg:18} {spinner} {binary_bytes} {binary_bytes_per_sec}",
        };
        // The templates are constants; a bar without a style is still a bar.
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
    }

    fn with(&self, action: impl FnOnce(&mut Shown)) {
        // A panic elsewhere must not take the progress with it: a bar cannot be half-way.
        action(&mut self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Bars {
    fn begin(&self, stage: Stage, total: Option<Bytes>) {
        self.with(|shown| {
            shown.clear();
            let tally = Tally::begin(stage, total, shown.tally);
            let bar = tally.total.map_or_else(ProgressBar::new_spinner, |bytes| ProgressBar::new(bytes.0));
            bar.set_style(Self::style(tally.total));
            bar.set_message(words(stage));
            // Not a leap of this moment: the rate is that of what follows.
            let bar = bar.with_position(tally.done.0).with_elapsed(tally.begun.elapsed());
            bar.reset_eta();
            (shown.bar, shown.tally) = (Some(bar), Some(tally));
        });
    }

    fn advance(&self, bytes: Bytes) {
        self.with(|shown| {
            if let (Some(bar), Some(tally)) = (&shown.bar, &mut shown.tally) {
                tally.done = tally.done + bytes;
                bar.inc(bytes.0);
            }
        });
    }

    fn end(&self) {
        self.with(Shown::clear);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.end();
    }
}

/// A stage that is reported as JSON lines.
#[derive(Default)]
struct Running {
    tally: Option<Tally>,
    /// When a line was written last; nothing if the stage is over.
    told: Option<Instant>,
}

impl Running {
    fn tell(&mut self, event: &str) {
        let Some(tally) = self.tally else { return };
        self.told = Some(Instant::now());
        let seconds = tally.begun.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "shown, not reckoned with")]
        let rate = if seconds > 0.0 { tally.done.0 as f64 / seconds } else { 0.0 };
        #[allow(clippy::cast_precision_loss, reason = "shown, not reckoned with")]
        let left = tally
            .total
            .filter(|_| rate > 0.0)
            .map(|total| (total.0.saturating_sub(tally.done.0) as f64 / rate).round());
        let line = serde_json::json!({
            "progress": event,
            "stage": words(tally.stage),
            "bytes": tally.done.0,
            "total_bytes": tally.total.map(|total| total.0),
            "bytes_per_s": rate.round(),
            "seconds_left": left,
        });
        stderr(&line.to_string());
    }
}

#[derive(Default)]
struct Lines {
    running: Mutex<Running>,
}

impl Lines {
    fn with(&self, action: impl FnOnce(&mut Running)) {
        // As for bars.
        action(&mut self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Lines {
    fn begin(&self, stage: Stage, total: Option<Bytes>) {
        self.with(|running| {
            running.tally = Some(Tally::begin(stage, total, running.tally));
            running.tell("begin");
        });
    }

    fn advance(&self, bytes: Bytes) {
        self.with(|running| {
            let Running { tally: Some(tally), told: Some(told) } = running else { return };
            tally.done = tally.done + bytes;
            if told.elapsed() >= EVERY {
                running.tell("advance");
            }
        });
    }

    fn end(&self) {
        self.with(|running| {
            if running.told.is_some() {
                running.tell("end");
                running.told = None;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use model::{
        port::{Progress, Stage},
        size::Bytes,
    };

    use super::{Bars, Lines};

    /// Stages and what is shown of them after each part: done, of how much.
    type Steps<'a> = &'a [(Stage, Option<u64>, u64, (u64, Option<u64>))];

    const STEPS: Steps<'_> = &[
        (Stage::Scanning, None, 0, (0, None)),
        (Stage::StoringAhead, Some(100), 90, (90, Some(100))),
        // A part goes on where the one before it ended.
        (Stage::StoringAhead, Some(50), 20, (110, Some(150))),
        (Stage::StoringAhead, Some(5), 45, (155, Some(155))),
        (Stage::Storing, Some(7), 7, (7, Some(7))),
        (Stage::Storing, Some(9), 3, (3, Some(9))),
        // Another application's.
        (Stage::StoringAhead, Some(10), 1, (1, Some(10))),
    ];

    #[test]
    fn what_is_stored_ahead_in_parts_is_one_bar() {
        let bars = Bars::default();
        for (stage, total, done, shown) in STEPS {
            bars.begin(*stage, total.map(Bytes));
            bars.advance(Bytes(*done));
            bars.with(|now| {
                let bar = now.bar.as_ref().unwrap();
                assert_eq!((bar.position(), bar.length()), *shown, "{stage:?}");
            });
            bars.end();
            bars.advance(Bytes(1000));
        }
    }

    #[test]
    fn and_one_count_in_json() {
        let lines = Lines::default();
        for (stage, total, done, shown) in STEPS {
            lines.begin(*stage, total.map(Bytes));
            lines.advance(Bytes(*done));
            lines.with(|now| {
                let tally = now.tally.unwrap();
                assert_eq!((tally.done.0, tally.total.map(|of| of.0)), *shown, "{stage:?}");
            });
            lines.end();
            lines.advance(Bytes(1000));
        }
    }
}
