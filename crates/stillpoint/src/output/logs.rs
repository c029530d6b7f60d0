//! What `stillpoint log` says while it runs: a line when something changes, or with `--json` a line for each report.
//!
//! Crash story: writes to standard output and error only.

use std::collections::BTreeMap;

use model::{id::SourceId, logs::Beginning, port::Failure};
use orchestrate::ship::Report;

use super::{Output, stdout};

/// What a source's archive says.
#[derive(Debug)]
pub enum Event {
    /// Something changed.
    Report(Report),
    /// It ended.
    Ended(Result<(), Failure>),
}

/// Remembers what was said.
#[derive(Debug, Default)]
pub struct Line {
    said: BTreeMap<SourceId, String>,
}

impl Line {
    /// Says it, if it is not what was said last of this source.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn tell(&mut self, output: Output, source: &SourceId, event: &Event) -> Result<(), Failure> {
        let is_detail = matches!(event, Event::Report(Report::Synced(..)));
        if is_detail && !(output.json && output.verbose) {
            return Ok(());
        }
        if output.json {
            return stdout(format!("{}\n", object(source, event)).as_bytes());
        }
        let text = text(event);
        if text.is_empty() || self.said.get(source) == Some(&text) {
            return Ok(());
        }
        output.line(format!("{source}: {text}"))?;
        self.said.insert(source.clone(), text);
        Ok(())
    }
}

fn text(event: &Event) -> String {
    match event {
        Event::Report(Report::Begun(epoch)) => match &epoch.beginning {
            Beginning::First => format!("archived from {}", epoch.from),
            Beginning::Continues { .. } => format!("goes on without a hole from {}", epoch.from),
            Beginning::Hole { cause, detail, .. } => {
                format!("HOLE before {}: {cause} ({detail})", epoch.from)
            }
        },
        Event::Report(Report::On(place)) => format!("goes on from {place}"),
        Event::Report(Report::Trouble(why)) => format!("waits: {why}"),
        Event::Report(Report::Status(_) | Report::Synced(..)) => String::new(),
        Event::Ended(Ok(())) => "ended".into(),
        Event::Ended(Err(failure)) => format!("FAILED: {}", failure.in_full()),
    }
}

fn object(source: &SourceId, event: &Event) -> serde_json::Value {
    use serde_json::json;
    match event {
        Event::Report(Report::Begun(epoch)) => json!({ "source": source, "begun": epoch }),
        Event::Report(Report::On(place)) => json!({ "source": source, "on": place }),
        Event::Report(Report::Synced(place, at)) => json!({ "source": source, "synced": place, "at": at }),
        Event::Report(Report::Status(status)) => json!({ "source": source, "status": status }),
        Event::Report(Report::Trouble(why)) => json!({ "source": source, "trouble": why }),
        Event::Ended(Ok(())) => json!({ "source": source, "ended": true }),
        Event::Ended(Err(failure)) => json!({ "source": source, "failed": failure.in_full() }),
    }
}
