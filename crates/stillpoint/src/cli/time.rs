//! Times as people type them (DESIGN.md section 7): with an offset they are what they say; without one they
//! are read in the server's zone, and refused only where a clock change makes them ambiguous.
//!
//! Crash story: pure functions, no effects.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// Why a time was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// It is no time.
    #[error("{0:?} is not a time")]
    Unreadable(String),
    /// The clock was changed then.
    #[error("{text:?} is ambiguous in {zone}: the clock is changed at that time")]
    Ambiguous {
        /// What was typed.
        text: String,
        /// The zone it was read in.
        zone: String,
    },
}

impl TimeError {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "write 2026-11-20T14:30:00+01:00, 2026-11-20 14:30 or 2026-11-20",
            Self::Ambiguous { .. } => "add the offset, as in 2026-10-25T02:30:00+01:00",
        }
    }
}

/// The instant that `text` means; `zone` is the server's.
///
/// # Errors
/// If it is no time, or falls into a clock change without an offset.
pub fn parse_time(text: &str, zone: &TimeZone) -> Result<Timestamp, TimeError> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let civil: DateTime = text.parse().map_err(|_| TimeError::Unreadable(text.to_owned()))?;
    let zoned = zone.to_ambiguous_zoned(civil).unambiguous().map_err(|_| TimeError::Ambiguous {
        text: text.to_owned(),
        zone: zone.iana_name().unwrap_or("this server's zone").to_owned(),
    })?;
    Ok(zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::{TimeError, parse_time};

    // Central European rules as a POSIX string, so that the test needs no zone database.
    fn zurich() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    #[test]
    fn an_offset_says_it_all() {
        let time = parse_time("2026-11-20T14:30:00+01:00", &TimeZone::UTC).unwrap();
        assert_eq!(time.to_string(), "2026-11-20T13:30:00Z");
    }

    #[test]
    fn without_an_offset_the_servers_zone_counts() {
        assert_eq!(parse_time("2026-11-20 14:30", &zurich()).unwrap().to_string(), "2026-11-20T13:30:00Z");
        assert_eq!(parse_time("2026-07-20", &zurich()).unwrap().to_string(), "2026-07-19T22:00:00Z");
    }

    #[test]
    fn only_a_clock_change_is_refused() {
        for text in ["2026-10-25T02:30:00", "2026-03-29T02:30:00"] {
            assert!(matches!(parse_time(text, &zurich()), Err(TimeError::Ambiguous { .. })), "{text}");
        }
        assert!(parse_time("2026-10-25T02:30:00+01:00", &zurich()).is_ok());
        assert!(matches!(parse_time("soon", &zurich()), Err(TimeError::Unreadable(_))));
    }
}
