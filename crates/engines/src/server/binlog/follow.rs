//! From packets of a replication connection to events that lie in the log, with their places.
//!
//! The server says in an artificial rotation which file comes; of every event the lower 32 bits of its end are known. What is
//! not where it should be, or does not follow what came before, is an error: nothing is stored on a guess.
//!
//! Crash story: pure.

use model::{
    gtid::GtidState,
    port_logs::LogEvent,
    server::{BinlogPosition, Gtids},
};

use super::{
    event::{Body, Event, Format, MAGIC, kind},
    group::Grouper,
    read::{count, time_of},
};

/// What a packet was.
#[derive(Debug, Clone, PartialEq)]
pub enum Came {
    /// An event of the log.
    Event(LogEvent),
    /// The server has nothing more at this moment.
    CaughtUp,
    /// Something that lies in no file.
    Nothing,
}

/// Follows the events of one connection.
#[derive(Debug)]
pub struct Follower {
    file: String,
    /// Where the next event must begin; nothing until the first event after the beginning in the middle of a file that
    /// only the server knows.
    at: Option<u64>,
    /// Events may be left out: the server leaves out what we have, after a start by GTID.
    may_skip: bool,
    format: Option<Format>,
    /// Of the file in which it began: the next may have begun before anything is handed on.
    first: Option<Format>,
    after_format: bool,
    grouper: Grouper,
    gtids: Option<GtidState>,
}

impl Follower {
    /// Begins at this place, or wherever the server begins after GTIDs.
    #[must_use]
    pub fn new(start: Option<&BinlogPosition>, gtids: Option<GtidState>) -> Self {
        Self {
            file: start.map(|place| place.file.clone()).unwrap_or_default(),
            at: start.map(|place| place.offset),
            may_skip: start.is_none(),
            format: None,
            first: None,
            after_format: false,
            grouper: Grouper::default(),
            gtids,
        }
    }

    /// State of GTIDs after the last event, if it is known.
    #[must_use]
    pub fn gtid_state(&self) -> Option<Gtids> {
        self.gtids.as_ref().map(GtidState::text)
    }

    /// Whether the file in which it began is the one that a segment comes from, if it is known yet.
    #[must_use]
    pub fn is_file_of(&self, segment: &[u8]) -> Option<bool> {
        self.first.as_ref().and_then(|format| format.is_of(segment))
    }

    /// What a segment needs before this event.
    #[must_use]
    pub fn lead(&self, first: &LogEvent) -> Vec<u8> {
        let mut lead = MAGIC.to_vec();
        if first.start.offset != MAGIC.len() as u64
            && let Some(format) = &self.format
        {
            lead.extend(format.lead());
        }
        lead
    }

    /// Takes an event as the server sent it.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Came, String> {
        let event = Event::parse(bytes, self.format.as_ref()).map_err(|wrong| wrong.to_string())?;
        if let Body::Format(format) = &event.body {
            self.format = Some(format.clone());
            self.first.get_or_insert_with(|| format.clone());
        }
        if event.header.is_artificial() {
            return self.artificial(&event);
        }
        let (start, end) = self.place(&event)?;
        if self.at.is_none() && self.grouper.is_outside(&event) {
            // Before what we do not have; the server begins with the file in which that is.
            return Ok(Came::Nothing);
        }
        let file = self.file.clone();
        if matches!(event.header.kind, kind::FORMAT) {
            // What was begun before the server crashed is not in its next file.
            self.grouper.forget();
        }
        let (part, ended) = self.grouper.take(&event);
        if let Body::State(state) = &event.body {
            self.gtids.clone_from(state);
        }
        if let Some(ended) = &ended {
            self.gtids = count(self.gtids.take(), ended.gtid.as_ref());
        }
        (self.at, self.after_format) = (Some(end), event.header.kind == kind::FORMAT);
        Ok(Came::Event(LogEvent {
            bytes: bytes.to_vec(),
            start: BinlogPosition { file, offset: start },
            end,
            is_boundary: part.is_boundary(),
            commit: ended.map(|ended| time_of(ended.time)),
            wants_ack: false,
        }))
    }

    /// Where the event begins and ends.
    fn place(&self, event: &Event<'_>) -> Result<(u64, u64), String> {
        let size = u64::from(event.header.size);
        let below = u64::from(event.header.end);
        let Some(at) = self.at else {
            let start = below.checked_sub(size).ok_or("an event that begins before its file")?;
            return Ok((start, below));
        };
        let end = at + size;
        if end & 0xffff_ffff == below {
            return Ok((at, end));
        }
        // How a file is encrypted is not for others.
        let skipped = below.checked_sub(size).filter(|start| *start > at);
        match skipped {
            Some(start) if self.may_skip || self.after_format => Ok((start, below)),
            _ => Err(format!("{}: an event that ends at {below} instead of {end}", self.file)),
        }
    }

    fn artificial(&mut self, event: &Event<'_>) -> Result<Came, String> {
        match &event.body {
            Body::Rotate { file, offset } => {
                if *file != self.file {
                    self.at = (!self.may_skip || !self.file.is_empty()).then_some(*offset);
                    self.file.clone_from(file);
                    self.grouper.forget();
                }
                Ok(Came::Nothing)
            }
            _ if matches!(event.header.kind, kind::HEARTBEAT | kind::HEARTBEAT_2) => Ok(Came::CaughtUp),
            _ => Ok(Came::Nothing),
        }
    }
}
