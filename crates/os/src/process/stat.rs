//! `/proc/PID/stat`, [proc_pid_stat(5)](https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html).
//!
//! Crash story: reads only.

use std::{
    fs,
    fs::File,
    io::{self, Read},
    path::Path,
};

/// What is used of one line of `stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Field 3: `R` running, `S`, `D` sleeping, `T` stopped, `t` traced, `Z` zombie, `X` dead.
    pub state: u8,
    /// Field 4.
    pub parent: u32,
    /// Field 5.
    pub group: u32,
    /// Field 22, clock ticks since boot.
    pub start: u64,
}

impl Stat {
    /// Neither runs nor can run again.
    pub fn has_ended(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// The process `pid`.
pub(crate) fn read(pid: u32) -> io::Result<Stat> {
    read_file(&format!("/proc/{pid}/stat"))
}

/// The thread `tid` of the process `pid`.
pub(crate) fn read_thread(pid: u32, tid: u32) -> io::Result<Stat> {
    read_file(&format!("/proc/{pid}/task/{tid}/stat"))
}

fn read_file(path: &str) -> io::Result<Stat> {
    // The name in field 2 is any bytes. The kernel gives the whole line, which is shorter than this, at once;
    // one reading, because the holds read many while writers wait.
    let mut buffer = [0; 1024];
    let read = File::open(path)?.read(&mut buffer)?;
    parse(&buffer[..read])
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{path} has another form")))
}

/// The name in field 2 may hold spaces and parentheses, so counting begins after the last `)`.
fn parse(bytes: &[u8]) -> Option<Stat> {
    let after = bytes.iter().rposition(|b| *b == b')')? + 1;
    let text = std::str::from_utf8(&bytes[after..]).ok()?;
    let mut fields = text.split_ascii_whitespace();
    Some(Stat {
        state: *fields.next()?.as_bytes().first()?,
        // A parent outside our PID namespace is 0; so is the group of a process that has ended.
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().unwrap_or(0),
        start: fields.nth(16)?.parse().ok()?,
    })
}

/// The entries of a directory whose names are numbers.
pub(crate) fn numbers(directory: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        // A directory of a dying process ends with an error in mid-reading.
        let Ok(entry) = entry else { break };
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.push(number);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{Stat, parse};

    #[test]
    fn names_may_hold_anything() {
        let line = b"42 (a) R (b c) S 7 40 40 0 -1 4194560 1 0 0 0 2 3 0 0 20 0 1 0 987654 1 2 3\n";
        assert_eq!(parse(line), Some(Stat { state: b'S', parent: 7, group: 40, start: 987_654 }));
        assert_eq!(parse(b"42 (\xff\xfe) Z 1 1 1"), None);
        assert_eq!(parse(b""), None);
    }
}
