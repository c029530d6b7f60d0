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

fn ask(device: &str) -> Result<Fill, ToolError> {
    let tool = Tool::new("dmsetup", format!("asking how full {device} is"), READING);
    let tool = tool.args(["status", "--noflush", device]);
    parse(&tool.run()?).ok_or_else(|| tool.not_understood())
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
    use super::{Fill, parse};

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
