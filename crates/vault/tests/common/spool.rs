//! A spool that is written as the log archive writes it; its events are any bytes.

use std::{io, path::PathBuf};

use jiff::Timestamp;
use model::{
    id::{AppName, EpochId, ServerName, SourceId},
    logs::{
        Beginning, EpochRecord, LOGS_VERSION, LogKind, LogPlace, LogServer, SegmentHead, SegmentRecord, Span,
        WholePart,
    },
    server::{BinlogPosition, Flavor, ServerVersion},
};
use vault::{
    logs::{Added, Catalogue, Spool, Tail, Writer},
    repository::LogOwner,
};

/// Every byte is whole.
pub struct Bytes;

impl Tail for Bytes {
    fn whole(&self, head: &SegmentHead, segment: &mut dyn io::Read) -> io::Result<WholePart> {
        let mut all = Vec::new();
        segment.read_to_end(&mut all)?;
        let bytes = all.len() as u64;
        let to = place(number_of(&head.from), bytes);
        Ok(WholePart { bytes, to, transactions: 1, commits: None, gtid_state: None })
    }
}

pub fn place(file: u64, offset: u64) -> LogPlace {
    LogPlace::Binlog(BinlogPosition { file: format!("binlog.{file:06}"), offset })
}

fn number_of(place: &LogPlace) -> u64 {
    let LogPlace::Binlog(place) = place else { return 0 };
    // A head that was changed may say anything.
    place.file.rsplit_once('.').and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
}

/// The archive of one server: each segment is a file of its log.
pub struct Archive {
    pub spool: Spool,
    pub source: SourceId,
    writer: Writer,
    file: u64,
    offset: u64,
}

impl Archive {
    pub fn new(dir: PathBuf) -> Self {
        let spool = Spool::open(&dir);
        let source = SourceId::new("mariadb", "/run/mysqld/mysqld.sock");
        let writer = spool.writer(&source, LogKind::Binlog, Box::new(Bytes)).unwrap();
        Self { spool, source, writer, file: 1, offset: 0 }
    }

    pub fn begin_epoch(&mut self, nth: u8, beginning: Beginning) -> EpochId {
        self.writer.close_segment().unwrap();
        let begun_at: Timestamp = "2026-11-20T03:15:00Z".parse().unwrap();
        let epoch = EpochId::at(begun_at, [0, 0, nth]);
        let version =
            ServerVersion { flavor: Flavor::MariaDb, number: (10, 11, 6), text: "10.11.6-MariaDB".into() };
        self.writer
            .begin_epoch(EpochRecord {
                version: LOGS_VERSION,
                epoch: epoch.clone(),
                source: self.source.clone(),
                kind: LogKind::Binlog,
                begun_at,
                beginning,
                from: place(self.file, 0),
                server: Some(LogServer { server_id: 1, version, uuid: None }),
                gtid_state: None,
                has_base: false,
            })
            .unwrap();
        epoch
    }

    pub fn begin_segment(&mut self) {
        let head = SegmentHead {
            version: LOGS_VERSION,
            from: place(self.file, 0),
            lead: 0,
            gtid_state: None,
            begun_at: "2026-11-20T03:15:00Z".parse().unwrap(),
        };
        self.writer.begin_segment(head, &[]).unwrap();
    }

    pub fn is_open(&self) -> bool {
        self.writer.segment().is_some()
    }

    pub fn append(&mut self, bytes: &[u8]) {
        self.offset += bytes.len() as u64;
        let to = place(self.file, self.offset);
        let commits = Some(Span::at("2026-11-20T03:15:00Z".parse().unwrap()));
        self.writer.append(bytes, &Added::Whole { to, transactions: 1, commits }).unwrap();
        self.writer.sync(None).unwrap();
    }

    pub fn close(&mut self) -> SegmentRecord {
        let record = self.writer.close_segment().unwrap().unwrap();
        (self.file, self.offset) = (self.file + 1, 0);
        record
    }

    /// A whole closed segment.
    pub fn segment(&mut self, bytes: &[u8]) -> SegmentRecord {
        self.begin_segment();
        self.append(bytes);
        self.close()
    }

    pub fn catalogue(&self) -> Catalogue {
        self.spool.catalogue(&|_| Box::new(Bytes)).unwrap()
    }
}

pub fn owner() -> LogOwner {
    LogOwner {
        application: AppName::new("hydro").unwrap(),
        server: ServerName::new("zg-3.softxs.ch").unwrap(),
    }
}
