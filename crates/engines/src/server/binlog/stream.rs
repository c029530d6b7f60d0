//! A server as the source of its log: [`Server`], and the [`LogStream`] that it gives.
//!
//! We are a replica to the server: registered with a number of our own, with heartbeats, and with MariaDB's events as they are
//! (`@mariadb_slave_capability = 4`). Handshake: <https://mariadb.com/kb/en/5-slave-registration/>.
//!
//! Semi-synchronous: two bytes before each event say whether the server waits; the answer is
//! <https://mariadb.com/kb/en/semisynchronous-replication/>'s acknowledgement packet. Nothing is answered here that the
//! caller has not put on disk.
//!
//! Crash story: reads only. The server's thread for us ends when the socket does; a thread that is left from a dead process
//! of ours is ended by the server when the same number registers again.

use std::time::{Duration, Instant};

use model::{
    gtid::GtidState,
    id::SourceId,
    logs::LogServer,
    port::{Failure, FailureKind},
    port_logs::{LogEvent, LogSource, LogStream, Next, Seen, Start},
    server::{BinlogPosition, Flavor, Gtids, ServerAccess},
};
use mysql_common::{packets::ComRegisterSlave, proto::MySerialize};

use super::{
    super::{
        PATIENCE,
        connect::{Connection, quoted},
        position::binlog_of,
    },
    event::Header,
    follow::{Came, Follower},
    wire::{Wire, error_of},
};

/// What comes within this time is read at once, unless the server waits for us.
const GATHER: Duration = Duration::from_millis(25);
/// How often the server says that it has nothing more.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Without heartbeats for so long, the connection is dead.
const SILENCE: Duration = Duration::from_secs(30);
/// The server cannot begin where we ask it to.
const CANNOT_READ_LOG: u16 = 1236;

/// A server whose log is followed.
pub struct Server {
    access: ServerAccess,
    replica: u32,
    acknowledge: bool,
    /// Semi-synchronous replication is switched on at the server.
    semi_sync: bool,
    flavor: Flavor,
    /// On which it is asked where it stands.
    asked: Option<Connection>,
}

impl Server {
    /// This one. `machine` tells archives of the same server on two machines apart; `acknowledge` is for semi-synchronous
    /// replication.
    #[must_use]
    pub fn new(access: &ServerAccess, source: &SourceId, machine: &str, acknowledge: bool) -> Self {
        let replica = replica_number(source, machine);
        Self {
            access: access.clone(),
            replica,
            acknowledge,
            semi_sync: false,
            flavor: access.flavor,
            asked: None,
        }
    }

    /// The number under which we register (`server_id` of a replica).
    #[must_use]
    pub fn replica(&self) -> u32 {
        self.replica
    }
}

/// High enough to be nobody's who counts from 1, and always the same for one archive, so that a thread that a dead
/// archive has left is replaced.
fn replica_number(source: &SourceId, machine: &str) -> u32 {
    let sum = crc32fast::hash(format!("{machine}\0{source}").as_bytes());
    sum & 0x3fff_ffff | 0x4000_0000
}

impl LogSource for Server {
    fn look(&mut self, reached: Option<&BinlogPosition>) -> Result<Seen, Failure> {
        self.asked = None;
        let mut connection = Connection::open(&self.access, PATIENCE)?;
        let version = connection.version().clone();
        self.flavor = version.flavor;
        let id = connection.number("SELECT @@global.server_id", PATIENCE)?;
        let server_id = u32::try_from(id).unwrap_or(0);
        if connection.number("SELECT @@global.log_bin", PATIENCE)? == 0 {
            return Err(no_log(&self.access));
        }
        let semi_sync = "SHOW GLOBAL VARIABLES WHERE variable_name IN \
                         ('rpl_semi_sync_master_enabled', 'rpl_semi_sync_source_enabled') AND value = 'ON'";
        self.semi_sync = connection.first(semi_sync, PATIENCE)?.is_some();
        let mut seen = Seen {
            server: LogServer { server_id, version, uuid: None },
            files: files(&mut connection)?,
            gtid_state: None,
            before_reached: None,
            before_oldest: None,
        };
        match self.flavor {
            Flavor::MySql => {
                seen.server.uuid = connection.value("SELECT @@global.server_uuid", PATIENCE)?;
                seen.gtid_state = connection.value("SELECT @@global.gtid_executed", PATIENCE)?.map(Gtids);
            }
            Flavor::MariaDb => {
                let state = connection.value("SELECT @@global.gtid_binlog_state", PATIENCE)?;
                seen.gtid_state = state.map(Gtids);
                gtids_before(&mut connection, reached, &mut seen)?;
            }
        }
        Ok(seen)
    }

