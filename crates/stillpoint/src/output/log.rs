//! What drivers log, on standard error: as lines for people, or as JSON lines with `--json`.
//!
//! Crash story: writes to standard error only.

use std::fmt::{self, Write};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, filter_fn},
    layer::{Context, SubscriberExt},
    registry,
    util::SubscriberInitExt,
};

use super::Output;

/// Shows warnings and errors from now on, and more with `-v`.
///
/// Libraries are not heard: what they have to say of a file or a repository reaches us as a value, while
/// what they log is said of things that are expected, such as a live file that has gone.
pub fn start(output: Output) {
    let level = if output.verbose { LevelFilter::INFO } else { LevelFilter::WARN };
    let heard = filter_fn(move |event| *event.level() <= level && is_ours(event.target()));
    // Only a second call could fail, and then the first one holds.
    let _ = registry().with(ToOutput(output).with_filter(heard)).try_init();
}

fn is_ours(target: &str) -> bool {
    let name = target.split("::").next().unwrap_or(target);
    ["os", "engines", "vault", "orchestrate", "stillpoint"].contains(&name)
}

struct ToOutput(Output);

impl<S: Subscriber> Layer<S> for ToOutput {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{}{}", line.message, line.fields);
        match *event.metadata().level() {
            Level::ERROR | Level::WARN => self.0.warn(text),
            _ => self.0.detail(text),
        }
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn only_our_own_crates_are_heard() {
        assert!(is_ours("os::hold::ptrace") && is_ours("stillpoint"));
        assert!(!is_ours("rustic_core::archiver") && !is_ours("log"));
    }
}
