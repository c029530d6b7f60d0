//! The header of a database file, read without SQLite.
//!
//! Layout: <https://www.sqlite.org/fileformat2.html#the_database_header>, 100 bytes, big-endian.
//!
//! Crash story: reads only.

use std::{fs::File, io, os::unix::fs::FileExt};

use model::plan::JournalMode;

/// How every database file that is not empty begins.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// What the first page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Page size in bytes, 512 to 65,536; 0 for an empty file.
    pub page_size: u32,
    /// How it journals, by bytes 18 and 19.
    pub journal: JournalMode,
    /// The file change counter, bytes 24 to 27; not kept up in WAL mode.
    pub changes: u32,
}

/// What a file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A database; an empty file is an empty database.
    Database(Header),
    /// Too short, without the magic, or with impossible values.
    Foreign,
    /// Written by a version that wants more than we understand: a write version above 2.
    TooNew(u8),
}

/// Reads the header of an open file.
///
/// # Errors
/// If it cannot be read.
pub(super) fn read(file: &File) -> io::Result<Found> {
    let mut bytes = [0; 100];
    let length = file.metadata()?.len();
    if length == 0 {
        let header = Header { page_size: 0, journal: JournalMode::Rollback, changes: 0 };
        return Ok(Found::Database(header));
    }
    if length < 512 {
        return Ok(Found::Foreign);
    }
    file.read_exact_at(&mut bytes, 0)?;
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8; 100]) -> Found {
    // The value 1 stands for 65,536, which does not fit into two bytes.
    let page_size = match u16::from_be_bytes([bytes[16], bytes[17]]) {
        1 => 65_536,
        size => u32::from(size),
    };
    if !bytes.starts_with(MAGIC) || page_size < 512 || !page_size.is_power_of_two() {
        return Found::Foreign;
    }
    let journal = match (bytes[18], bytes[19]) {
        (2, 2) => JournalMode::Wal,
        (write, read) if write > 2 || read > 2 => return Found::TooNew(write.max(read)),
        _ => JournalMode::Rollback,
    };
    let changes = u32::from_be_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
    Found::Database(Header { page_size, journal, changes })
}

#[cfg(test)]
mod tests {
    use model::plan::JournalMode;

    use super::{Found, Header, MAGIC, parse};

    fn bytes(page_size: u16, version: u8) -> [u8; 100] {
        let mut bytes = [0; 100];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..18].copy_from_slice(&page_size.to_be_bytes());
        bytes[18] = version;
        bytes[19] = version;
        bytes[27] = 7;
        bytes
    }

    #[test]
    fn a_header_tells_page_size_and_journal() {
        let expected = Header { page_size: 65_536, journal: JournalMode::Wal, changes: 7 };
        assert_eq!(parse(&bytes(1, 2)), Found::Database(expected));
        let expected = Header { page_size: 4096, journal: JournalMode::Rollback, changes: 7 };
        assert_eq!(parse(&bytes(4096, 1)), Found::Database(expected));
    }

    #[test]
    fn what_is_no_database_is_told_apart() {
        assert_eq!(parse(&bytes(4000, 1)), Found::Foreign);
        assert_eq!(parse(&bytes(256, 1)), Found::Foreign);
        assert_eq!(parse(&bytes(4096, 3)), Found::TooNew(3));
        assert_eq!(parse(&[0x5a; 100]), Found::Foreign);
    }
}