    fn end(&mut self) -> Result<(BinlogPosition, Option<Gtids>), Failure> {
        let mut connection = match self.asked.take() {
            Some(connection) => connection,
            None => Connection::open(&self.access, PATIENCE)?,
        };
        // The first was renamed in MySQL 8.2, and removed in 8.4.
        let row = match connection.first("SHOW MASTER STATUS", PATIENCE) {
            Err(_) if self.flavor == Flavor::MySql => connection.first("SHOW BINARY LOG STATUS", PATIENCE)?,
            row => row?,
        };
        let place = row.as_ref().and_then(binlog_of).ok_or_else(|| no_log(&self.access))?;
        let gtids = match self.flavor {
            Flavor::MariaDb => connection.value("SELECT @@global.gtid_binlog_state", PATIENCE)?,
            Flavor::MySql => None,
        };
        self.asked = Some(connection);
        Ok((place, gtids.map(Gtids)))
    }

    fn follow(&mut self, start: &Start, gtid_state: Option<&Gtids>) -> Result<Box<dyn LogStream>, Failure> {
        let mut wire = Wire::open(&self.access, PATIENCE)?;
        let is_waited_for = prepare(&mut wire, self.flavor, self.acknowledge)?;
        let mut register = Vec::new();
        ComRegisterSlave::new(self.replica).with_hostname(&b"stillpoint"[..]).serialize(&mut register);
        wire.command(&register)?;
        wire.expect_ok(PATIENCE)?;
        if is_waited_for {
            wire.run("SET @rpl_semi_sync_slave = 1, @rpl_semi_sync_replica = 1", PATIENCE)?;
        }
        if let Start::After(gtids) = start {
            if self.flavor == Flavor::MySql {
                return Err(Failure::new(
                    FailureKind::Refused,
                    "the log of a MySQL server cannot be followed after GTIDs yet",
                    "move the source's directory in logs/ away to begin anew",
                ));
            }
            let set = format!("SET @slave_connect_state = {}, @slave_gtid_strict_mode = 0", quoted(&gtids.0));
            wire.run(&set, PATIENCE)?;
        }
        wire.command(&dump(start, self.replica)?)?;
        if !is_waited_for {
            wire.gather(GATHER);
        }
        let place = match start {
            Start::Place(place) => Some(place),
            Start::After(_) => None,
        };
        let state = gtid_state.and_then(|text| GtidState::parse(self.flavor, text));
        Ok(Box::new(Stream {
            wire,
            follower: Follower::new(place, state),
            semi_sync: is_waited_for,
            waits: is_waited_for && self.semi_sync,
            heard: Instant::now(),
        }))
    }
}

/// What must be said before; returns whether the server knows semi-synchronous replication and it was asked for.
fn prepare(wire: &mut Wire, flavor: Flavor, acknowledge: bool) -> Result<bool, Failure> {
    let period = HEARTBEAT.as_nanos();
    wire.run(
        &format!("SET @master_heartbeat_period = {period}, @source_heartbeat_period = {period}"),
        PATIENCE,
    )?;
    let checksum = "SET @master_binlog_checksum = @@global.binlog_checksum, \
                    @source_binlog_checksum = @@global.binlog_checksum";
    wire.run(checksum, PATIENCE)?;
    if flavor == Flavor::MariaDb {
        wire.run("SET @mariadb_slave_capability = 4", PATIENCE)?;
    }
    Ok(acknowledge)
}

/// `COM_BINLOG_DUMP`.
fn dump(start: &Start, replica: u32) -> Result<Vec<u8>, Failure> {
    const COMMAND: u8 = 0x12;
    // MariaDB: with the statements behind rows, which are in its files.
    const ANNOTATE_ROWS: u16 = 0x02;
    let (file, offset) = match start {
        Start::Place(place) => (place.file.as_str(), place.offset),
        Start::After(_) => ("", 4),
    };
    let offset = u32::try_from(offset).map_err(|_| {
        let what = format!("{file}:{offset} is beyond 4 GiB, where the protocol cannot begin");
        Failure::new(
            FailureKind::Refused,
            what,
            "move the source's directory in logs/ away to begin anew, and keep transactions and max_binlog_size far below that",
        )
    })?;
    let mut packet = vec![COMMAND];
    packet.extend_from_slice(&offset.to_le_bytes());
    packet.extend_from_slice(&ANNOTATE_ROWS.to_le_bytes());
    packet.extend_from_slice(&replica.to_le_bytes());
    packet.extend_from_slice(file.as_bytes());
    Ok(packet)
}

