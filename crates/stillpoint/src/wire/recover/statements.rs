//! The statements around a moment, so that a person can choose one and stop just before it.
//!
//! Crash story: reads only.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufReader, Read},
};

use engines::server::binlog::{self, Body};
use jiff::Timestamp;
use model::{
    logs::LogPlace::Binlog,
    port::{Failure, FailureKind},
    recovery::{Leg, Recovery},
    server::BinlogPosition,
};
use serde::Serialize;

use super::{
    archive::{Archive, Log},
    legs::place,
};

/// How many transactions are shown on each side.
const SIDE: usize = 10;
/// How much of a statement is shown.
const TEXT: usize = 400;

/// A transaction with what it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// Everything before it is everything before this place.
    pub position: BinlogPosition,
    /// Its time.
    pub time: Timestamp,
    /// Its id.
    pub gtid: Option<String>,
    /// What it did: statements, or tables whose rows it changed.
    pub what: Vec<String>,
    /// It is replayed for the moment that was asked for.
    pub is_in: bool,
}

/// The transactions around the stop of a recovery.
///
/// # Errors
/// If the segments cannot be read.
pub fn around(archive: &mut Archive<'_>, recovery: &Recovery) -> Result<Vec<Statement>, Failure> {
    let logs = std::mem::take(&mut archive.logs);
    let found =
        logs.iter().find(|log| log.source == recovery.source).map(|log| within(archive, log, recovery));
    archive.logs = logs;
    found.unwrap_or_else(|| Ok(Vec::new()))
}

fn within(archive: &mut Archive<'_>, log: &Log, recovery: &Recovery) -> Result<Vec<Statement>, Failure> {
    let Binlog(stop) = &recovery.reached.place else { return Ok(Vec::new()) };
    let mut found: VecDeque<Statement> = VecDeque::new();
    let mut after = 0;
    // The last segment that is replayed, and those after it.
    let from = recovery.legs.last().map(|leg| (leg.segment.epoch.clone(), leg.segment.number));
    for epoch in &log.epochs {
        for segment in &epoch.segments {
            let is_before = from.as_ref().is_some_and(|(id, number)| {
                epoch.record.epoch < *id || epoch.record.epoch == *id && segment.number < *number
            });
            if is_before || after >= SIDE {
                continue;
            }
            let leg = Leg { segment: segment.clone(), gtid_before: None };
            let path = archive.segment(log, &leg.segment.epoch, leg.segment.number)?;
            for mut one in read(&path, &leg)? {
                one.is_in = model::logs::binlog_order(&one.position, stop).is_lt();
                after += usize::from(!one.is_in);
                if after > SIDE {
                    break;
                }
                found.push_back(one);
                if after == 0 && found.len() > SIDE {
                    found.pop_front();
                }
            }
        }
    }
    Ok(found.into())
}

fn read(path: &std::path::Path, leg: &Leg) -> Result<Vec<Statement>, Failure> {
    let cannot = |error: std::io::Error| {
        let what = format!("segment {} cannot be read", leg.segment.number);
        Failure::new(FailureKind::Damaged, what, "").because(error)
    };
    let Binlog(from) = &leg.segment.from else { return Ok(Vec::new()) };
    let file = File::open(path).map_err(cannot)?.take(leg.segment.bytes.0);
    let mut transactions = binlog::Transactions::open(BufReader::new(file)).map_err(cannot)?;
    let mut all = Vec::new();
    loop {
        let mut what: Vec<String> = Vec::new();
        let mut annotated = false;
        let next = transactions.next_with(&mut |_, event, _| match &event.body {
            Body::Query { sql, .. } if is_frame(sql) => {}
            Body::Query { database, sql } => what.push(text(database, sql)),
            Body::Annotate(sql) => {
                annotated = true;
                what.push(text(b"", sql));
            }
            Body::Table { database, table } if !annotated => {
                let (database, table) = (String::from_utf8_lossy(database), String::from_utf8_lossy(table));
                let changed = format!("rows of {database}.{table}");
                if what.last() != Some(&changed) {
                    what.push(changed);
                }
            }
            _ => {}
        });
        let Some(one) = next.map_err(cannot)? else { return Ok(all) };
        let Binlog(position) = place(from, leg.segment.lead, one.start) else { continue };
        let gtid = one.gtid.map(|gtid| gtid.to_string());
        all.push(Statement { position, time: one.time, gtid, what, is_in: false });
    }
}

/// What only begins or ends a transaction.
fn is_frame(sql: &[u8]) -> bool {
    [&b"BEGIN"[..], b"COMMIT", b"ROLLBACK"].iter().any(|word| sql.eq_ignore_ascii_case(word))
}

fn text(database: &[u8], sql: &[u8]) -> String {
    let sql: String = String::from_utf8_lossy(sql).split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = sql.chars().take(TEXT).collect();
    if short.len() < sql.len() {
        short.push('…');
    }
    if database.is_empty() { short } else { format!("[{}] {short}", String::from_utf8_lossy(database)) }
}
