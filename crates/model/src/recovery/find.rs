//! The whole way from a question to a [`Recovery`]: route, proof of the base, stop.
//!
//! A base is taken for what its position says only if the log says the same: the GTID state of that place, counted in the
//! log, is the one that was recorded with the base. Otherwise it is of another server, or of a history that this one has
//! lost.
//!
//! Crash story: no effects of its own; segments are read by the one who calls.

use std::cmp::Ordering;

use super::{
    Asked, Base, BaseFrom, Gap, Goal, Gtids, Leg, LogPlace, Recovery, Route, Search, Stop, Transaction, Why,
    route, stop_among,
};
use crate::gtid::GtidState;

/// Finds base, segments and stop. `read` gives all transactions of a segment, in log order.
///
/// # Errors
/// What is in the way; what `read` says.
pub fn find<E: From<Gap>>(
    asked: &Asked<'_>,
    read: &mut dyn FnMut(&Leg) -> Result<Vec<Transaction>, E>,
) -> Result<Recovery, E> {
    let mut bases = asked.bases.to_vec();
    let mut refused: Vec<String> = Vec::new();
    loop {
        let now = Asked { bases: &bases, ..*asked };
        let route = route(&now).map_err(|mut gap| {
            for why in &refused {
                gap.detail.push_str("; ");
                gap.detail.push_str(why);
            }
            gap
        })?;
        if let Some(why) = disproved(&route, read)? {
            refused.push(why);
            bases.retain(|base| *base != route.base);
            continue;
        }
        match stop(&route, asked, read)? {
            Some((_, stop, _))
                if route.base.place.order(&stop.place) == Some(Ordering::Greater) && same_epoch(&route) =>
            {
                // Times do not follow the log: the stop lies before this copy.
                bases.retain(|base| *base != route.base);
            }
            Some((leg, stop, state)) => return Ok(Recovery::new(route, Some((leg, stop)), state)),
            None => {
                let state = route.legs.last().and_then(|leg| leg.segment.gtid_state.clone());
                return Ok(Recovery::new(route, None, state));
            }
        }
    }
}

/// The stop can lie before the base only in the base's own segment; places of several epochs have no order.
fn same_epoch(route: &Route) -> bool {
    matches!(route.search, Search::From(0))
}

/// Why the base is not on this log, if that is so.
fn disproved<E>(
    route: &Route,
    read: &mut dyn FnMut(&Leg) -> Result<Vec<Transaction>, E>,
) -> Result<Option<String>, E> {
    let (BaseFrom::Backup(backup), Some(leg)) = (&route.base.from, route.legs.first()) else {
        return Ok(None);
    };
    let (Some(recorded), Some(_)) = (&route.base.gtid_state, &leg.gtid_before) else { return Ok(None) };
    let transactions = read(leg)?;
    let place = &route.base.place;
    let before = |one: &LogPlace| one.order(place).is_some_and(Ordering::is_lt);
    if let Some(one) =
        transactions.iter().find(|one| before(&one.from) && !before(&one.to) && one.to != *place)
    {
        return Ok(Some(format!(
            "backup {} stands at {place}, which is inside of the transaction from {} to {}",
            backup.short(),
            one.from,
            one.to
        )));
    }
    let counted = state_at(leg, &transactions, place);
    let same = match (GtidState::read(recorded), &counted) {
        // What was recorded may name the last of each domain only.
        (Some(recorded @ GtidState::MariaDb(_)), Some(counted @ GtidState::MariaDb(_))) => {
            recorded.sequences().all(|(domain, server, n)| counted.sequence(domain, server) == Some(n))
        }
        (Some(recorded), Some(counted)) => recorded == *counted,
        _ => true,
    };
    let counted = counted.map(|counted| counted.text()).unwrap_or_default();
    Ok((!same).then(|| {
        format!(
            "backup {} is not of this log: at {place} the log has the transactions {counted}, the backup {recorded}",
            backup.short()
        )
    }))
}

/// GTID state at a place of a segment.
fn state_at(leg: &Leg, transactions: &[Transaction], place: &LogPlace) -> Option<GtidState> {
    let mut state = leg.gtid_before.as_ref().and_then(GtidState::read)?;
    let is_in = |one: &&Transaction| one.to.order(place).is_some_and(Ordering::is_le);
    for one in transactions.iter().filter(is_in) {
        state.append(&one.gtid.as_ref().and_then(GtidState::read)?);
    }
    Some(state)
}

type Found = Option<(usize, Stop, Option<Gtids>)>;

fn stop<E: From<Gap>>(
    route: &Route,
    asked: &Asked<'_>,
    read: &mut dyn FnMut(&Leg) -> Result<Vec<Transaction>, E>,
) -> Result<Found, E> {
    let Search::From(first) = route.search else { return Ok(None) };
    for (index, leg) in route.legs.iter().enumerate().skip(first) {
        let transactions = read(leg)?;
        let found = stop_among(asked.goal, &transactions).map_err(|one| inside(asked, &one))?;
        if let Some(stop) = found {
            let state = state_at(leg, &transactions, &stop.place).map(|state| state.text());
            return Ok(Some((index, stop, state)));
        }
        // A place in a segment without transactions is where it begins.
        if let Goal::AtPosition(_) = asked.goal {
            let stop = Stop { place: leg.segment.from.clone(), last: None, next: None };
            return Ok(Some((index, stop, leg.gtid_before.clone())));
        }
    }
    let detail = format!("{} is not in the segments that should have it", asked.goal);
    Err(refusal(asked, Why::Unknown, detail).into())
}

fn inside(asked: &Asked<'_>, one: &Transaction) -> Gap {
    let detail = format!(
        "{} is inside of the transaction from {} to {}: name one of these places",
        asked.goal, one.from, one.to
    );
    refusal(asked, Why::Ambiguous, detail)
}

fn refusal(asked: &Asked<'_>, why: Why, detail: String) -> Gap {
    Gap { source: asked.source.clone(), why, detail, before: None, after: None }
}

impl Base {
    /// In short, for people.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.from {
            BaseFrom::Backup(backup) => format!("backup {}", backup.short()),
            BaseFrom::Epoch(epoch) => format!("the base of epoch {epoch}"),
        }
    }
}
