//! Values that the text form writes as strings: lengths of time, sizes and patterns.
//!
//! Crash story: pure functions, no effects.

use std::time::Duration;

use globset::{Glob, GlobBuilder};

use crate::size::Bytes;

const UNITS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

/// A length of time: a whole number and one of ms, s, m, h, d, w, such as `500ms` or `30d`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*millis).map(Duration::from_millis)
}

/// The shortest text that [`duration`] reads back, to the millisecond.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = |(_, size): &&(&str, u64)| millis.is_multiple_of(*size) && (millis > 0 || *size == 1000);
    let (unit, size) = UNITS.iter().rev().find(fits).copied().unwrap_or(("ms", 1));
    // Days read better than weeks: 30d, 14d.
    if unit == "w" { format!("{}d", millis / 86_400_000) } else { format!("{}{unit}", millis / size) }
}

/// A size: a whole number and KiB, MiB or GiB, such as `16MiB`.
pub(super) fn bytes(text: &str) -> Option<Bytes> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let (number, shift) = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))?;
    number.trim_end().parse::<u64>().ok()?.checked_mul(1 << shift).map(Bytes)
}

/// A pattern of what to leave out, matched against paths relative to the directory's root. `*` and `?` stop
/// at `/`, `**` does not; everything below a match is left out too.
///
/// # Errors
/// If it is no pattern, or could match nothing because it begins with `/` or names `..`.
pub fn pattern(text: &str) -> Result<Glob, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if text.starts_with('/') {
        return Err("it begins with / but is matched against paths relative to the directory".to_owned());
    }
    if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("it has a component that is empty, . or ..".to_owned());
    }
    GlobBuilder::new(text)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|error| error.kind().to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{duration, pattern, show_duration};

    #[test]
    fn lengths_of_time_are_a_number_and_a_unit() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("2s"), Some(Duration::from_secs(2)));
        assert_eq!(duration("2 m"), Some(Duration::from_secs(120)));
        assert_eq!(duration("30d"), Some(Duration::from_secs(30 * 86400)));
        for bad in [
            "",
            "2",
            "s",
            "-2s",
            "1.5s",
            "2 seconds",
            "2S",
            "2sm",
            "99999999999999999999d",
            "999999999999999999w",
        ] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn lengths_of_time_read_back() {
        for text in ["500ms", "2s", "90s", "2m", "36h", "30d", "14d", "0s", "1500ms"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
    }

    #[test]
    fn a_star_stops_at_a_slash_and_two_do_not() {
        let matches = |p: &str, path: &str| pattern(p).unwrap().compile_matcher().is_match(path);
        assert!(matches("cache/**", "cache/a/b") && !matches("cache/**", "cache"));
        assert!(matches("*.tmp", "a.tmp") && !matches("*.tmp", "a/b.tmp"));
        assert!(matches("**/*.tmp", "a/b.tmp") && matches("**/*.tmp", "b.tmp"));
    }

    #[test]
    fn patterns_that_can_match_nothing_are_refused() {
        for bad in ["", "/srv/cache", "../x", "a//b", "a/", "[a", "a{b"] {
            assert!(pattern(bad).is_err(), "{bad:?}");
        }
    }
}
