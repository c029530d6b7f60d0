//! The way from a base to a goal.
//!
//! Crash story: pure functions, no effects.

use jiff::Timestamp;
use serde::Serialize;

use super::{Base, BaseFrom, EpochId, Gap, Goal, Gtids, LogPlace, Piece, Run, SourceId, Why};
use crate::{
    coverage::{Interval, intervals},
    gtid::GtidState,
    logs::{LogPlace::Binlog, SegmentRecord},
};

/// What is asked of one log.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Whose log.
    pub source: &'a SourceId,
    /// What is to be brought back.
    pub goal: &'a Goal,
    /// What there is of the log.
    pub runs: &'a [Run<'a>],
    /// Copies.
    pub bases: &'a [Base],
    /// When the archive last stood at the end of the log.
    pub caught_up_at: Option<Timestamp>,
}

/// Base and segments for a goal, and where to look for the stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// What is restored first.
    pub base: Base,
    /// What is replayed, in order: the base stands in the first.
    pub legs: Vec<Leg>,
    /// Where it ends.
    pub search: Search,
}

/// One segment of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leg {
    /// Its sidecar.
    #[serde(flatten)]
    pub segment: SegmentRecord,
    /// GTID state at its beginning, if it is known.
    #[serde(skip)]
    pub gtid_before: Option<Gtids>,
}

/// Where the stop of a route is to be looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Search {
    /// In this leg, or in one after it.
    From(usize),
    /// Nowhere: all of it is replayed.
    End,
}

/// Finds the way.
///
/// # Errors
/// What is in the way, and the nearest moments that can be restored.
pub fn route(asked: &Asked<'_>) -> Result<Route, Gap> {
    let (run_index, ends) = match asked.goal {
        Goal::At(time) => at_time(asked, *time)?,
        Goal::AtGtid(gtid) => at_gtid(asked, gtid)?,
        Goal::AtPosition(place) => at_place(asked, &Binlog(place.clone()))?,
    };
    let run = &asked.runs[run_index];
    let last = match ends {
        Ends::In(piece) => piece,
        Ends::FromOn(_) | Ends::AtEnd => run.pieces.len(),
    };
    let latest_base = match asked.goal {
        Goal::At(time) => *time,
        _ => Timestamp::MAX,
    };
    let usable = |base: &&Base| base.time <= latest_base;
    let found = asked.bases.iter().filter(usable).filter_map(|base| Some((index_in(run, base)?, base)));
    let best = found
        .filter(|(index, base)| *index <= last && can_be_before(asked.goal, *index == last, base))
        .max_by(|(a, x), (b, y)| {
            a.cmp(b).then_with(|| x.place.order(&y.place).unwrap_or_else(|| x.time.cmp(&y.time)))
        });
    let Some((mut first, base)) = best else { return Err(no_base(asked, run_index)) };
    // Nothing is to be replayed of a segment at whose end the base stands.
    if first < last && run.pieces.get(first).is_some_and(|piece| piece.segment.to == base.place) {
        first += 1;
    }
    let end = (last + 1).min(run.pieces.len());
    let legs = run.pieces[first.min(end)..end].iter().map(leg).collect();
    let search = match ends {
        Ends::In(piece) => Search::From(piece - first),
        Ends::FromOn(piece) => Search::From(piece.saturating_sub(first)),
        Ends::AtEnd => Search::End,
    };
    Ok(Route { base: base.clone(), legs, search })
}

enum Ends {
    In(usize),
    FromOn(usize),
    AtEnd,
}

fn leg(piece: &Piece<'_>) -> Leg {
    Leg { segment: piece.segment.clone(), gtid_before: piece.gtid_before.cloned() }
}

/// A base in the very segment of a place has to stand before it; of the other goals only reading tells.
fn can_be_before(goal: &Goal, same: bool, base: &Base) -> bool {
    match (goal, &base.place) {
        (Goal::AtPosition(place), Binlog(at)) if same && at.file == place.file => at.offset <= place.offset,
        _ => true,
    }
}

/// In which segment of a run a base stands; the number of segments if it stands behind all of them.
pub(crate) fn index_in(run: &Run<'_>, base: &Base) -> Option<usize> {
    let BaseFrom::Epoch(id) = &base.from else {
        return run.pieces.iter().rposition(|piece| base.is_in(piece));
    };
    let number = run.epochs.iter().position(|epoch| epoch.record.epoch == *id)?;
    if number == 0 && !run.has_beginning {
        return None;
    }
    let is_after = |piece: &Piece<'_>| {
        let of = run.epochs.iter().position(|epoch| epoch.record.epoch == piece.epoch.record.epoch);
        of.is_some_and(|of| of >= number)
    };
    let first = run.pieces.iter().position(is_after);
    match first {
        // Its own first segments are gone.
        Some(index)
            if run.pieces[index].epoch.record.epoch == *id && run.pieces[index].segment.number != 1 =>
        {
            None
        }
        Some(index) => Some(index),
        None => Some(run.pieces.len()),
    }
}

