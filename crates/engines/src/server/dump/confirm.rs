//! Asking the server, once it is let go, whether what was read under the lock fits together.
//!
//! Crash story: reads only.

use std::time::Duration;

use model::{
    entry::Harvest,
    port::FailureKind,
    problem::{Effect, Problem},
    server::ServerPosition,
};

use super::super::lock::Holder;

/// The server may have to read a whole binary log for the answer.
const WITHIN: Duration = Duration::from_secs(300);

/// Adds the answer to the checks, or what contradicts the position to the problems.
pub(crate) fn confirm(holder: &Holder, position: &ServerPosition, harvest: &mut Harvest) {
    // A later cut may have read another one.
    if position.binlog.is_none() || holder.position().as_ref() != Some(position) {
        return;
    }
    match holder.confirm_position(WITHIN) {
        Ok(how) => harvest.checks.push(how),
        Err(failure) => {
            let contradicts = failure.kind == FailureKind::Damaged;
            let effect = if contradicts { Effect::Weaker } else { Effect::Note };
            harvest.problems.push(Problem::new(effect, None, failure.in_full(), ""));
        }
    }
}
