//! Where a MySQL server stands.
//!
//! What a replica has applied: `SHOW REPLICA STATUS`. With several applier workers `Exec_Source_Log_Pos` is only the place
//! before which nothing is missing; transactions after it may have been applied. Then `gtid_executed` alone is the whole
//! truth, if there are GTIDs.
//!
//! Crash story: reads only.

use std::time::Duration;

use model::{
    port::{Failure, FailureKind},
    problem::Problem,
    server::{Applied, BinlogPosition, Gtids, Replica, ServerPosition},
};

use super::super::super::{
    connect::Connection,
    error::{ServerError, code},
    position::binlog_of,
    row::Row,
};

/// Error numbers of accounts that may not look, and of servers without the table.
const NOT_FOR_US: [u16; 4] = [1142, 1146, 1227, 1109];

/// Reads the position. It is of one instant if nobody can commit meanwhile.
///
/// # Errors
/// If the server does not answer, or a privilege is missing.
pub(super) fn read(connection: &mut Connection, within: Duration) -> Result<ServerPosition, ServerError> {
    // The old words ended with 8.4, the new ones came with 8.2.
    let status = if connection.version().number >= (8, 2, 0) {
        "SHOW BINARY LOG STATUS"
    } else {
        "SHOW MASTER STATUS"
    };
    let binlog = connection.first(status, within)?.and_then(|row| binlog_of(&row));
    let executed = connection.value("SELECT @@global.gtid_executed", within)?;
    let gtid = executed.map(|text| plain(&text)).filter(|text| !text.is_empty()).map(Gtids);
    let applied = applied(connection, within)?;
    Ok(ServerPosition { binlog, gtid, applied, ..ServerPosition::default() })
}

/// Sets are shown one source to a line.
fn plain(gtids: &str) -> String {
    gtids.split_whitespace().collect()
}

/// The sources that it replicates from.
///
/// # Errors
/// If the server does not answer, or a privilege is missing.
pub(in super::super::super) fn replicas(
    connection: &mut Connection,
    within: Duration,
) -> Result<Vec<Replica>, ServerError> {
    let rows = channels(connection, within)?;
    if rows.is_empty() {
        return Ok(vec![]);
    }
    let out_of_order = workers(connection, within)? > 1
        && renamed(connection, "replica_preserve_commit_order", "slave_preserve_commit_order", within)? == 0;
    let replica = |row: &Row| {
        let Applied { channel, source, .. } = channel(row, false);
        let running = row.named(&["Replica_SQL_Running", "Slave_SQL_Running"]);
        Replica { channel, source, applies: running.as_deref() == Some("Yes"), out_of_order }
    };
    Ok(rows.iter().map(replica).collect())
}

fn channels(connection: &mut Connection, within: Duration) -> Result<Vec<Row>, ServerError> {
    let status =
        if connection.version().number >= (8, 0, 22) { "SHOW REPLICA STATUS" } else { "SHOW SLAVE STATUS" };
    connection.rows(status, within)
}

fn applied(connection: &mut Connection, within: Duration) -> Result<Vec<Applied>, ServerError> {
    let rows = channels(connection, within)?;
    if rows.is_empty() {
        return Ok(vec![]);
    }
    let is_complete = workers(connection, within)? <= 1;
    Ok(rows.iter().map(|row| channel(row, is_complete)).collect())
}

fn channel(row: &Row, is_complete: bool) -> Applied {
    let text = |names: &[&str]| row.named(names).unwrap_or_default();
    let (host, port) = (text(&["Source_Host", "Master_Host"]), text(&["Source_Port", "Master_Port"]));
    let file = text(&["Relay_Source_Log_File", "Relay_Master_Log_File"]);
    let offset = text(&["Exec_Source_Log_Pos", "Exec_Master_Log_Pos"]).parse().unwrap_or(0);
    Applied {
        channel: text(&["Channel_Name"]),
        source: format!("{host}:{port}"),
        position: BinlogPosition { file, offset },
        is_complete,
    }
}

/// How many threads apply at once.
fn workers(connection: &mut Connection, within: Duration) -> Result<u64, ServerError> {
    renamed(connection, "replica_parallel_workers", "slave_parallel_workers", within)
}

