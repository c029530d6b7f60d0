//! One line of the log archive's history file, in logfmt: how far it was. Written form: `docs/format/history.md`.
//!
//! Crash story: pure functions, no effects.

use std::fmt;

use jiff::Timestamp;

use crate::{
    history::{Status, optional, quoted},
    id::{AppName, SourceId},
    logs::LogStatus,
};

/// When a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogEvent {
    /// The archive was started.
    Started,
    /// Another hour has passed.
    Hourly,
    /// It was stopped.
    Ended,
}

/// One line. What is not known is left out.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// When it was written.
    pub time: Timestamp,
    /// Why.
    pub event: LogEvent,
    /// Whose log.
    pub source: SourceId,
    /// From the commit of the newest transaction to its being on disk, in seconds.
    pub lag_s: Option<f64>,
    /// The largest since the start, in seconds.
    pub max_lag_s: Option<f64>,
    /// Everything that was received up to this time is in the repository.
    pub stored: Option<Timestamp>,
    /// `ok`; `weak`: it runs, but has trouble, or nothing was received yet; `failed`: it has ended, or nothing is known of it.
    pub status: Status,
    /// Since the start, in seconds.
    pub duration_s: f64,
    /// What is wrong; empty if nothing.
    pub message: String,
}

/// What is known of an archive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Known<'a> {
    /// What it last said of itself.
    Status(&'a LogStatus),
    /// It runs, and has not received anything yet.
    Waiting,
    /// It has ended because of this; empty if nothing is known of it.
    Failed(&'a str),
}

impl LogLine {
    /// The line for what is known of the archive.
    #[must_use]
    pub fn new(
        time: Timestamp,
        event: LogEvent,
        source: &SourceId,
        known: Known<'_>,
        stored: Option<Timestamp>,
    ) -> Self {
        let (said, message) = match known {
            Known::Status(status) => (Some(status), status.trouble.clone().unwrap_or_default()),
            Known::Waiting => (None, "nothing was received yet".to_owned()),
            Known::Failed(why) => (None, why.to_owned()),
        };
        Self {
            time,
            event,
            source: source.clone(),
            lag_s: said.map(|status| status.lag_s),
            max_lag_s: said.map(|status| status.max_lag_s),
            stored,
            status: match known {
                Known::Failed(_) => Status::Failed,
                Known::Waiting => Status::Weak,
                Known::Status(status) if status.trouble.is_some() => Status::Weak,
                Known::Status(_) => Status::Ok,
            },
            duration_s: said
                .map_or(0.0, |status| time.duration_since(status.started_at).as_secs_f64().max(0.0)),
            message,
        }
    }
}

/// The name of the file that the line belongs into: `log-{name}-{yyyymmdd}`, by UTC.
#[must_use]
pub fn file_name(application: &AppName, time: Timestamp) -> String {
    format!("log-{application}-{}", time.strftime("%Y%m%d"))
}

impl fmt::Display for LogLine {
    /// The line without its line feed. `duration_s` is last and has exactly one decimal, as in all history files.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string();
        let event = match self.event {
            LogEvent::Started => "started",
            LogEvent::Hourly => "hourly",
            LogEvent::Ended => "ended",
        };
        write!(f, "time={} event={event} source={}", time(self.time), quoted(self.source.as_str()))?;
        optional(f, "lag_s", self.lag_s.map(|lag| format!("{lag:.3}")))?;
        optional(f, "max_lag_s", self.max_lag_s.map(|lag| format!("{lag:.3}")))?;
        optional(f, "stored", self.stored.map(time))?;
        write!(f, " status={}", self.status.as_str())?;
        if !self.message.is_empty() {
            write!(f, " message={}", quoted(&self.message))?;
        }
        write!(f, " duration_s={:.1}", self.duration_s)
    }
}

#[cfg(test)]
mod tests {
    use super::{Known, LogEvent, LogLine, file_name};
    use crate::{
        id::{AppName, EpochId, SourceId},
        logs::{LOGS_VERSION, LogPlace, LogStatus},
        server::BinlogPosition,
    };

    /// Lines of every version that was ever written.
    #[test]
    fn frozen_lines_are_written_as_ever() {
        let frozen = include_str!("../testdata/history-log-1");
        let time = "2026-11-20T04:15:09Z".parse().unwrap();
        let source = SourceId::new("mariadb", "/run/mysqld/mysqld.sock");
        let mut status = LogStatus {
            version: LOGS_VERSION,
            source: source.clone(),
            epoch: EpochId::at(time, [0, 0, 1]),
            place: LogPlace::Binlog(BinlogPosition { file: "b.000001".into(), offset: 4 }),
            caught_up_at: None,
            at: time,
            started_at: "2026-11-20T03:15:09Z".parse().unwrap(),
            lag_s: 0.25,
            max_lag_s: 1.5,
            acknowledging: false,
            trouble: None,
        };
        let ok =
            LogLine::new(time, LogEvent::Hourly, &source, Known::Status(&status), Some(status.started_at));
        status.trouble = Some("the server \"x\" is gone".into());
        let weak = LogLine::new(time, LogEvent::Ended, &source, Known::Status(&status), None);
        let failed = LogLine::new(time, LogEvent::Started, &source, Known::Failed(""), None);
        assert_eq!(format!("{ok}\n{weak}\n{failed}\n"), frozen);
        let waiting = LogLine::new(time, LogEvent::Started, &source, Known::Waiting, None).to_string();
        assert!(
            waiting.contains(" status=weak message=\"nothing was received yet\" duration_s=0.0"),
            "{waiting}"
        );
        let name = AppName::new("hydro").unwrap();
        assert_eq!(file_name(&name, time), "log-hydro-20261120");
    }
}
