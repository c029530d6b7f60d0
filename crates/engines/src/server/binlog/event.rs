//! Events of binary logs, as bytes say them: <https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_replication_binlog_event.html>
//! and <https://mariadb.com/kb/en/2-binlog-event-header/>, numbers little endian.
//!
//! What is not understood is still an event, with its length: it can be stored. Only what tells transactions, times
//! and GTIDs apart is read.
//!
//! Crash story: pure.

use std::fmt;

use model::{
    gtid::{Domain, Gtid, GtidState},
    server::Flavor,
};

/// How a file of the log begins.
pub const MAGIC: [u8; 4] = *b"\xfebin";
/// Bytes of every event's header.
pub const HEADER: usize = 19;
/// Bytes of a checksum.
const CHECKSUM: usize = 4;
/// The event was made up for a connection and lies in no file.
const ARTIFICIAL: u16 = 0x20;
/// The file was not closed.
const IN_USE: u16 = 0x01;
/// MariaDB: the transaction is one statement, without an event that ends it.
const STANDALONE: u8 = 0x01;

/// Numbers of events.
pub mod kind {
    /// A statement, also `BEGIN` and `COMMIT`.
    pub const QUERY: u8 = 0x02;
    /// The server was shut down.
    pub const STOP: u8 = 0x03;
    /// The log goes on in another file.
    pub const ROTATE: u8 = 0x04;
    /// `AUTO_INCREMENT` of the statement that follows.
    pub const INTVAR: u8 = 0x05;
    /// `RAND()` of the statement that follows.
    pub const RAND: u8 = 0x0d;
    /// A user variable of the statement that follows.
    pub const USER_VAR: u8 = 0x0e;
    /// How the events of this file look.
    pub const FORMAT: u8 = 0x0f;
    /// Commit of a transactional engine.
    pub const XID: u8 = 0x10;
    /// Rows of a table follow.
    pub const TABLE_MAP: u8 = 0x13;
    /// Something was lost on the server.
    pub const INCIDENT: u8 = 0x1a;
    /// Nothing has happened for a while; in no file.
    pub const HEARTBEAT: u8 = 0x1b;
    /// MySQL: the statement's text, before its rows.
    pub const ROWS_QUERY: u8 = 0x1d;
    /// MySQL: the transaction that follows has this GTID.
    pub const GTID: u8 = 0x21;
    /// MySQL: the transaction that follows has none.
    pub const ANONYMOUS_GTID: u8 = 0x22;
    /// MySQL: GTIDs of all files before.
    pub const PREVIOUS_GTIDS: u8 = 0x23;
    /// `XA PREPARE`.
    pub const XA_PREPARE: u8 = 0x26;
    /// MySQL: a whole transaction, compressed.
    pub const PAYLOAD: u8 = 0x28;
    /// MySQL: heartbeat of files above 4 GiB.
    pub const HEARTBEAT_2: u8 = 0x29;
    /// MySQL: a GTID with a tag.
    pub const TAGGED_GTID: u8 = 0x2a;
    /// MariaDB: the statement's text, before its rows.
    pub const ANNOTATE: u8 = 0xa0;
    /// MariaDB: the transaction that follows has this GTID.
    pub const MARIADB_GTID: u8 = 0xa2;
    /// MariaDB: binlog state at the beginning of the file.
    pub const GTID_LIST: u8 = 0xa3;
    /// MariaDB: a statement, compressed.
    pub const QUERY_COMPRESSED: u8 = 0xa5;
}

/// What is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It ends too early.
    #[error("an event of the binary log ends too early")]
    Short,
    /// Its checksum does not fit.
    #[error("an event of the binary log has a wrong checksum")]
    Checksum,
    /// No format description came before.
    #[error("the binary log begins without a format description")]
    NoFormat,
    /// An older or newer format than that of MySQL 5.0 and later.
    #[error("the binary log has format {0}, not 4")]
    Version(u16),
}

/// The header of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Seconds since 1970, by the clock of the server on which it was first written.
    pub time: u32,
    /// See [`kind`].
    pub kind: u8,
    /// Server on which it was first written.
    pub server_id: u32,
    /// Bytes, header and checksum included.
    pub size: u32,
    /// Offset of its end in its file, of which these are the lower 32 bits; 0 if it lies in none.
    pub end: u32,
    /// Flags.
    pub flags: u16,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// If there are too few bytes, or the event would be shorter than its header.
    pub fn parse(bytes: &[u8]) -> Result<Self, Wrong> {
        let header = Self {
            time: u32_at(bytes, 0)?,
            kind: *bytes.get(4).ok_or(Wrong::Short)?,
            server_id: u32_at(bytes, 5)?,
            size: u32_at(bytes, 9)?,
            end: u32_at(bytes, 13)?,
            flags: u16_at(bytes, 17)?,
        };
        if (header.size as usize) < HEADER { Err(Wrong::Short) } else { Ok(header) }
    }

    /// Whether it was made up for the connection and lies in no file of the server.
    #[must_use]
    pub fn is_artificial(&self) -> bool {
        self.end == 0
            || self.flags & ARTIFICIAL != 0
            || matches!(self.kind, kind::HEARTBEAT | kind::HEARTBEAT_2)
    }
}

