//! Where in a segment the replay stops.
//!
//! Crash story: pure functions, no effects.

use jiff::Timestamp;
use serde::Serialize;

use super::{Goal, Gtids, LogPlace};
use crate::logs::LogPlace::Binlog;

/// A transaction, or a statement that is one by itself, as it was read from a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Transaction {
    /// Where it begins.
    pub from: LogPlace,
    /// Where it ends.
    pub to: LogPlace,
    /// Its time, as the log says; SQLite: when it was captured.
    pub time: Timestamp,
    /// Its id, if it has one.
    pub gtid: Option<Gtids>,
}

/// Where a replay stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// Everything before this place is replayed.
    pub place: LogPlace,
    /// The last transaction of the segment that is replayed.
    pub last: Option<Transaction>,
    /// The first that is not.
    pub next: Option<Transaction>,
}

impl Stop {
    fn before(transactions: &[Transaction], index: usize) -> Self {
        let (last, next) = (index.checked_sub(1).and_then(|i| transactions.get(i)), transactions.get(index));
        let place = next.map(|next| &next.from).or_else(|| last.map(|last| &last.to));
        // An index into the transactions has at least one neighbour.
        let place = place
            .cloned()
            .unwrap_or(Binlog(crate::server::BinlogPosition { file: String::new(), offset: 0 }));
        Self { place, last: last.cloned(), next: next.cloned() }
    }
}

/// Finds the stop among the transactions of one segment, all of it, in log order; nothing if it is not there.
///
/// # Errors
/// The transaction that a place is inside of.
pub fn stop_among(goal: &Goal, transactions: &[Transaction]) -> Result<Option<Stop>, Box<Transaction>> {
    let is_next: Box<dyn Fn(&Transaction) -> bool + '_> = match goal {
        Goal::At(time) => Box::new(move |one| one.time >= *time),
        Goal::AtGtid(gtid) => {
            let found = transactions.iter().position(|one| one.gtid.as_ref() == Some(gtid));
            return Ok(found.map(|index| {
                let mut stop = Stop::before(transactions, index + 1);
                stop.place = transactions[index].to.clone();
                stop
            }));
        }
        Goal::AtPosition(place) => {
            let place = Binlog(place.clone());
            let inside = |one: &&Transaction| {
                one.from.order(&place).is_some_and(|o| o.is_lt())
                    && place.order(&one.to).is_some_and(|o| o.is_lt())
            };
            if let Some(one) = transactions.iter().find(inside) {
                return Err(Box::new(one.clone()));
            }
            Box::new(move |one| place.order(&one.from).is_some_and(|order| order.is_le()))
        }
    };
    if let Some(index) = transactions.iter().position(is_next) {
        return Ok(Some(Stop::before(transactions, index)));
    }
    // A place behind the last one of its segment is the end of the segment.
    Ok(match goal {
        Goal::AtPosition(_) if !transactions.is_empty() => {
            Some(Stop::before(transactions, transactions.len()))
        }
        _ => None,
    })
}