fn files(connection: &mut Connection) -> Result<Vec<(String, u64)>, Failure> {
    let rows = connection.rows("SHOW BINARY LOGS", PATIENCE)?;
    Ok(rows.iter().filter_map(|row| Some((row.given(0)?, row.number(1)?))).collect())
}

/// Asks which GTIDs lie before the place that was reached, or, if its file is gone, before the oldest file.
fn gtids_before(
    connection: &mut Connection,
    reached: Option<&BinlogPosition>,
    seen: &mut Seen,
) -> Result<(), Failure> {
    let Some(reached) = reached else { return Ok(()) };
    let mut before = |file: &str, offset: u64| -> Result<Option<Gtids>, Failure> {
        let sql = format!("SELECT BINLOG_GTID_POS({}, {offset})", quoted(file));
        Ok(connection.value(&sql, PATIENCE)?.map(Gtids))
    };
    match seen.files.iter().find(|(file, _)| *file == reached.file) {
        Some((file, size)) if reached.offset <= *size => seen.before_reached = before(file, reached.offset)?,
        Some(_) => {}
        None => {
            if let Some((oldest, _)) = seen.files.first() {
                seen.before_oldest = before(oldest, 4)?;
            }
        }
    }
    Ok(())
}

fn no_log(access: &ServerAccess) -> Failure {
    let what = format!("the server at {} writes no binary log", access.address);
    Failure::new(FailureKind::Refused, what, "set log_bin in its configuration and restart it")
}

struct Stream {
    wire: Wire,
    follower: Follower,
    semi_sync: bool,
    /// The server waited at the last commit, or, before the first, is set up to.
    waits: bool,
    heard: Instant,
}

impl LogStream for Stream {
    fn next(&mut self, within: Duration) -> Result<Next, Failure> {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(packet) = self.wire.receive(left)? else {
                if self.heard.elapsed() > SILENCE {
                    return Err(self.wire.lost("nothing came for long, not even a heartbeat"));
                }
                return Ok(Next::Quiet);
            };
            self.heard = Instant::now();
            match self.take(&packet)? {
                Some(next) => return Ok(next),
                None => continue,
            }
        }
    }

    fn lead(&self, first: &LogEvent) -> Vec<u8> {
        self.follower.lead(first)
    }

    fn gtid_state(&self) -> Option<Gtids> {
        self.follower.gtid_state()
    }

    fn is_file_of(&self, segment: &[u8]) -> Option<bool> {
        self.follower.is_file_of(segment)
    }

    fn is_acknowledging(&self) -> bool {
        self.waits
    }

    fn acknowledge(&mut self, place: &BinlogPosition) -> Result<(), Failure> {
        const MARK: u8 = 0xef;
        let mut packet = vec![MARK];
        packet.extend_from_slice(&place.offset.to_le_bytes());
        packet.extend_from_slice(place.file.as_bytes());
        self.wire.send_alone(&packet)
    }
}

impl Stream {
    fn take(&mut self, packet: &[u8]) -> Result<Option<Next>, Failure> {
        const MARK: u8 = 0xef;
        let (event, wants_ack) = match packet {
            // A server on which it is switched off sends no mark, and a time may begin with the same byte.
            [0, MARK, flag, event @ ..] if self.semi_sync && is_whole(event) => (event, *flag == 1),
            [0, event @ ..] => (event, false),
            [0xff, ..] => {
                let (code, said) = error_of(packet);
                if code == CANNOT_READ_LOG {
                    return Ok(Some(Next::Gone(said)));
                }
                return Err(self.wire.said(packet));
            }
            [0xfe, ..] if packet.len() < 9 => return Err(self.wire.lost("the server ended the log")),
            _ => return Err(self.wire.odd("a packet that is no event")),
        };
        match self.follower.take(event) {
            Ok(Came::Event(event)) => {
                if event.commit.is_some() {
                    self.waits = wants_ack;
                }
                Ok(Some(Next::Event(LogEvent { wants_ack, ..event })))
            }
            Ok(Came::CaughtUp) => Ok(Some(Next::CaughtUp)),
            Ok(Came::Nothing) => Ok(None),
            Err(wrong) => Err(self.wire.odd(&wrong)),
        }
    }
}

/// Whether an event has the length that it says.
fn is_whole(event: &[u8]) -> bool {
    Header::parse(event).is_ok_and(|header| header.size as usize == event.len())
}
