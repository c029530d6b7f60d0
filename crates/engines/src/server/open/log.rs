//! What a server says in its error log.
//!
//! Crash story: reads only.

use std::path::Path;

use model::server::BinlogPosition;

/// How much of the end of a log goes into a message.
const LAST_LINES: usize = 6;

/// The log of one or several starts, as far as it is written.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerLog(String);

impl ServerLog {
    pub fn read(path: &Path) -> Self {
        Self(String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned())
    }

    /// The server accepts connections.
    pub fn is_ready(&self) -> bool {
        self.0.contains(": ready for connections")
    }

    /// It refuses to start because transactions were prepared and not committed, and no binary log is there to tell
    /// which of them are to be.
    pub fn has_prepared(&self) -> bool {
        self.0.contains("prepared transactions! It means that server was not shut down properly")
    }

    /// It has decided about these, as it was told, and wants to be started anew.
    pub fn has_decided(&self) -> bool {
        self.0.contains("Please restart without --tc-heuristic-recover")
    }

    /// Crash recovery was done.
    pub fn has_recovered(&self) -> bool {
        self.0.contains("InnoDB: Starting crash recovery")
    }

    /// The position in the binary log that InnoDB had stored with its last commit:
    /// `InnoDB: Last binlog file './binlog.000001', position 5332703`. Only told by a crash recovery.
    pub fn position(&self) -> Option<BinlogPosition> {
        let (_, rest) = self.0.split_once("InnoDB: Last binlog file '")?;
        let (file, rest) = rest.lines().next()?.split_once("', position ")?;
        let offset = rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        let file = Path::new(file).file_name()?.to_str()?.to_owned();
        Some(BinlogPosition { file, offset })
    }

    /// The last errors, or else the last lines, in one line.
    pub fn last_words(&self) -> String {
        let errors: Vec<&str> = self.0.lines().filter(|line| line.contains("[ERROR]")).collect();
        let lines = if errors.is_empty() { self.0.lines().collect() } else { errors };
        let from = lines.len().saturating_sub(LAST_LINES);
        let words: Vec<String> = lines[from..].iter().map(|line| short(line)).collect();
        words.join("; ")
    }
}

/// A line without its time and level.
fn short(line: &str) -> String {
    let text = line.split_once("] ").map_or(line, |(_, text)| text);
    text.chars().filter(|c| !c.is_control()).take(300).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::ServerLog;

    #[test]
    fn the_recovered_position_is_found() {
        let log = "2026-11-20 16:12:34 0 [Note] InnoDB: To recover: 438 pages\n2026-11-20 16:12:34 0 [Note] InnoDB: Last \
                   binlog file '/srv/a b/binlog.000001', position 5332703\n2026-11-20 16:12:34 0 [ERROR] Aborting\n";
        let log = ServerLog(log.to_owned());
        assert_eq!(log.position().unwrap().to_string(), "binlog.000001:5332703");
        assert_eq!(log.last_words(), "Aborting");
        assert!(!log.is_ready() && !log.has_prepared());
        assert_eq!(ServerLog::default().position(), None);
    }
}
