//! One line of a history file: what became of one backup, in logfmt. Written form: `docs/format/history.md`.
//!
//! Crash story: pure functions, no effects.

use std::{collections::BTreeMap, fmt, fmt::Write, str::FromStr};

use jiff::Timestamp;

use crate::{
    id::{AppName, BackupId, CutId},
    size::Bytes,
    verdict::Verdict,
};

/// How a run ended, for one application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Stored, and as good as required.
    Ok,
    /// Stored, but weaker than required.
    Weak,
    /// Nothing was stored.
    Failed,
}

impl Status {
    /// The word in the history file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Weak => "weak",
            Self::Failed => "failed",
        }
    }
}

/// One line. What a failed run never came to know is nothing, and is left out.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryLine {
    /// When the line was written.
    pub time: Timestamp,
    /// The cut.
    pub cut: Option<CutId>,
    /// The backup that was stored.
    pub backup: Option<BackupId>,
    /// Regular files in it.
    pub files: Option<u64>,
    /// Bytes in them; written in megabytes of 1,000,000 bytes.
    pub bytes: Option<Bytes>,
    /// What was read for it, the rest being carried over; written in megabytes.
    pub bytes_read: Option<Bytes>,
    /// What the repository grew by; written in megabytes.
    pub bytes_added: Option<Bytes>,
    /// The stall in all, milliseconds.
    pub stall_ms: Option<f64>,
    /// How good it is.
    pub verdict: Option<Verdict>,
    /// How the run ended.
    pub status: Status,
    /// From the start of the run to its end, seconds.
    pub duration_s: f64,
    /// What went wrong, or the first problem; empty if nothing.
    pub message: String,
}

/// A line that is no history line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// It does not follow the rules of quoting, or ends early, as the torn last line of a crash does.
    #[error("not key=value pairs with closed quotes")]
    Form,
    /// A key that each line has is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value that cannot be read.
    #[error("{key}={value} cannot be read")]
    Value {
        /// The key.
        key: &'static str,
        /// What stands there.
        value: String,
    },
}

/// The name of the file that the line of an application belongs into: `backup-{name}-{yyyymmdd}`, by UTC.
#[must_use]
pub fn file_name(application: &AppName, time: Timestamp) -> String {
    format!("backup-{application}-{}", time.strftime("%Y%m%d"))
}

impl fmt::Display for HistoryLine {
    /// The line without its line feed. `duration_s` is last and has exactly one decimal, so that a line torn
    /// anywhere by a crash cannot be taken for a whole one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "time={}", self.time.strftime("%Y-%m-%dT%H:%M:%S+00:00"))?;
        optional(f, "cut", self.cut.as_ref())?;
        optional(f, "backup", self.backup.as_ref())?;
        optional(f, "files", self.files)?;
        optional(f, "mb", self.bytes.map(megabytes))?;
        optional(f, "read_mb", self.bytes_read.map(megabytes))?;
        optional(f, "added_mb", self.bytes_added.map(megabytes))?;
        optional(f, "stall_ms", self.stall_ms.map(|ms| format!("{ms:.1}")))?;
        optional(f, "verdict", self.verdict)?;
        write!(f, " status={}", self.status.as_str())?;
        if !self.message.is_empty() {
            write!(f, " message={}", quoted(&self.message))?;
        }
        write!(f, " duration_s={:.1}", self.duration_s)
    }
}

pub(crate) fn optional(
    f: &mut fmt::Formatter<'_>,
    key: &str,
    value: Option<impl fmt::Display>,
) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, " {key}={value}"))
}

/// Megabytes with six decimals, so that no byte is lost.
fn megabytes(bytes: Bytes) -> String {
    format!("{}.{:06}", bytes.0 / 1_000_000, bytes.0 % 1_000_000)
}

fn bytes_of(text: &str) -> Option<Bytes> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || rest.len() > 6 || !digits(whole) || !digits(rest) {
        return None;
    }
    let rest: u64 = format!("{rest:0<6}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(rest).map(Bytes)
}

pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            // Writing to a String cannot fail.
            c if c.is_control() => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

impl FromStr for HistoryLine {
    type Err = HistoryError;

    /// Reads a line without its line feed. Keys that are not known are passed over.
    fn from_str(line: &str) -> Result<Self, HistoryError> {
        let pairs = Pairs(pairs(line).ok_or(HistoryError::Form)?);
        let status =
            |text: &str| [Status::Ok, Status::Weak, Status::Failed].into_iter().find(|s| s.as_str() == text);
        Ok(Self {
            time: pairs.required("time", |t| t.parse().ok())?,
            cut: pairs.value("cut", |t| CutId::new(t).ok())?,
            backup: pairs.value("backup", |t| BackupId::new(t).ok())?,
            files: pairs.value("files", |t| t.parse().ok())?,
            bytes: pairs.value("mb", bytes_of)?,
            bytes_read: pairs.value("read_mb", bytes_of)?,
            bytes_added: pairs.value("added_mb", bytes_of)?,
            stall_ms: pairs.value("stall_ms", number)?,
            verdict: pairs.value("verdict", |t| t.parse().ok())?,
            status: pairs.required("status", status)?,
            duration_s: pairs.required("duration_s", one_decimal)?,
            message: pairs.text("message").unwrap_or_default().to_owned(),
        })
    }
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|n: &f64| n.is_finite())
}

