//! What an archive holds, read as `docs/format/logs.md` says it is written, without the program's own reader: the oracle of what
//! was captured before a moment.

use std::{fs, path::Path};

use engines::sqlite::wal::replay;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::sqlite_log_support::checked;

/// The base of an epoch, and all records of its only segment.
pub struct Written {
    base: Vec<u8>,
    records: Vec<Record>,
}

struct Record {
    captured: i128,
    pages: Vec<(usize, Vec<u8>)>,
    size: usize,
}

impl Written {
    /// Reads all of it, up to what was not yet whole.
    pub fn read(epoch: &Path) -> Self {
        let segment = fs::read(epoch.join("seg")).unwrap();
        let mut rest = segment.strip_prefix(b"STPWAL1\n").expect("a segment");
        let mut records = Vec::new();
        while let Some(record) = Record::take(&mut rest) {
            records.push(record);
        }
        Self { base: fs::read(epoch.join("base.db")).unwrap(), records }
    }

    /// When each was captured, in order.
    pub fn captured(&self) -> Vec<i128> {
        self.records.iter().map(|record| record.captured).collect()
    }

    /// The database of everything that was captured before this moment.
    fn at(&self, moment: Timestamp) -> Vec<u8> {
        assert!(self.records.is_sorted_by_key(|record| record.captured), "nobody sets this clock back");
        let mut database = self.base.clone();
        for record in self.records.iter().filter(|record| record.captured < moment.as_nanosecond()) {
            for (at, page) in &record.pages {
                database.resize(database.len().max(at + page.len()), 0);
                database[*at..at + page.len()].copy_from_slice(page);
            }
            database.truncate(record.size);
        }
        // In WAL mode, as the original is; the base by itself is not.
        database[18..20].fill(2);
        database
    }

    /// Replays up to a moment: byte for byte what was captured before it. The number of the last transaction.
    pub fn is_equal_at(&self, epoch: &Path, moment: Timestamp) -> i64 {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("restored.db");
        replay(&epoch.join("base.db"), &[epoch.join("seg")], moment, &to).unwrap();
        let (restored, expected) = (fs::read(&to).unwrap(), self.at(moment));
        assert!(restored == expected, "at {moment} it is not what was captured before");
        checked(&to)
    }
}

impl Record {
    fn take(rest: &mut &[u8]) -> Option<Self> {
        let bytes = *rest;
        let number = |at: usize, len: usize| -> Option<u64> {
            Some(bytes.get(at..at + len)?.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
        };
        let size = |at| usize::try_from(number(at, 4)?).ok();
        let (page, pages, follow) = (size(44)?, size(48)?, size(52)?);
        let end = 56 + follow * (4 + page);
        let digest = bytes.get(end..end + 32)?;
        assert!(bytes.starts_with(b"COMT") && Sha256::digest(&bytes[..end])[..] == *digest, "a record");
        let entries = bytes[56..end].chunks(4 + page).map(|entry| {
            let number = entry[..4].iter().fold(0usize, |all, byte| all << 8 | usize::from(*byte));
            ((number - 1) * page, entry[4..].to_vec())
        });
        let record = Self { captured: number(4, 8)?.into(), pages: entries.collect(), size: pages * page };
        *rest = &bytes[end + 32..];
        Some(record)
    }
}
