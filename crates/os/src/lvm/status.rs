//! How full a snapshot or a thin pool is, as device mapper says at once and without locking the volume group.
//!
//! Formats: Documentation/admin-guide/device-mapper/snapshot.rst and thin-provisioning.rst of the kernel.
//!
//! Crash story: reads only.

use super::{READING, dm_name};
use crate::tools::{Tool, ToolError};

/// How full something is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// Shares of 1.
    Used {
        /// Of its data.
        data: f64,
        /// Of its metadata, where that has a size of its own.
        metadata: f64,
    },
    /// It became full, or could not be written: what it held is lost.
    Invalid,
}

impl Fill {
    /// The larger of the shares; 1 if it is invalid.
    #[must_use]
    pub fn most(self) -> f64 {
        match self {
            Self::Used { data, metadata } => data.max(metadata),
            Self::Invalid => 1.0,
        }
    }
}

/// How full a classic snapshot is.
pub(super) fn fill_of_snapshot(group: &str, name: &str) -> Result<Fill, ToolError> {
    ask(&dm_name(group, name))
}

/// How full a thin pool is.
pub(super) fn fill_of_pool(group: &str, pool: &str) -> Result<Fill, ToolError> {
    ask(&format!("{}-tpool", dm_name(group, pool)))
}

/// Where the snapshot of its metadata begins that a thin pool holds for somebody, if it does.
pub(super) fn held_metadata(group: &str, pool: &str) -> Result<Option<u64>, ToolError> {
    let tool = status(&format!("{}-tpool", dm_name(group, pool)));
    parse_held(&tool.run()?).ok_or_else(|| tool.not_understood())
}

fn ask(device: &str) -> Result<Fill, ToolError> {
    let tool = status(device);
    parse(&tool.run()?).ok_or_else(|| tool.not_understood())
}

fn status(device: &str) -> Tool {
    let tool = Tool::new("dmsetup", format!("asking for the state of {device}"), READING);
    tool.args(["status", "--noflush", device])
}

/// The seventh word of a thin pool's line.
fn parse_held(text: &str) -> Option<Option<u64>> {
    let mut words = text.split_ascii_whitespace().skip(2);
    if words.next()? != "thin-pool" {
        return None;
    }
    match words.nth(3)? {
        "-" => Some(None),
        root => root.parse().ok().map(Some),
    }
}

/// `0 2097152 snapshot 128/204800 16`, or `0 2097152 thin-pool 1 18/1024 64/8192 - rw …`.
fn parse(text: &str) -> Option<Fill> {
    let mut words = text.split_ascii_whitespace().skip(2);
    match words.next()? {
        "snapshot" => match words.next()? {
            "Invalid" | "Overflow" | "Merge" => Some(Fill::Invalid),
            "Unknown" => None,
            used => Some(Fill::Used { data: share(used)?, metadata: 0.0 }),
        },
        "thin-pool" => {
            let first = words.next()?;
            if matches!(first, "Fail" | "Error") {
                return Some(Fill::Invalid);
            }
            let metadata = share(words.next()?)?;
            let data = share(words.next()?)?;
            // The root that somebody holds, then the mode.
            match words.nth(1) {
                Some("out_of_data_space" | "ro") => Some(Fill::Invalid),
                _ => Some(Fill::Used { data, metadata }),
            }
        }
        _ => None,
    }
}

/// `used/all`.
fn share(text: &str) -> Option<f64> {
    let (used, all) = text.split_once('/')?;
    let (used, all): (f64, f64) = (used.parse().ok()?, all.parse().ok()?);
    (all > 0.0).then_some(used / all)
}

#[cfg(test)]
mod tests {
    use super::{Fill, parse, parse_held};

    #[test]
    fn held_metadata_are_seen() {
        let line = |held| {
            format!("0 8192 thin-pool 1 256/1024 64/128 {held} rw discard_passdown queue_if_no_space - 1024")
        };
        assert_eq!(parse_held(&line("-")), Some(None));
        assert_eq!(parse_held(&line("173")), Some(Some(173)));
        assert_eq!(parse_held(&line("x")), None);
        assert_eq!(parse_held("0 8192 thin-pool Fail"), None);
        assert_eq!(parse_held("0 8192 linear"), None);
    }

    #[test]
    fn status_lines_are_understood() {
        let used = |data, metadata| Some(Fill::Used { data, metadata });
        assert_eq!(parse("0 2097152 snapshot 50/200 16\n"), used(0.25, 0.0));
        assert_eq!(parse("0 2097152 snapshot Invalid\n"), Some(Fill::Invalid));
        assert_eq!(parse("0 2097152 snapshot Overflow\n"), Some(Fill::Invalid));
        let pool = "0 8192 thin-pool 1 256/1024 64/128 - rw discard_passdown queue_if_no_space - 1024\n";
        assert_eq!(parse(pool), used(0.5, 0.25));
        let full =
            "0 8192 thin-pool 1 256/1024 128/128 - out_of_data_space discard_passdown queue_if_no_space -";
        assert_eq!(parse(full), Some(Fill::Invalid));
        assert_eq!(parse("0 8192 thin-pool Fail"), Some(Fill::Invalid));
        assert_eq!(parse("0 8192 linear"), None);
        assert_eq!(parse(""), None);
    }
}