fn at_time(asked: &Asked<'_>, time: Timestamp) -> Result<(usize, Ends), Gap> {
    for (index, run) in asked.runs.iter().enumerate() {
        let stops = |piece: &Piece<'_>| piece.segment.commits.is_some_and(|commits| commits.last >= time);
        if let Some(piece) = run.pieces.iter().position(stops) {
            return Ok((index, Ends::In(piece)));
        }
    }
    match asked.runs.len().checked_sub(1) {
        None => Err(gap(asked, Why::NoArchive, "there is no log archive of it".to_owned())),
        Some(last) if asked.caught_up_at.is_some_and(|caught_up| caught_up >= time) => {
            Ok((last, Ends::AtEnd))
        }
        Some(last) => {
            let end = asked.runs[last].end().map(|(epoch, place)| format!(" (epoch {epoch}, {place})"));
            let detail = format!("the archive does not reach so far{}", end.unwrap_or_default());
            Err(gap(asked, Why::Beyond, detail))
        }
    }
}

/// The newest run wins: a server that lost its end numbers other transactions alike.
fn at_gtid(asked: &Asked<'_>, gtid: &Gtids) -> Result<(usize, Ends), Gap> {
    let Some(wanted) = GtidState::read(gtid).filter(|wanted| !wanted.is_empty()) else {
        return Err(gap(asked, Why::Unknown, format!("{gtid:?} is no transaction id")));
    };
    let has = |gtids: Option<&Gtids>| gtids.and_then(GtidState::read)?.includes(&wanted);
    for (index, run) in asked.runs.iter().enumerate().rev() {
        let ends = |piece: &Piece<'_>| {
            has(piece.segment.gtid_state.as_ref()) != Some(false) && has(piece.gtid_before) != Some(true)
        };
        if let Some(piece) = run.pieces.iter().position(ends) {
            let known = has(run.pieces[piece].segment.gtid_state.as_ref()).is_some()
                && has(run.pieces[piece].gtid_before).is_some();
            return Ok((index, if known { Ends::In(piece) } else { Ends::FromOn(piece) }));
        }
    }
    Err(gap(asked, Why::Unknown, format!("transaction {gtid} is not in the archive")))
}

fn at_place(asked: &Asked<'_>, place: &LogPlace) -> Result<(usize, Ends), Gap> {
    let holds = |piece: &Piece<'_>| {
        let (from, to) = (&piece.segment.from, &piece.segment.to);
        place.order(from).is_some_and(|o| o.is_ge()) && place.order(to).is_some_and(|o| o.is_le())
    };
    let mut found: Vec<(usize, usize, &EpochId)> = Vec::new();
    for (index, run) in asked.runs.iter().enumerate() {
        for (number, piece) in run.pieces.iter().enumerate().filter(|(_, piece)| holds(piece)) {
            let epoch = &piece.epoch.record.epoch;
            if !found.iter().any(|(_, _, known)| *known == epoch) {
                found.push((index, number, epoch));
            }
        }
    }
    match found.as_slice() {
        [(index, piece, _)] => Ok((*index, Ends::In(*piece))),
        [] => Err(gap(asked, Why::Unknown, format!("{place} is not in the archive"))),
        several => {
            let epochs: Vec<String> = several.iter().map(|(_, _, epoch)| epoch.to_string()).collect();
            let detail =
                format!("{place} is in the epochs {}: name a transaction or a time", epochs.join(" and "));
            Err(gap(asked, Why::Ambiguous, detail))
        }
    }
}

/// The goal is in this run, and no copy before it is.
fn no_base(asked: &Asked<'_>, run: usize) -> Gap {
    let earlier =
        asked.runs[..run].iter().any(|run| asked.bases.iter().any(|base| index_in(run, base).is_some()));
    let before = &asked.runs[run].before;
    if earlier || before.cause.is_some() {
        return gap(asked, Why::Hole, format!("a part of the log is missing: {}", before.detail));
    }
    gap(asked, Why::NoBase, "no copy of the database at or before it lies on its log".to_owned())
}

fn gap(asked: &Asked<'_>, why: Why, detail: String) -> Gap {
    let known = intervals(asked.runs, asked.bases, asked.caught_up_at);
    let (mut before, mut after) = (None, None);
    if let Goal::At(time) = asked.goal {
        before = known.iter().map(|interval| interval.to).filter(|to| to < time).max();
        after = known.iter().map(|Interval { from, .. }| *from).filter(|from| from > time).min();
    }
    Gap { source: asked.source.clone(), why, detail, before, after }
}
