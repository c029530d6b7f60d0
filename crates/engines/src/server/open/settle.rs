//! Making a restored copy one that any server of its series may be started on where it lies.
//!
//! Crash story: whatever stops in between leaves a copy that can be settled again.

use std::{sync::Arc, time::Duration};

use model::{
    port::{Failure, FailureKind, Journal},
    server::ServerForm,
};

use super::{copy::ServerCopy, links, links::relocate, private::Private, program};

/// Why a copy has to be opened once, fenced, before anyone may start a server on it; `None` if it need not be.
///
/// # Errors
/// If it cannot be looked at.
pub fn needs_settling(copy: &ServerCopy) -> Result<Option<String>, Failure> {
    let record = copy.record();
    if record.form != ServerForm::Files {
        return Ok(None);
    }
    if !links::tablespaces(copy)?.is_empty() {
        let why = "tables made with DATA DIRECTORY are named in its redo log by their original paths";
        return Ok(Some(why.to_owned()));
    }
    let has_rocks = record.engines.iter().any(|engine| engine.eq_ignore_ascii_case("rocksdb"));
    Ok(has_rocks.then(|| "MyRocks may have transactions that are only prepared".to_owned()))
}

/// Opens the copy once, fenced, if it needs that, stops it cleanly, and rewrites its links to where it lies.
/// Returns whether it was opened.
///
/// # Errors
/// As [`Private::open`] and [`relocate`]. Nobody should start a server on the copy then.
pub fn settle(copy: &ServerCopy, journal: &Arc<dyn Journal>, within: Duration) -> Result<bool, Failure> {
    let needs = needs_settling(copy)?;
    if let Some(why) = &needs {
        let program = program::server(copy.record())?;
        if !program.is_of_series(copy.record()) {
            let (major, minor, _) = copy.record().version.number;
            let what = format!("the copy must be recovered by a server of series {major}.{minor}: {why}");
            return Err(Failure::new(FailureKind::Refused, what, "install that one beside the newer one"));
        }
        Private::open(copy, journal, within)?.stop(within)?;
    }
    relocate(copy, copy.placement())?;
    Ok(needs.is_some())
}
