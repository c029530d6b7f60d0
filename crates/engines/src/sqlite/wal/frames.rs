//! The frames of a write-ahead log, read without SQLite and without locks: POSIX locks lie on the database and on `-shm`,
//! never on `-wal`.
//!
//! Layout and checksums: <https://www.sqlite.org/fileformat2.html#walformat>.
//!
//! Crash story: reads only. What is read is committed, and protected by an open read transaction of the caller.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt};

use model::logs::WalPosition;

/// Bytes before the first frame.
const LOG_HEADER: u64 = 32;
/// Bytes of a frame before its page.
pub(super) const FRAME_HEADER: u64 = 24;
/// The last bit says in which order the words of a page are summed up.
const MAGIC: u32 = 0x377f_0682;

/// Salts and checksum of a frame.
type Slot = ((u32, u32), (u32, u32));

/// How the log in a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogHeader {
    pub page_size: u32,
    pub salts: (u32, u32),
    pub checksum: (u32, u32),
    big_endian: bool,
}

/// The frames of one committed transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transaction {
    /// Where it ends.
    pub to: WalPosition,
    /// Pages of the database after it.
    pub database_pages: u32,
    /// For each page its last frame.
    pub frames: BTreeMap<u32, u64>,
}

/// Why frames that are committed could not be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// The file cannot be read.
    Io(io::Error),
    /// What stands there is not what was committed.
    Wrong(String),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads the head of the log; nothing if the file has none yet.
///
/// # Errors
/// If it cannot be read, or is not valid.
pub(super) fn header(log: &File) -> Result<Option<LogHeader>, Unreadable> {
    let mut bytes = [0; LOG_HEADER as usize];
    match log.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let word = |n: usize| word(&bytes[4 * n..]);
    if word(0) & !1 != MAGIC {
        return Err(Unreadable::Wrong("it does not begin as a log does".into()));
    }
    let big_endian = word(0) & 1 == 1;
    let checksum = (word(6), word(7));
    if sum(big_endian, &bytes[..24], (0, 0)) != checksum {
        return Err(Unreadable::Wrong("the checksum of its header is wrong".into()));
    }
    Ok(Some(LogHeader { page_size: word(2), salts: (word(4), word(5)), checksum, big_endian }))
}

impl LogHeader {
    fn offset(&self, frame: u64) -> u64 {
        LOG_HEADER + (frame - 1) * (FRAME_HEADER + u64::from(self.page_size))
    }

    /// Salts and checksum that stand in a frame, of this log or of one before; nothing if the file ends before it.
    fn slot(&self, log: &File, frame: u64) -> io::Result<Option<Slot>> {
        let mut head = [0; FRAME_HEADER as usize];
        match log.read_exact_at(&mut head, self.offset(frame)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            read => read.map(|()| {
                Some(((word(&head[8..]), word(&head[12..])), (word(&head[16..]), word(&head[20..]))))
            }),
        }
    }

    /// Whether this is the log of `place`, and the frame at which that ends is the same.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn has(&self, log: &File, place: &WalPosition) -> io::Result<bool> {
        let there = self.salts == place.salts;
        Ok(there && (place.frame == 0 || self.slot(log, place.frame)? == Some((place.salts, place.checksum))))
    }

    /// Whether the log with the salts `now`, which is committed up to frame `end`, came directly after one that ended exactly
    /// at `place`.
    ///
    /// Whoever begins a log anew counts its first salt up by one. Frames are written in order over those of the log before;
    /// so while its frame at `place` is still there, one that had followed it would be there too. A checkpoint may begin it
    /// anew and leave the file to the next writer: then this is still the header of the one before.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn follows(
        &self,
        log: &File,
        place: &WalPosition,
        (now, end): ((u32, u32), u64),
    ) -> io::Result<bool> {
        let is_of = self.salts == now || (end == 0 && self.salts == place.salts);
        if !is_of || place.frame == 0 || end >= place.frame || now.0 != place.salts.0.wrapping_add(1) {
            return Ok(false);
        }
        let is_there = self.slot(log, place.frame)? == Some((place.salts, place.checksum));
        let was_last = match self.slot(log, place.frame + 1)? {
            Some((salts, _)) => salts != place.salts,
            None => log.metadata()?.len() == self.offset(place.frame + 1),
        };
        Ok(is_there && was_last)
    }

    /// The next transaction after `from` that ends at or before frame `end`.
    ///
    /// # Errors
    /// If a frame up to `end` cannot be read or is wrong, or `end` lies within a transaction: all of them are committed.
    pub fn next(&self, log: &File, from: &WalPosition, end: u64) -> Result<Option<Transaction>, Unreadable> {
        let mut frames = BTreeMap::new();
        let mut checksum = from.checksum;
        let mut bytes = vec![0; (FRAME_HEADER + u64::from(self.page_size)) as usize];
        for frame in from.frame + 1..=end {
            log.read_exact_at(&mut bytes, self.offset(frame))?;
            let (head, page) = bytes.split_at(FRAME_HEADER as usize);
            checksum = sum(self.big_endian, page, sum(self.big_endian, &head[..8], checksum));
            let ours = (word(&head[8..]), word(&head[12..])) == self.salts;
            if !ours || checksum != (word(&head[16..]), word(&head[20..])) {
                return Err(Unreadable::Wrong(format!("frame {frame} is not what was committed")));
            }
            frames.insert(word(head), frame);
            let database_pages = word(&head[4..]);
            if database_pages != 0 {
                let to = WalPosition { frame, checksum, ..*from };
                frames.retain(|page, _| *page <= database_pages);
                return Ok(Some(Transaction { to, database_pages, frames }));
            }
        }
        if from.frame < end {
            return Err(Unreadable::Wrong(format!("frame {end} does not end a transaction")));
        }
        Ok(None)
    }

    /// Reads the page of a frame.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn page(&self, log: &File, frame: u64, into: &mut [u8]) -> io::Result<()> {
        log.read_exact_at(into, self.offset(frame) + FRAME_HEADER)
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The checksum algorithm of the format: two sums over pairs of words.
pub(super) fn sum(big_endian: bool, bytes: &[u8], seed: (u32, u32)) -> (u32, u32) {
    let number = |b: &[u8]| {
        let four = [b[0], b[1], b[2], b[3]];
        if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    };
    bytes.chunks_exact(8).fold(seed, |(first, second), pair| {
        let first = first.wrapping_add(number(pair)).wrapping_add(second);
        (first, second.wrapping_add(number(&pair[4..])).wrapping_add(first))
    })
}
