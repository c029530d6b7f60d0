//! Records of a segment: one committed transaction each. Written form: `docs/format/logs.md`.
//!
//! Crash story: a record is whole or ends the segment; a checksum tells which.

use std::io::{self, Read};

use jiff::Timestamp;
use model::{
    logs::{LogPlace, SegmentHead, Span, WalPosition, WholePart},
    server::Gtids,
};
use sha2::{Digest, Sha256};

/// How every segment of a write-ahead log begins: its lead.
pub const SEGMENT_LEAD: &[u8; 8] = b"STPWAL1\n";

const MARK: &[u8; 4] = b"COMT";
const HEAD: usize = 56;
const DIGEST: usize = 32;

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// When it was captured: the commit was first seen at this moment.
    pub captured: Timestamp,
    /// Where the transaction ends.
    pub to: WalPosition,
    /// Bytes of a page.
    pub page_size: u32,
    /// Pages of the database after it.
    pub database_pages: u32,
    /// Pages that follow.
    pub pages: u32,
}

impl RecordHead {
    /// Bytes of the whole record.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (HEAD + DIGEST) as u64 + u64::from(self.pages) * (4 + u64::from(self.page_size))
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let nanoseconds = i64::try_from(self.captured.as_nanosecond()).unwrap_or(i64::MAX);
        let mut bytes = MARK.to_vec();
        bytes.extend(nanoseconds.to_be_bytes());
        bytes.extend(self.to.generation.to_be_bytes());
        bytes.extend(self.to.salts.0.to_be_bytes());
        bytes.extend(self.to.salts.1.to_be_bytes());
        bytes.extend(self.to.frame.to_be_bytes());
        bytes.extend(self.to.checksum.0.to_be_bytes());
        bytes.extend(self.to.checksum.1.to_be_bytes());
        bytes.extend(self.page_size.to_be_bytes());
        bytes.extend(self.database_pages.to_be_bytes());
        bytes.extend(self.pages.to_be_bytes());
        bytes
    }

    /// Nothing if it is no head of a record.
    fn parse(bytes: &[u8; HEAD]) -> Option<Self> {
        let long = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(eight)
        };
        let word = |at: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&bytes[at..at + 4]);
            u32::from_be_bytes(four)
        };
        let page_size = word(44);
        if !bytes.starts_with(MARK) || !page_size.is_power_of_two() || !(512..=65_536).contains(&page_size) {
            return None;
        }
        Some(Self {
            captured: Timestamp::from_nanosecond(i128::from(long(4))).ok()?,
            to: WalPosition {
                generation: long(12),
                salts: (word(20), word(24)),
                frame: long(28),
                checksum: (word(36), word(40)),
            },
            page_size,
            database_pages: word(48),
            pages: word(52),
        })
    }
}

/// Reads the records of a segment.
pub(super) struct Records<R> {
    segment: R,
}

/// A record whose pages are being read.
pub(super) struct Open<'a, R> {
    pub head: RecordHead,
    segment: &'a mut R,
    digest: Sha256,
    left: u32,
}

impl<R: Read> Records<R> {
    /// Reads the lead.
    ///
    /// # Errors
    /// If it cannot be read or is another one.
    pub fn open(mut segment: R) -> io::Result<Self> {
        let mut lead = [0; SEGMENT_LEAD.len()];
        segment.read_exact(&mut lead)?;
        if lead == *SEGMENT_LEAD {
            Ok(Self { segment })
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "no segment of a write-ahead log"))
        }
    }

    /// The next record; nothing at the end of the segment.
    ///
    /// # Errors
    /// `UnexpectedEof` or `InvalidData` if there is no whole head of a record; if it cannot be read.
    pub fn next(&mut self) -> io::Result<Option<Open<'_, R>>> {
        let mut bytes = [0; HEAD];
        match self.segment.read(&mut bytes[..1])? {
            0 => return Ok(None),
            _ => self.segment.read_exact(&mut bytes[1..])?,
        }
        let head = RecordHead::parse(&bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what stands there is no record"))?;
        let digest = Sha256::new_with_prefix(bytes);
        Ok(Some(Open { head, segment: &mut self.segment, digest, left: head.pages }))
    }
}

impl<R: Read> Open<'_, R> {
    /// The next page into `page`, which has to be of the page's size; its number, or nothing after the last one, when the
    /// whole record has proved to be as it was written.
    ///
    /// # Errors
    /// `UnexpectedEof` or `InvalidData` if the record is not whole; if it cannot be read.
    pub fn page(&mut self, page: &mut [u8]) -> io::Result<Option<u32>> {
        if self.left == 0 {
            let mut digest = [0; DIGEST];
            self.segment.read_exact(&mut digest)?;
            if digest != self.digest.finalize_reset()[..] {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum of a record is wrong"));
            }
            return Ok(None);
        }
        self.left -= 1;
        let mut number = [0; 4];
        self.segment.read_exact(&mut number)?;
        self.segment.read_exact(page)?;
        self.digest.update(number);
        self.digest.update(&page);
        Ok(Some(u32::from_be_bytes(number)))
    }

    /// Reads on to the end.
    ///
    /// # Errors
    /// As [`Self::page`].
    fn skip(mut self) -> io::Result<RecordHead> {
        let mut page = vec![0; self.head.page_size as usize];
        while self.page(&mut page)?.is_some() {}
        Ok(self.head)
    }
}