/// What an event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body<'a> {
    /// How the events that follow look.
    Format(Format),
    /// The log goes on in this file.
    Rotate {
        /// Its name.
        file: String,
        /// Where in it.
        offset: u64,
    },
    /// A statement.
    Query {
        /// The database that was in use; mostly UTF-8.
        database: &'a [u8],
        /// Its text, in the character set of its client.
        sql: &'a [u8],
    },
    /// The statement behind rows that follow.
    Annotate(&'a [u8]),
    /// Rows of this table follow.
    Table {
        /// Its database.
        database: &'a [u8],
        /// Its name.
        table: &'a [u8],
    },
    /// A transaction begins.
    Gtid {
        /// Its id; nothing if it has none, or one with a tag.
        gtid: Option<Gtid>,
        /// It is one statement, which nothing ends.
        standalone: bool,
    },
    /// All transactions before this file; nothing if they are not understood.
    State(Option<GtidState>),
    /// A transaction ends.
    Xid,
    /// Anything else.
    Other,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its header.
    pub header: Header,
    /// What it says.
    pub body: Body<'a>,
}

impl<'a> Event<'a> {
    /// Reads one whole event, whose checksum, if the format has some, is compared.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &'a [u8], format: Option<&Format>) -> Result<Self, Wrong> {
        let header = Header::parse(bytes)?;
        if bytes.len() != header.size as usize {
            return Err(Wrong::Short);
        }
        if header.kind == kind::FORMAT {
            return Ok(Self { header, body: Body::Format(Format::parse(bytes)?) });
        }
        // The first event of a connection is an artificial rotation, before any format is known.
        let checksums = match format {
            Some(format) => format.checksums,
            None if header.kind == kind::ROTATE && header.is_artificial() => ends_with_checksum(bytes),
            None => return Err(Wrong::NoFormat),
        };
        let body = &bytes[HEADER..];
        let body = if checksums {
            let length = body.len().checked_sub(CHECKSUM).ok_or(Wrong::Short)?;
            if !ends_with_checksum(bytes) {
                return Err(Wrong::Checksum);
            }
            &body[..length]
        } else {
            body
        };
        Ok(Self { header, body: parse_body(&header, body)? })
    }
}

fn ends_with_checksum(bytes: &[u8]) -> bool {
    bytes.len().checked_sub(CHECKSUM).is_some_and(|length| {
        length >= HEADER && crc32fast::hash(&bytes[..length]).to_le_bytes() == bytes[length..]
    })
}

fn parse_body<'a>(header: &Header, body: &'a [u8]) -> Result<Body<'a>, Wrong> {
    Ok(match header.kind {
        kind::ROTATE => {
            let file = String::from_utf8_lossy(body.get(8..).ok_or(Wrong::Short)?).into_owned();
            Body::Rotate { file, offset: u64_at(body, 0)? }
        }
        kind::QUERY => query(body)?,
        kind::XID => Body::Xid,
        kind::ANNOTATE => Body::Annotate(body),
        // One byte of length, cut off at 255.
        kind::ROWS_QUERY => Body::Annotate(body.get(1..).ok_or(Wrong::Short)?),
        kind::TABLE_MAP => table(body)?,
        kind::MARIADB_GTID => {
            let sequence = u64_at(body, 0)?;
            let domain = u32_at(body, 8)?;
            let standalone = body.get(12).ok_or(Wrong::Short)? & STANDALONE != 0;
            let gtid = Some(Gtid::MariaDb { domain, server: header.server_id, sequence });
            Body::Gtid { gtid, standalone }
        }
        kind::GTID => {
            let uuid = uuid(body.get(1..17).ok_or(Wrong::Short)?);
            Body::Gtid { gtid: Some(Gtid::MySql { uuid, number: u64_at(body, 17)? }), standalone: false }
        }
        kind::ANONYMOUS_GTID | kind::TAGGED_GTID => Body::Gtid { gtid: None, standalone: false },
        kind::GTID_LIST => Body::State(Some(gtid_list(body)?)),
        kind::PREVIOUS_GTIDS => Body::State(previous_gtids(body)),
        _ => Body::Other,
    })
}

fn query(body: &[u8]) -> Result<Body<'_>, Wrong> {
    const FIXED: usize = 13;
    let database = usize::from(*body.get(8).ok_or(Wrong::Short)?);
    let at = FIXED + usize::from(u16_at(body, 11)?);
    // A byte 0 after the name.
    let sql = body.get(at + database + 1..).ok_or(Wrong::Short)?;
    Ok(Body::Query { database: &body[at..at + database], sql })
}

/// Table id (6 bytes), flags (2), then names with their length before and a byte 0 after them.
fn table(body: &[u8]) -> Result<Body<'_>, Wrong> {
    let length = usize::from(*body.get(8).ok_or(Wrong::Short)?);
    let database = body.get(9..9 + length).ok_or(Wrong::Short)?;
    let at = 9 + length + 1;
    let length = usize::from(*body.get(at).ok_or(Wrong::Short)?);
    Ok(Body::Table { database, table: body.get(at + 1..at + 1 + length).ok_or(Wrong::Short)? })
}

