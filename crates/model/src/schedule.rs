//! When a backup is due: `hourly`, `nightly`, `weekly` or a cron expression of five fields.
//!
//! Cron fields as in crontab(5): minute, hour, day of the month, month, day of the week (0 and 7 are
//! Sunday), each `*`, numbers, ranges `a-b`, steps `/n`, joined by commas; names of months and days are not
//! read. This version checks schedules; a timer of the system (`cron`, `systemd`) starts the runs.
//!
//! Crash story: pure functions, no effects.

/// Why a text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Neither one of the words nor five fields.
    #[error("schedule {0:?} is neither hourly, nightly, weekly nor a cron expression of five fields")]
    Shape(String),
    /// A field that cannot be read, or is out of its range.
    #[error("{field:?} is no {name} of a cron expression: {low} to {high}, `*`, a-b, a,b or */n")]
    Field {
        /// What it should be.
        name: &'static str,
        /// What it is.
        field: String,
        /// The smallest number allowed.
        low: u8,
        /// The greatest number allowed.
        high: u8,
    },
    /// A day that no month of it has.
    #[error("schedule {0:?} never comes: none of its months has such a day")]
    Never(String),
}

struct Field {
    name: &'static str,
    low: u8,
    high: u8,
}

const FIELDS: [Field; 5] = [
    Field { name: "minute", low: 0, high: 59 },
    Field { name: "hour", low: 0, high: 23 },
    Field { name: "day of the month", low: 1, high: 31 },
    Field { name: "month", low: 1, high: 12 },
    Field { name: "day of the week", low: 0, high: 7 },
];

/// The words that stand for a schedule.
pub const WORDS: [&str; 3] = ["hourly", "nightly", "weekly"];

/// Checks a schedule.
///
/// # Errors
/// If it is none, or one that never comes.
pub fn check(text: &str) -> Result<(), ScheduleError> {
    if WORDS.contains(&text) {
        return Ok(());
    }
    let parts: Vec<&str> = text.split_ascii_whitespace().collect();
    if parts.len() != FIELDS.len() {
        return Err(ScheduleError::Shape(text.to_owned()));
    }
    let mut sets = Vec::new();
    for (part, field) in parts.iter().zip(&FIELDS) {
        sets.push(values(part, field).ok_or_else(|| ScheduleError::Field {
            name: field.name,
            field: (*part).to_owned(),
            low: field.low,
            high: field.high,
        })?);
    }
    // With both kinds of day given, crontab(5) runs on either.
    let by_week = parts[4] != "*";
    let comes = sets[3].iter().any(|month| sets[2].iter().any(|day| *day <= longest(*month)));
    if comes || by_week { Ok(()) } else { Err(ScheduleError::Never(text.to_owned())) }
}

fn longest(month: u8) -> u8 {
    match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The numbers that one field stands for.
fn values(text: &str, field: &Field) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for item in text.split(',') {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, number(step).filter(|n| *n > 0)?),
            None => (item, 1),
        };
        let (from, to) = if range == "*" {
            (field.low, field.high)
        } else if let Some((from, to)) = range.split_once('-') {
            (number(from)?, number(to)?)
        } else {
            let from = number(range)?;
            (from, if item.contains('/') { field.high } else { from })
        };
        if from < field.low || to > field.high || from > to {
            return None;
        }
        all.extend((from..=to).step_by(usize::from(step)));
    }
    Some(all)
}

fn number(text: &str) -> Option<u8> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::{ScheduleError, check};

    #[test]
    fn words_and_cron_expressions_are_schedules() {
        for good in [
            "hourly",
            "nightly",
            "weekly",
            "* * * * *",
            "15 3 * * *",
            "*/10 8-18 * * 1-5",
            "0 0 29 2 *",
            "0 0 1,15 1-11/2 *",
            "5/20 0 31 2 0",
            "0 4 * * 7",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn anything_else_is_not() {
        for bad in ["", "daily", "3:15", "* * * *", "* * * * * *"] {
            assert_eq!(check(bad), Err(ScheduleError::Shape(bad.to_owned())), "{bad}");
        }
        for bad in ["60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "5-1 * * * *"] {
            assert!(matches!(check(bad), Err(ScheduleError::Field { .. })), "{bad}");
        }
        for bad in ["*/0 * * * *", "a * * * *", "1, * * * *", "+1 * * * *", "1-2-3 * * * *", "300 * * * *"] {
            assert!(matches!(check(bad), Err(ScheduleError::Field { name: "minute", .. })), "{bad}");
        }
        assert!(matches!(check("0 0 31 2,4 *"), Err(ScheduleError::Never(_))));
    }
}