/// The heads of all records of a segment, each record proven to be as it was written.
///
/// # Errors
/// If it cannot be read, or a record is not whole.
pub fn heads(segment: &mut dyn Read) -> io::Result<Vec<RecordHead>> {
    let mut records = Records::open(segment)?;
    let mut all = Vec::new();
    while let Some(open) = records.next()? {
        all.push(open.skip()?);
    }
    Ok(all)
}

/// Reads a segment from its beginning and says what is whole of it.
///
/// # Errors
/// If it cannot be read. A torn or wrong record ends what is whole, and is no error.
pub fn whole_of(head: &SegmentHead, segment: &mut dyn Read) -> io::Result<WholePart> {
    let gtid_state: Option<Gtids> = None;
    let mut whole = WholePart { bytes: 0, to: head.from.clone(), transactions: 0, commits: None, gtid_state };
    let mut records = match Records::open(segment) {
        Ok(records) => records,
        Err(error) => return ends(error, whole),
    };
    whole.bytes = SEGMENT_LEAD.len() as u64;
    loop {
        let record = match records.next() {
            Ok(Some(open)) => open.skip(),
            Ok(None) => return Ok(whole),
            Err(error) => Err(error),
        };
        match record {
            Ok(record) => {
                whole.bytes += record.bytes();
                whole.to = LogPlace::SqliteWal(record.to);
                whole.transactions += 1;
                let at = record.captured;
                let before = whole.commits.unwrap_or(Span { first: at, last: at });
                whole.commits = Some(Span { first: before.first.min(at), last: before.last.max(at) });
            }
            Err(error) => return ends(error, whole),
        }
    }
}

fn ends(error: io::Error, whole: WholePart) -> io::Result<WholePart> {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Ok(whole),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use model::logs::{LOGS_VERSION, LogPlace, SegmentHead, WalPosition};
    use sha2::{Digest, Sha256};

    use super::{RecordHead, SEGMENT_LEAD, whole_of};

    fn record(frame: u64) -> Vec<u8> {
        let to = WalPosition { generation: 2, salts: (3, 4), frame, checksum: (5, 6) };
        let captured = Timestamp::from_nanosecond(1_700_000_000_123_456_789).unwrap();
        let head = RecordHead { captured, to, page_size: 512, database_pages: 7, pages: 1 };
        let mut bytes = head.to_bytes();
        bytes.extend(9_u32.to_be_bytes());
        bytes.extend([0xa5; 512]);
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        assert_eq!(bytes.len() as u64, head.bytes());
        assert_eq!(RecordHead::parse(bytes[..56].try_into().unwrap()), Some(head));
        bytes
    }

    /// Records like this one lie in archives: it is read for ever.
    #[test]
    fn a_frozen_head_is_read() {
        let frozen = "434f4d5417979cfe3d85cd150000000000000002000000030000000400000000000000020000000500000006000002000000000700000001";
        let bytes = record(2);
        let head: String = bytes[..56].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(head, frozen);
    }

    #[test]
    fn a_frozen_segment_is_read() {
        let frozen: &[u8] = include_bytes!("../../../testdata/wal-1.seg");
        assert_eq!(frozen, [SEGMENT_LEAD.to_vec(), record(2), record(3)].concat());
    }

    #[test]
    fn what_is_whole_of_a_segment_ends_at_a_torn_or_wrong_record() {
        let from =
            LogPlace::SqliteWal(WalPosition { generation: 2, salts: (3, 4), frame: 1, checksum: (0, 0) });
        let begun_at = Timestamp::UNIX_EPOCH;
        let head = SegmentHead { version: LOGS_VERSION, from, lead: 8, gtid_state: None, begun_at };
        let bytes = [SEGMENT_LEAD.to_vec(), record(2), record(3)].concat();
        let one = 8 + record(2).len();
        for cut in 0..bytes.len() {
            let whole = whole_of(&head, &mut &bytes[..cut]).unwrap();
            let expected = if cut < 8 {
                (0, 0)
            } else if cut < one {
                (8, 0)
            } else {
                (one as u64, 1)
            };
            assert_eq!((whole.bytes, whole.transactions), expected, "cut at {cut}");
        }
        for flipped in one..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[flipped] ^= 1;
            let whole = whole_of(&head, &mut &wrong[..]).unwrap();
            assert_eq!(whole.transactions, 1, "flipped at {flipped}");
        }
        assert_eq!(whole_of(&head, &mut &bytes[..]).unwrap().transactions, 2);
    }
}
