//! The events of the fake server's log, and how a segment of them is read.
//!
//! A file begins with four bytes and an event that says which file it is and what came before it; a transaction is a beginning and an end, each
//! with its number and an id that no other transaction ever has.
//!
//! Crash story: pure.

use model::{
    gtid::{Gtid, GtidState},
    logs::{LogPlace, SegmentHead, WholePart},
    server::{BinlogPosition, Flavor, Gtids},
};

/// The first bytes of a file.
pub(super) const MAGIC: &[u8] = b"fake";
/// Bytes of the event that describes a file: more than what tells files apart by.
const FORMAT: usize = 400;
const PART: usize = 24;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// Which file this is, and the state of GTIDs before it; nothing if it does not say.
    Format { stamp: u64, before: Option<Gtids> },
    /// A transaction begins.
    Begin(Id),
    /// It ends.
    End(Id),
}

/// A transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id {
    /// Who committed it first.
    pub server: u32,
    /// Its number in domain 0.
    pub sequence: u64,
    /// No other has it, ever; later ones have a greater one.
    pub unique: u64,
}

impl Id {
    pub(super) fn gtid(self) -> Gtid {
        Gtid::MariaDb { domain: 0, server: self.server, sequence: self.sequence }
    }
}

impl Event {
    pub(super) fn len(&self) -> u64 {
        let size = if matches!(self, Self::Format { .. }) { FORMAT } else { PART };
        size as u64
    }

    pub(super) fn is_boundary(&self) -> bool {
        !matches!(self, Self::Begin(_))
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let none = |stamp: &u64| Id { server: 0, sequence: 0, unique: *stamp };
        let (kind, id, size) = match self {
            Self::Format { stamp, .. } => (b'F', none(stamp), FORMAT),
            Self::Begin(id) => (b'B', *id, PART),
            Self::End(id) => (b'E', *id, PART),
        };
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(id.server.to_le_bytes());
        bytes.extend(id.sequence.to_le_bytes());
        bytes.extend(id.unique.to_le_bytes());
        if let Self::Format { before: Some(before), .. } = self {
            bytes.extend(format!("={before}=").into_bytes());
        }
        assert!(bytes.len() <= size, "too many servers for a file's description");
        bytes.resize(size, 0);
        bytes
    }

    /// The first event of these bytes, if it is whole.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let server = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
        let id = Id { server, sequence: number(8)?, unique: number(16)? };
        let (event, size) = match bytes.first()? {
            b'F' => {
                let text = String::from_utf8_lossy(bytes.get(PART..FORMAT)?).into_owned();
                let before = text.split('=').nth(1).map(|state| Gtids(state.to_owned()));
                (Self::Format { stamp: id.unique, before }, FORMAT)
            }
            b'B' => (Self::Begin(id), PART),
            b'E' => (Self::End(id), PART),
            _ => return None,
        };
        (bytes.len() >= size).then_some(event)
    }
}

/// The events of a segment, as far as they are whole.
pub(super) fn events(segment: &[u8]) -> Vec<Event> {
    let (mut found, mut at) = (Vec::new(), MAGIC.len());
    while let Some(event) = segment.get(at..).and_then(Event::parse) {
        at += usize::try_from(event.len()).unwrap_or(usize::MAX);
        found.push(event);
    }
    found
}

/// What is whole of a segment.
pub(super) fn whole(head: &SegmentHead, segment: &[u8]) -> WholePart {
    let LogPlace::Binlog(from) = &head.from else { panic!("the fake server has binary logs") };
    let mut gtids = head.gtid_state.as_ref().and_then(|text| GtidState::parse(Flavor::MariaDb, text));
    let (mut at, mut end, mut transactions) = (MAGIC.len() as u64, 0, 0);
    for event in events(segment) {
        at += event.len();
        match &event {
            Event::Format { before: Some(before), .. } => {
                gtids = GtidState::parse(Flavor::MariaDb, before);
            }
            Event::End(id) => {
                transactions += 1;
                gtids.iter_mut().for_each(|state| state.add(&id.gtid()));
            }
            Event::Format { .. } | Event::Begin(_) => {}
        }
        if event.is_boundary() {
            end = at;
        }
    }
    let end = if end < head.lead { 0 } else { end };
    let offset = from.offset + end.saturating_sub(head.lead);
    let to = LogPlace::Binlog(BinlogPosition { file: from.file.clone(), offset });
    WholePart { bytes: end, to, transactions, commits: None, gtid_state: gtids.map(|state| state.text()) }
}
