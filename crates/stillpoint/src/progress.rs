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

/// One bar at a time.
#[derive(Default)]
struct Bars {
    bar: Mutex<Option<ProgressBar>>,
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

    fn with(&self, action: impl FnOnce(&mut Option<ProgressBar>)) {
        // A panic elsewhere must not take the progress with it: a bar cannot be half-way.
        action(&mut self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Bars {
    fn begin(&self, stage: Stage, total: Option<Bytes>) {
        self.with(|slot| {
            let bar = total.map_or_else(ProgressBar::new_spinner, |bytes| ProgressBar::new(bytes.0));
            bar.set_style(Self::style(total));
            bar.set_message(words(stage));
            if let Some(before) = slot.replace(bar) {
                before.finish_and_clear();
            }
        });
    }

    fn advance(&self, bytes: Bytes) {
        self.with(|slot| {
            if let Some(bar) = slot {
                bar.inc(bytes.0);
            }
        });
    }

    fn end(&self) {
        self.with(|slot| {
            if let Some(bar) = slot.take() {
                bar.finish_and_clear();
            }
        });
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.end();
    }
}

/// A stage that is reported as JSON lines.
struct Running {
    stage: &'static str,
    total: Option<Bytes>,
    done: Bytes,
    begun: Instant,
    told: Instant,
}

impl Running {
    fn tell(&mut self, event: &str) {
        self.told = Instant::now();
        let seconds = self.begun.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "shown, not reckoned with")]
        let rate = if seconds > 0.0 { self.done.0 as f64 / seconds } else { 0.0 };
        #[allow(clippy::cast_precision_loss, reason = "shown, not reckoned with")]
        let left = self
            .total
            .filter(|_| rate > 0.0)
            .map(|total| (total.0.saturating_sub(self.done.0) as f64 / rate).round());
        let line = serde_json::json!({
            "progress": event,
            "stage": self.stage,
            "bytes": self.done.0,
            "total_bytes": self.total.map(|total| total.0),
            "bytes_per_s": rate.round(),
            "seconds_left": left,
        });
        stderr(&line.to_string());
    }
}

#[derive(Default)]
struct Lines {
    running: Mutex<Option<Running>>,
}

impl Lines {
    fn with(&self, action: impl FnOnce(&mut Option<Running>)) {
        // As for bars.
        action(&mut self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Lines {
    fn begin(&self, stage: Stage, total: Option<Bytes>) {
        self.with(|slot| {
            let now = Instant::now();
            let mut running =
                Running { stage: words(stage), total, done: Bytes::default(), begun: now, told: now };
            running.tell("begin");
            *slot = Some(running);
        });
    }

    fn advance(&self, bytes: Bytes) {
        self.with(|slot| {
            if let Some(running) = slot {
                running.done = running.done + bytes;
                if running.told.elapsed() >= EVERY {
                    running.tell("advance");
                }
            }
        });
    }

    fn end(&self) {
        self.with(|slot| {
            if let Some(mut running) = slot.take() {
                running.tell("end");
            }
        });
    }
}
