//! Reading a segment, or a file of a server's log: its events with their places, or its transactions.
//!
//! Crash story: reads only. What is torn at the end is no error: it ends the reading.

use std::io::{self, Read};

use jiff::Timestamp;
use model::{
    gtid::{Gtid, GtidState},
    logs::{LogPlace, SegmentHead, Span, WholePart},
    server::BinlogPosition,
};

use super::{
    event::{Body, Event, Format, HEADER, Header, MAGIC, Wrong},
    group::{Grouper, Part},
};

/// No event is larger: `max_allowed_packet` of a replica is at most 1 GiB.
const LARGEST: u32 = (1 << 30) + (1 << 20);

/// Reads events one after the other.
pub struct Events<R> {
    from: R,
    format: Option<Format>,
    buffer: Vec<u8>,
    /// Offset in the file of the next event.
    at: u64,
    /// What ended it, if it was not the end between two events.
    torn: Option<Wrong>,
}

impl<R: Read> Events<R> {
    /// Reads the first bytes. Events of anything that is no binary log are none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(mut from: R) -> io::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        let torn = match read_all(&mut from, &mut magic)? {
            n if n == MAGIC.len() && magic == MAGIC => None,
            _ => Some(Wrong::Short),
        };
        Ok(Self { from, format: None, buffer: Vec::new(), at: MAGIC.len() as u64, torn })
    }

    /// The next event and its offset in the file; nothing at the end, or where the rest is no event
    /// ([`torn`](Self::torn)).
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn next_event(&mut self) -> io::Result<Option<(u64, Event<'_>)>> {
        if self.torn.is_some() || !self.fill()? {
            return Ok(None);
        }
        let parsed = Event::parse(&self.buffer, self.format.as_ref());
        let event = match parsed {
            Ok(event) => event,
            Err(wrong) => {
                self.torn = Some(wrong);
                return Ok(None);
            }
        };
        if let Body::Format(format) = &event.body {
            self.format = Some(format.clone());
        }
        let at = self.at;
        self.at += self.buffer.len() as u64;
        Ok(Some((at, event)))
    }

    /// The bytes of the event that was read last.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Offset of the end of the event that was read last.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// Why it ended before its end, if so.
    #[must_use]
    pub fn torn(&self) -> Option<Wrong> {
        self.torn
    }

    /// Reads the bytes of an event.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.resize(HEADER, 0);
        match read_all(&mut self.from, &mut self.buffer)? {
            0 => return Ok(false),
            HEADER => {}
            _ => return Ok(self.tear(Wrong::Short)),
        }
        let size = match Header::parse(&self.buffer) {
            Ok(header) if header.size <= LARGEST => header.size as usize,
            _ => return Ok(self.tear(Wrong::Short)),
        };
        self.buffer.resize(size, 0);
        if read_all(&mut self.from, &mut self.buffer[HEADER..])? < size - HEADER {
            return Ok(self.tear(Wrong::Short));
        }
        Ok(true)
    }

    fn tear(&mut self, wrong: Wrong) -> bool {
        self.torn = Some(wrong);
        false
    }
}

/// Reads until the buffer is full or the end has come.
fn read_all(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A transaction of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Offset of its first event in the segment.
    pub start: u64,
    /// Offset of its end in the segment.
    pub end: u64,
    /// The time of its first event: whole seconds of the server's clock, not monotonic.
    pub time: Timestamp,
    /// Server on which it was first committed.
    pub server_id: u32,
    /// Its id, if it has one that is understood.
    pub gtid: Option<Gtid>,
}

/// The transactions of a segment, in the order of the log. What is torn at its end is not among them.
pub struct Transactions<R> {
    events: Events<R>,
    grouper: Grouper,
    start: u64,
}

impl<R: Read> Transactions<R> {
    /// Those of this segment, which is read from its beginning.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(from: R) -> io::Result<Self> {
        Ok(Self { events: Events::open(from)?, grouper: Grouper::default(), start: 0 })
    }

    /// The next transaction; `each` sees all events on the way to its end, those between transactions too, with their offsets
    /// in the segment.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn next_with(
        &mut self,
        each: &mut dyn FnMut(u64, &Event<'_>, Part),
    ) -> io::Result<Option<Transaction>> {
        loop {
            let Some((at, event)) = self.events.next_event()? else { return Ok(None) };
            let (part, ended) = self.grouper.take(&event);
            each(at, &event, part);
            if matches!(part, Part::Begins | Part::Alone) {
                self.start = at;
            }
            if let Some(ended) = ended {
                return Ok(Some(Transaction {
                    start: self.start,
                    end: self.events.offset(),
                    time: time_of(ended.time),
                    server_id: ended.server_id,
                    gtid: ended.gtid,
                }));
            }
        }
    }
}

impl<R: Read> Iterator for Transactions<R> {
    type Item = io::Result<Transaction>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_with(&mut |_, _, _| {}).transpose()
    }
}

/// Seconds since 1970 as a time.
#[must_use]
pub fn time_of(seconds: u32) -> Timestamp {
    Timestamp::from_second(i64::from(seconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// What is whole of a segment: up to the end of its last whole transaction, or of what lies between two.
///
/// # Errors
/// If it cannot be read.
pub fn whole(head: &SegmentHead, segment: &mut dyn Read) -> io::Result<WholePart> {
    let LogPlace::Binlog(from) = &head.from else {
        return Err(io::Error::other("the segment is none of a binary log"));
    };
    let mut gtids = None;
    let mut events = Events::open(segment)?;
    let mut grouper = Grouper::default();
    let (mut end, mut transactions, mut commits) = (0, 0, None::<Span>);
    while let Some((_, event)) = events.next_event()? {
        let (part, ended) = grouper.take(&event);
        match &event.body {
            Body::Format(format) => {
                gtids = head.gtid_state.as_ref().and_then(|text| GtidState::parse(format.flavor(), text));
            }
            Body::State(state) => gtids.clone_from(state),
            _ => {}
        }
        if let Some(ended) = &ended {
            transactions += 1;
            let time = Span::at(time_of(ended.time));
            commits = Some(commits.map_or(time, |before| before.with(time)));
            gtids = count(gtids, ended.gtid.as_ref());
        }
        if part.is_boundary() {
            end = events.offset();
        }
    }
    let offset = from.offset + end.saturating_sub(head.lead);
    Ok(WholePart {
        bytes: end,
        to: LogPlace::Binlog(BinlogPosition { file: from.file.clone(), offset }),
        transactions,
        commits,
        gtid_state: gtids.map(|state| state.text()),
    })
}

/// The state after a transaction. One without an id that is understood makes it unknown for MySQL, where such have none or a
/// tag; MariaDB gives one to each.
pub(super) fn count(state: Option<GtidState>, gtid: Option<&Gtid>) -> Option<GtidState> {
    let mut state = state?;
    if let Some(gtid) = gtid {
        state.add(gtid);
    }
    Some(state)
}
