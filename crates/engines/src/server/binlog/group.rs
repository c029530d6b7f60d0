//! Where transactions begin and end in a stream of events.
//!
//! MariaDB: a GTID event begins one; if it says so the next statement is all of it, else `XID`, `COMMIT`, `ROLLBACK` or
//! `XA PREPARE` ends it. MySQL: the statement after the GTID event is all of it unless it is `BEGIN` or `XA START`; so it is
//! in logs without GTIDs.
//!
//! Crash story: pure.

use model::gtid::Gtid;

use super::event::{Body, Event, kind};

/// What an event is to the transaction around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It belongs to none: descriptions, lists, rotations.
    Outside,
    /// One begins with it.
    Begins,
    /// It is in the middle.
    Within,
    /// One ends with it, which an earlier event began.
    Ends,
    /// It is one.
    Alone,
}

impl Part {
    /// Whether what comes after it is another transaction, or none.
    #[must_use]
    pub fn is_boundary(self) -> bool {
        matches!(self, Self::Outside | Self::Ends | Self::Alone)
    }

    /// Whether a transaction ends with it.
    #[must_use]
    pub fn ends(self) -> bool {
        matches!(self, Self::Ends | Self::Alone)
    }
}

/// The transaction that is being read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// Seconds since 1970: the time of its first event.
    pub time: u32,
    /// Server on which it was first committed.
    pub server_id: u32,
    /// Its id.
    pub gtid: Option<Gtid>,
    standalone: bool,
    /// A statement has opened it, or none has to.
    opened: bool,
}

/// Finds transactions in a stream of events.
#[derive(Debug, Clone, Default)]
pub struct Grouper {
    begun: Option<Begun>,
}

impl Grouper {
    /// Takes the next event; with [`Part::Ends`] and [`Part::Alone`] comes the transaction that ended.
    pub fn take(&mut self, event: &Event<'_>) -> (Part, Option<Begun>) {
        match &mut self.begun {
            None => self.outside(event),
            Some(begun) if is_end(event, begun) => (Part::Ends, self.begun.take()),
            Some(begun) => {
                begun.opened |= matches!(event.header.kind, kind::QUERY | kind::QUERY_COMPRESSED);
                (Part::Within, None)
            }
        }
    }

    /// The transaction in whose middle we are.
    #[must_use]
    pub fn begun(&self) -> Option<&Begun> {
        self.begun.as_ref()
    }

    /// Whether an event belongs to no transaction.
    #[must_use]
    pub fn is_outside(&self, event: &Event<'_>) -> bool {
        self.begun.is_none() && self.clone().take(event).0 == Part::Outside
    }

    /// The file ended: what was begun in it was never finished (the server crashed), and a server never shows it.
    pub fn forget(&mut self) {
        self.begun = None;
    }

    fn outside(&mut self, event: &Event<'_>) -> (Part, Option<Begun>) {
        let (gtid, standalone, mariadb) = match &event.body {
            Body::Gtid { gtid, standalone } => {
                (gtid.clone(), *standalone, event.header.kind == kind::MARIADB_GTID)
            }
            Body::Query { .. } | Body::Annotate(_) | Body::Table { .. } => (None, false, false),
            _ if matches!(
                event.header.kind,
                kind::INTVAR | kind::RAND | kind::USER_VAR | kind::QUERY_COMPRESSED
            ) =>
            {
                (None, false, false)
            }
            _ => return (Part::Outside, None),
        };
        let (time, server_id) = (event.header.time, event.header.server_id);
        let begun = Begun { time, server_id, gtid, standalone, opened: mariadb && !standalone };
        if matches!(event.body, Body::Gtid { .. }) || !is_end(event, &begun) {
            let opened = begun.opened || opens(event);
            self.begun = Some(Begun { opened, ..begun });
            return (Part::Begins, None);
        }
        (Part::Alone, Some(begun))
    }
}

fn opens(event: &Event<'_>) -> bool {
    matches!(&event.body, Body::Query { sql, .. } if is_begin(sql))
        || matches!(event.body, Body::Table { .. })
}

fn is_begin(sql: &[u8]) -> bool {
    sql.eq_ignore_ascii_case(b"BEGIN") || starts_with(sql, b"XA START")
}

fn starts_with(sql: &[u8], word: &[u8]) -> bool {
    sql.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word))
}

fn is_end(event: &Event<'_>, begun: &Begun) -> bool {
    match (&event.body, event.header.kind) {
        (Body::Xid, _) | (_, kind::XA_PREPARE | kind::PAYLOAD) => true,
        (Body::Query { sql, .. }, _) if begun.opened => {
            sql.eq_ignore_ascii_case(b"COMMIT")
                || sql.eq_ignore_ascii_case(b"ROLLBACK")
                || starts_with(sql, b"XA COMMIT")
                || starts_with(sql, b"XA ROLLBACK")
        }
        (Body::Query { sql, .. }, _) => begun.standalone || !is_begin(sql),
        (_, kind::QUERY_COMPRESSED) => !begun.opened,
        (_, kind::INTVAR | kind::RAND | kind::USER_VAR) => false,
        (Body::Other, _) => begun.standalone,
        _ => false,
    }
}
