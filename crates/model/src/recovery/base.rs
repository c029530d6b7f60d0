//! What a log is replayed onto.
//!
//! Crash story: plain values, no effects.

use jiff::Timestamp;
use serde::Serialize;

use super::{BackupId, EpochId, Gtids, LogPlace, Piece, SourceId};
use crate::{
    gtid::GtidState,
    logs::{Epoch, LogPlace::Binlog},
    record::CutRecord,
    server::{Flavor, ServerForm},
};

/// A whole copy of one database, and where in its log it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Base {
    /// The database.
    pub source: SourceId,
    /// Where the copy is.
    pub from: BaseFrom,
    /// Its instant.
    pub time: Timestamp,
    /// Where it stands.
    pub place: LogPlace,
    /// Binary logs: `@@server_id`.
    pub server_id: Option<u32>,
    /// Binary logs: GTID state of that place, as complete as it was recorded.
    pub gtid_state: Option<Gtids>,
}

/// Where a base is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BaseFrom {
    /// A backup.
    Backup(BackupId),
    /// The beginning of an epoch of the log archive, which has the whole database.
    Epoch(EpochId),
}

impl Base {
    /// The bases that a backup has for its servers: not their dumps, onto which no log can be replayed.
    #[must_use]
    pub fn of_backup(backup: &BackupId, cut: &CutRecord) -> Vec<Self> {
        let of = |server: &crate::server::ServerRecord| {
            let position = &server.position;
            // MySQL's `gtid_executed` is a state itself.
            let gtids = match server.version.flavor {
                Flavor::MariaDb => &position.gtid_binlog_state,
                Flavor::MySql => &position.gtid,
            };
            Some(Self {
                source: server.source.clone(),
                from: BaseFrom::Backup(backup.clone()),
                time: cut.cut_at,
                place: Binlog(position.binlog.clone()?),
                server_id: Some(server.server_id),
                gtid_state: gtids.clone().or_else(|| position.gtid.clone()),
            })
        };
        cut.servers.iter().filter(|server| server.form != ServerForm::Dump).filter_map(of).collect()
    }

    /// The base with which an epoch begins, if it has one.
    #[must_use]
    pub fn of_epoch(epoch: &Epoch) -> Option<Self> {
        let record = &epoch.record;
        record.has_base.then(|| Self {
            source: record.source.clone(),
            from: BaseFrom::Epoch(record.epoch.clone()),
            time: record.begun_at,
            place: record.from.clone(),
            server_id: record.server.as_ref().map(|server| server.server_id),
            gtid_state: record.gtid_state.clone(),
        })
    }

    /// Whether it stands in this piece of the log, as far as can be told without reading it.
    #[must_use]
    pub fn is_in(&self, piece: &Piece<'_>) -> bool {
        if let BaseFrom::Epoch(epoch) = &self.from {
            return piece.epoch.record.epoch == *epoch && piece.segment.from == self.place;
        }
        let segment = piece.segment;
        let server = piece.epoch.record.server.as_ref().map(|server| server.server_id);
        if server.is_some() && self.server_id.is_some() && server != self.server_id {
            return false;
        }
        let not_before = |a: &LogPlace, b: &LogPlace| a.order(b).is_some_and(std::cmp::Ordering::is_ge);
        if !not_before(&self.place, &segment.from) || !not_before(&segment.to, &self.place) {
            return false;
        }
        // What was written after the cut cannot have been received before it.
        if self.place != segment.to && segment.received.last < self.time {
            return false;
        }
        self.gtids_fit(piece)
    }

    fn gtids_fit(&self, piece: &Piece<'_>) -> bool {
        let state = |gtids: &Option<Gtids>| gtids.as_ref().and_then(GtidState::read);
        let Some(mine) = state(&self.gtid_state) else { return true };
        let before = piece.gtid_before.and_then(GtidState::read);
        let after = state(&piece.segment.gtid_state);
        let is_before = after.is_none_or(|after| after.includes(&mine).unwrap_or(true));
        // A record without the whole state names the last of each domain only.
        let is_after = before.is_none_or(|before| match (&before, &mine) {
            (GtidState::MariaDb(_), GtidState::MariaDb(_)) => mine
                .sequences()
                .all(|(domain, server, n)| before.sequence(domain, server).is_none_or(|first| first <= n)),
            _ => mine.includes(&before).unwrap_or(true),
        });
        is_before && is_after
    }
}