/// A variable that has a new name since 8.0.26.
fn renamed(connection: &mut Connection, new: &str, old: &str, within: Duration) -> Result<u64, ServerError> {
    match connection.number(&format!("SELECT @@global.{new}"), within) {
        Err(error) if error.code() == Some(code::UNKNOWN_VARIABLE) => {
            connection.number(&format!("SELECT @@global.{old}"), within)
        }
        other => other,
    }
}

/// Whether `performance_schema.log_status`, which the server fills at one instant, says the same; false if it cannot be
/// asked.
///
/// # Errors
/// [`FailureKind::Busy`] if it says something else: the log moved between two looks, although it is locked.
pub(super) fn confirmed(
    connection: &mut Connection,
    position: &ServerPosition,
    within: Duration,
) -> Result<bool, Failure> {
    let asked = connection.value("SELECT LOCAL FROM performance_schema.log_status", within);
    let local = match asked {
        Ok(Some(local)) => local,
        Ok(None) => return Ok(false),
        Err(error) if error.code().is_some_and(|code| NOT_FOR_US.contains(&code)) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let Some(said) = log_status(&local) else { return Ok(false) };
    let read = (position.binlog.clone(), position.gtid.clone());
    if said == read {
        return Ok(position.binlog.is_some());
    }
    let show =
        |place: &Option<BinlogPosition>| place.as_ref().map_or("nowhere".to_owned(), ToString::to_string);
    let what = format!(
        "the binary log stood at {} and then at {} while it was locked",
        show(&read.0),
        show(&said.0)
    );
    Err(Failure::new(FailureKind::Busy, what, "see who runs FLUSH BINARY LOGS or RESET on this server"))
}

/// Binary log and GTIDs of the JSON object in the column LOCAL.
fn log_status(local: &str) -> Option<(Option<BinlogPosition>, Option<Gtids>)> {
    let object: serde_json::Value = serde_json::from_str(local).ok()?;
    let file = object.get("binary_log_file")?.as_str()?;
    let offset = match object.get("binary_log_position")? {
        serde_json::Value::Number(number) => number.as_u64()?,
        other => other.as_str()?.parse().ok()?,
    };
    let gtids = plain(object.get("gtid_executed")?.as_str()?);
    let binlog = (!file.is_empty()).then(|| BinlogPosition { file: file.to_owned(), offset });
    Some((binlog, (!gtids.is_empty()).then_some(Gtids(gtids))))
}

/// What a person should know of a replica before it is copied.
pub(super) fn problems(connection: &mut Connection, within: Duration) -> Result<Vec<Problem>, ServerError> {
    let applied = applied(connection, within)?;
    let mut problems = vec![];
    let has_gtids = connection.value("SELECT @@global.gtid_mode", within)?.as_deref() == Some("ON");
    if applied.iter().any(|source| !source.is_complete) && !has_gtids {
        problems.push(super::note(
            "several workers apply its source's log and there are no GTIDs, so the recorded place in that log is only a \
             lower bound: a replica made from the copy may apply transactions twice",
            "set gtid_mode = ON, or replica_parallel_workers = 1",
        ));
    }
    let temporary =
        "SHOW GLOBAL STATUS WHERE Variable_name IN ('Replica_open_temp_tables', 'Slave_open_temp_tables')";
    let open = connection.first(temporary, within)?.and_then(|row| row.number(1)).unwrap_or(0);
    if !applied.is_empty() && open > 0 {
        problems.push(super::note(
            &format!("its replication has {open} temporary tables open, which a copy does not have"),
            "use binlog_format = ROW on the source",
        ));
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use model::server::{BinlogPosition, Gtids};

    use super::log_status;

    #[test]
    fn log_status_is_read() {
        let local =
            r#"{"gtid_executed": "a:1-5,\nb:1-7", "binary_log_file": "b.7", "binary_log_position": 157}"#;
        let (binlog, gtids) = log_status(local).expect("it is understood");
        assert_eq!(binlog, Some(BinlogPosition { file: "b.7".into(), offset: 157 }));
        assert_eq!(gtids, Some(Gtids("a:1-5,b:1-7".into())));
        let off = r#"{"gtid_executed": "", "binary_log_file": "", "binary_log_position": "0"}"#;
        assert_eq!(log_status(off), Some((None, None)));
        assert_eq!(log_status("{}"), None);
    }
}