fn one_decimal(text: &str) -> Option<f64> {
    let (_, decimals) = text.split_once('.')?;
    number(text).filter(|_| decimals.len() == 1)
}

struct Pairs(BTreeMap<String, String>);

impl Pairs {
    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn value<T>(
        &self,
        key: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, HistoryError> {
        let Some(value) = self.text(key) else { return Ok(None) };
        match read(value) {
            Some(found) => Ok(Some(found)),
            None => Err(HistoryError::Value { key, value: value.to_owned() }),
        }
    }

    fn required<T>(&self, key: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<T, HistoryError> {
        self.value(key, read)?.ok_or(HistoryError::Missing(key))
    }
}

/// The pairs of a line, or nothing if it breaks the rules. A key that stands twice breaks them.
fn pairs(line: &str) -> Option<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (key, tail) = rest.split_once('=')?;
        if key.is_empty() || key.contains([' ', '"']) {
            return None;
        }
        let (value, tail) = match tail.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let (value, tail) = tail.split_at(tail.find(' ').unwrap_or(tail.len()));
                (value.to_owned(), tail)
            }
        };
        if found.insert(key.to_owned(), value).is_some() {
            return None;
        }
        rest = if tail.is_empty() { tail } else { tail.strip_prefix(' ')? };
    }
    Some(found)
}

/// The text up to the closing quote, and what comes after it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => match chars.next()? {
                'n' => value.push('\n'),
                'u' => {
                    let hex = chars.as_str().get(..4)?;
                    value.push(char::from_u32(u32::from_str_radix(hex, 16).ok()?)?);
                    chars = chars.as_str()[4..].chars();
                }
                c @ ('"' | '\\') => value.push(c),
                _ => return None,
            },
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::{HistoryError, HistoryLine, Status, file_name};
    use crate::{id::AppName, size::Bytes, verdict::Verdict};

    fn failed(message: &str) -> HistoryLine {
        HistoryLine {
            time: "2026-11-20T03:15:09Z".parse().unwrap(),
            cut: None,
            backup: None,
            files: None,
            bytes: None,
            bytes_read: None,
            bytes_added: None,
            stall_ms: None,
            verdict: None,
            status: Status::Failed,
            duration_s: 1.5,
            message: message.to_owned(),
        }
    }

    /// Lines of every version that was ever written, and what they say.
    #[test]
    fn frozen_lines_are_read_and_written_as_ever() {
        let frozen = include_str!("../testdata/history-1");
        let lines: Vec<HistoryLine> = frozen.lines().map(|l| l.parse().unwrap()).collect();
        let written: String = lines.iter().map(|l| format!("{l}\n")).collect();
        assert_eq!(written, frozen);
        assert_eq!(lines[0].cut.as_ref().unwrap().as_str(), "20261120T031500Z-5be2a1");
        assert_eq!((lines[0].files, lines[0].bytes), (Some(48_211), Some(Bytes(1_104_882_133))));
        assert_eq!((lines[0].bytes_added, lines[0].stall_ms), (Some(Bytes(9_312)), Some(12.4)));
        assert_eq!((lines[0].bytes_read, lines[3].bytes_read), (None, Some(Bytes(52_428_800))));
        assert_eq!((lines[0].verdict, lines[0].status), (Some(Verdict::Consistent), Status::Ok));
        assert_eq!((lines[1].verdict, lines[1].status), (Some(Verdict::PerSource), Status::Weak));
        assert_eq!(lines[2], failed("no space left on \"/v01\"\ntry: prune"));
    }

    #[test]
    fn a_torn_line_is_not_taken_for_a_whole_one() {
        let whole = failed("disk full").to_string();
        for end in 0..whole.len() {
            assert!(whole[..end].parse::<HistoryLine>().is_err(), "{}", &whole[..end]);
        }
        assert!(whole.parse::<HistoryLine>().is_ok());
    }

    #[test]
    fn unknown_keys_are_passed_over_and_bad_values_named() {
        let line = failed("").to_string();
        assert_eq!(line.replace("status", "colour=red status").parse::<HistoryLine>().unwrap(), failed(""));
        let bad = line.replace("duration_s=1.5", "duration_s=NaN").parse::<HistoryLine>();
        assert_eq!(bad, Err(HistoryError::Value { key: "duration_s", value: "NaN".into() }));
        let less = line.replace("status=failed ", "").parse::<HistoryLine>();
        assert_eq!(less, Err(HistoryError::Missing("status")));
        let twice = line.replace("status", "status=ok status").parse::<HistoryLine>();
        assert_eq!(twice, Err(HistoryError::Form));
    }

    #[test]
    fn the_file_is_that_of_the_utc_day() {
        let name = AppName::new("hydro").unwrap();
        let time = "2026-11-20T00:30:00+01:00".parse().unwrap();
        assert_eq!(file_name(&name, time), "backup-hydro-20261119");
    }

    proptest! {
        #[test]
        fn any_message_and_size_come_back_from_one_line(message in any::<String>(), bytes in any::<u64>()) {
            let mut line = failed(&message);
            line.bytes = Some(Bytes(bytes));
            let text = line.to_string();
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            prop_assert_eq!(text.parse::<HistoryLine>().unwrap(), line);
        }

        #[test]
        fn no_text_is_too_strange_to_be_refused(text in any::<String>()) {
            prop_assert!(text.parse::<HistoryLine>().is_err());
        }
    }
}
