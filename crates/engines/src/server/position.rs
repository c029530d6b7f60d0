//! Where a server stands: binary log, GTIDs, and what a replica has applied.
//!
//! Crash story: reads only. What is read under the lock is one instant; that the GTIDs belong to file and offset is asked
//! after the thaw ([`confirm`]), because the server scans its log for the answer.

use std::time::Duration;

use model::{
    port::{Failure, FailureKind},
    server::{Applied, BinlogPosition, Flavor, Gtids, ServerPosition},
};

use super::{
    connect::{Connection, quoted},
    error::{ServerError, code},
    row::Row,
};

/// Reads the position of a MariaDB server. It is of one instant if nobody can commit meanwhile.
///
/// # Errors
/// If the server does not answer, or a privilege is missing.
pub(super) fn read_mariadb(
    connection: &mut Connection,
    within: Duration,
) -> Result<ServerPosition, ServerError> {
    let binlog = connection.first("SHOW MASTER STATUS", within)?.and_then(|row| binlog_of(&row));
    let asked = "SELECT @@global.gtid_binlog_pos, @@global.gtid_binlog_state, @@global.gtid_slave_pos";
    let row = connection.row(asked, within)?;
    let gtids = |place| row.given(place).filter(|text| !text.is_empty()).map(Gtids);
    let applied = channels(connection, within)?.iter().map(Channel::applied).collect();
    let gtid = if binlog.is_some() { gtids(0) } else { None };
    let gtid_binlog_state = if binlog.is_some() { gtids(1) } else { None };
    Ok(ServerPosition { binlog, gtid, gtid_binlog_state, gtid_applied: gtids(2), applied })
}

/// `SHOW MASTER STATUS`: file and offset.
pub(super) fn binlog_of(row: &Row) -> Option<BinlogPosition> {
    let file = row.named(&["File"])?;
    Some(BinlogPosition { file, offset: row.named(&["Position"])?.parse().ok()? })
}

/// Asks the server itself which GTIDs lie before the place that was recorded (`BINLOG_GTID_POS`; MDEV-23586 recorded
/// wrong ones). Says how it was confirmed, or that there was nothing to confirm.
///
/// # Errors
/// [`FailureKind::Damaged`] if they differ; if the server does not answer.
pub(super) fn confirm(
    connection: &mut Connection,
    position: &ServerPosition,
    within: Duration,
) -> Result<String, Failure> {
    let (Flavor::MariaDb, Some(place)) = (connection.version().flavor, &position.binlog) else {
        return Ok("no binary log of MariaDB, so nothing to compare GTIDs with".into());
    };
    let sql = format!("SELECT BINLOG_GTID_POS({}, {})", quoted(&place.file), place.offset);
    let said = match connection.value(&sql, within)? {
        Some(said) => Gtids(said),
        None => {
            let what = format!("the server does not know {place} of its binary log any more");
            return Err(Failure::new(
                FailureKind::Other,
                what,
                "keep binary logs for longer than a backup takes",
            ));
        }
    };
    let recorded = position.gtid.clone().unwrap_or_default();
    if !is_same(&said, &recorded) {
        return Err(Failure::new(
            FailureKind::Damaged,
            format!("the GTIDs before {place} are {said}, but @@gtid_binlog_pos was {recorded}"),
            "look for a binary log that was changed by hand, or report it with this version of the server",
        ));
    }
    Ok(format!("BINLOG_GTID_POS({place}) = {said}"))
}

/// Whether two sets name the same ids, in whatever order.
pub(super) fn is_same(a: &Gtids, b: &Gtids) -> bool {
    let sorted = |gtids: &Gtids| {
        let mut ids: Vec<String> =
            gtids.0.split(',').map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()).collect();
        ids.sort();
        ids
    };
    sorted(a) == sorted(b)
}

/// A source that a server replicates from, as `SHOW ALL SLAVES STATUS` tells it.
#[derive(Debug, Clone)]
pub(super) struct Channel {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) position: BinlogPosition,
    pub(super) applies: bool,
    /// `Parallel_Mode`; empty where it is not told.
    pub(super) mode: String,
    pub(super) threads: u64,
}

impl Channel {
    /// Several transactions are on their way at once, and those that wait for their turn are prepared already.
    pub(super) fn is_parallel(&self) -> bool {
        self.threads > 0 && !matches!(self.mode.to_ascii_lowercase().as_str(), "none")
    }

    /// MDEV-36025: transactions begin, and are prepared, before those that come first have ended.
    pub(super) fn is_optimistic(&self) -> bool {
        self.threads > 0 && matches!(self.mode.to_ascii_lowercase().as_str(), "optimistic" | "aggressive")
    }

    fn applied(&self) -> Applied {
        Applied {
            channel: self.name.clone(),
            source: self.source.clone(),
            position: self.position.clone(),
            is_complete: !self.is_parallel(),
        }
    }
}

/// All sources of a MariaDB server; none for an account that may not see them on a server that has none.
///
/// # Errors
/// If the server does not answer, or a privilege is missing.
pub(super) fn channels(connection: &mut Connection, within: Duration) -> Result<Vec<Channel>, ServerError> {
    let rows = connection.rows("SHOW ALL SLAVES STATUS", within)?;
    if rows.is_empty() {
        return Ok(vec![]);
    }
    let threads = match connection.number("SELECT @@global.slave_parallel_threads", within) {
        Err(error) if error.code() == Some(code::UNKNOWN_VARIABLE) => 0,
        other => other?,
    };
    Ok(rows.iter().map(|row| channel(row, threads)).collect())
}

fn channel(row: &Row, threads: u64) -> Channel {
    let text = |names: &[&str]| row.named(names).unwrap_or_default();
    let (host, port) = (text(&["Master_Host", "Source_Host"]), text(&["Master_Port", "Source_Port"]));
    let offset = text(&["Exec_Master_Log_Pos", "Exec_Source_Log_Pos"]).parse().unwrap_or(0);
    Channel {
        name: text(&["Connection_name", "Channel_Name"]),
        source: format!("{host}:{port}"),
        position: BinlogPosition { file: text(&["Relay_Master_Log_File", "Relay_Source_Log_File"]), offset },
        applies: text(&["Slave_SQL_Running", "Replica_SQL_Running"]) == "Yes",
        mode: text(&["Parallel_Mode"]),
        threads,
    }
}

#[cfg(test)]
mod tests {
    use model::server::Gtids;

    use super::is_same;

    #[test]
    fn the_order_of_domains_does_not_matter() {
        let gtids = |text: &str| Gtids(text.into());
        assert!(is_same(&gtids("0-1-5,1-2-7"), &gtids("1-2-7, 0-1-5")));
        assert!(is_same(&gtids(""), &Gtids::default()));
        assert!(!is_same(&gtids("0-1-5"), &gtids("0-1-6")));
    }
}