fn gtid_list(body: &[u8]) -> Result<GtidState, Wrong> {
    const COUNT: u32 = (1 << 28) - 1;
    let mut domains = std::collections::BTreeMap::<u32, Domain>::new();
    for n in 0..(u32_at(body, 0)? & COUNT) as usize {
        let at = 4 + 16 * n;
        let (server, sequence) = (u32_at(body, at + 4)?, u64_at(body, at + 8)?);
        let domain = domains.entry(u32_at(body, at)?).or_default();
        domain.servers.insert(server, sequence);
        domain.last = server;
    }
    Ok(GtidState::MariaDb(domains))
}

/// Nothing if it is in the newer form, with tags: its first number has other bytes set than the lower four.
fn previous_gtids(body: &[u8]) -> Option<GtidState> {
    let mut sets = std::collections::BTreeMap::new();
    let count = u64_at(body, 0).ok()?;
    let mut at = 8;
    for _ in 0..u32::try_from(count).ok()? {
        let uuid = uuid(body.get(at..at + 16)?);
        let intervals = u64_at(body, at + 16).ok()?;
        at += 24;
        let mut found = Vec::new();
        for _ in 0..intervals {
            // Its end is not included.
            found.push((u64_at(body, at).ok()?, u64_at(body, at + 8).ok()?.checked_sub(1)?));
            at += 16;
        }
        sets.insert(uuid, found);
    }
    Some(GtidState::MySql(sets))
}

fn uuid(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (n, byte) in bytes.iter().enumerate() {
        if matches!(n, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A format description event: how the events that follow look.
#[derive(Clone, PartialEq, Eq)]
pub struct Format {
    /// Whether events end with a checksum (CRC-32 of all before).
    pub checksums: bool,
    /// The server's version.
    pub version: String,
    bytes: Vec<u8>,
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Format").field("checksums", &self.checksums).field("version", &self.version).finish()
    }
}

impl Format {
    const CREATED: usize = HEADER + 52;

    fn parse(bytes: &[u8]) -> Result<Self, Wrong> {
        let version = u16_at(bytes, HEADER)?;
        if version != 4 {
            return Err(Wrong::Version(version));
        }
        let text = bytes.get(HEADER + 2..Self::CREATED).ok_or(Wrong::Short)?;
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        // Servers since MariaDB 5.3 and MySQL 5.6 end it with the algorithm and a checksum, even if events have none.
        let algorithm = bytes.len().checked_sub(CHECKSUM + 1).filter(|at| *at > Self::CREATED + 5);
        let algorithm = bytes[algorithm.ok_or(Wrong::Short)?];
        let format = Self {
            checksums: algorithm == 1,
            version: String::from_utf8_lossy(text).into_owned(),
            bytes: bytes.to_owned(),
        };
        if format.checksums
            && format.with(|_| {}).bytes[bytes.len() - CHECKSUM..] != bytes[bytes.len() - CHECKSUM..]
        {
            return Err(Wrong::Checksum);
        }
        Ok(format)
    }

    /// Whose server wrote it.
    #[must_use]
    pub fn flavor(&self) -> Flavor {
        if self.version.contains("MariaDB") { Flavor::MariaDb } else { Flavor::MySql }
    }

    /// Whether it describes the file from which the segment with these first bytes comes: when a file is begun is in its
    /// description, to a second.
    #[must_use]
    pub fn is_of(&self, segment: &[u8]) -> Option<bool> {
        let described = segment.strip_prefix(&MAGIC).and_then(|event| event.get(..5))?;
        (described[4] == kind::FORMAT).then(|| described == &self.bytes[..5])
    }

    /// For the beginning of a segment that does not begin where its file does: the same description without the time of
    /// the server's start, which would tell a reader that temporary tables end here, and without a place.
    #[must_use]
    pub fn lead(&self) -> Vec<u8> {
        let zeroed = self.with(|bytes| {
            bytes[Self::CREATED..Self::CREATED + 4].fill(0);
            bytes[13..17].fill(0);
        });
        zeroed.bytes
    }

    /// Changed, with a checksum that fits. It is made as if the file were closed.
    fn with(&self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = self.bytes.clone();
        change(&mut bytes);
        let flags = u16::from_le_bytes([bytes[17], bytes[18]]);
        bytes[17..19].copy_from_slice(&(flags & !IN_USE).to_le_bytes());
        let end = bytes.len() - CHECKSUM;
        if self.checksums {
            let sum = crc32fast::hash(&bytes[..end]);
            bytes[end..].copy_from_slice(&sum.to_le_bytes());
        }
        bytes[17..19].copy_from_slice(&flags.to_le_bytes());
        Self { bytes, checksums: self.checksums, version: self.version.clone() }
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Wrong> {
    let found = bytes.get(at..at + N).ok_or(Wrong::Short)?;
    found.try_into().map_err(|_| Wrong::Short)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Wrong> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Wrong> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Wrong> {
    array_at(bytes, at).map(u64::from_le_bytes)
}
