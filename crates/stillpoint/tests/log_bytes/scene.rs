//! A server under `stillpoint log`, and the question whether the archive holds exactly what the server's own files hold.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use model::{
    id::SourceId,
    logs::{Epoch, LogKind, LogPlace, LogStatus},
    server::BinlogPosition,
};
use mysql::prelude::Queryable;
use rustix::process::{Pid, Signal, kill_process};
use testkit::server::{PrivateServer, wait_until};
use vault::logs::{SourceLog, Spool, Tail};

use crate::common::{Site, log::BinlogTail};

/// Nothing here takes longer, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program, while it archives.
pub struct Archiver(Child);

impl Archiver {
    /// Asks it to end; it must end well.
    pub fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }

    pub fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until(PATIENCE, || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.expect("it ends").code()
    }
}

impl Drop for Archiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An application that owns a server, which it reaches by a name that can be made to lead to another.
pub struct Scene {
    pub site: Site,
    socket: PathBuf,
}

impl Scene {
    pub fn new(server: &PrivateServer, archive: &str) -> Self {
        let site = Site::new();
        let socket = site.root().join("socket");
        symlink(server.socket(), &socket).unwrap();
        site.init(&format!(
            "[[application.directory]]\npath = \"{}\"\n[[application.database]]\nengine = \"mariadb\"\nsocket = \"{}\"\n\
             user = \"root\"\narchive = {archive}\n",
            site.app().display(),
            socket.display()
        ));
        Self { site, socket }
    }

    /// The application's server is another one from now on.
    pub fn lead_to(&self, server: &PrivateServer) {
        fs::remove_file(&self.socket).unwrap();
        symlink(server.socket(), &self.socket).unwrap();
    }

    pub fn logs(&self) -> PathBuf {
        self.site.partition().join("local/host/test/guestbook/logs")
    }

    pub fn source(&self) -> SourceId {
        SourceId::new("mariadb", self.socket.display())
    }

    pub fn archive(&self) -> Archiver {
        let mut command = self.site.command(["log", "guestbook", "--json"]);
        let said =
            fs::OpenOptions::new().create(true).append(true).open(self.site.root().join("said")).unwrap();
        command.stdin(Stdio::null()).stderr(said.try_clone().unwrap()).stdout(said);
        Archiver(command.spawn().unwrap())
    }

    /// All that it said.
    pub fn said(&self) -> String {
        fs::read_to_string(self.site.root().join("said")).unwrap_or_default()
    }

    pub fn status(&self) -> Option<LogStatus> {
        let dir = Spool::open(&self.logs()).source_dir(&self.source());
        serde_json::from_slice(&fs::read(dir.join("status.json")).ok()?).ok()
    }

    /// What the archive holds.
    pub fn log(&self) -> SourceLog {
        let tails = |kind: LogKind| -> Box<dyn Tail> {
            assert_eq!(kind, LogKind::Binlog);
            Box::new(BinlogTail)
        };
        let catalogue = Spool::open(&self.logs()).catalogue(&tails).unwrap();
        let log = catalogue.of(&self.source()).expect("the source has a log").clone();
        assert_eq!(log.damaged, []);
        log.epochs.iter().for_each(|epoch| assert_eq!(epoch.damaged, []));
        log
    }

    /// Waits until the archive says that it has all that the server has now.
    pub fn wait_for(&self, server: &PrivateServer) {
        // Asked again each time: a session that is ending may still drop its temporary tables.
        let there = || self.status().is_some_and(|status| status.place == LogPlace::Binlog(position(server)));
        wait_until(PATIENCE, there).unwrap_or_else(|| {
            panic!("{} is not reached: {:?}\n{}", position(server), self.status(), tail(&self.said()))
        });
    }

    /// Everything that an epoch holds is what the server's own files hold, in order, without a gap and nothing twice; the
    /// vendor's program reads every segment.
    pub fn assert_is_the_servers(&self, epoch: &Epoch, server: &PrivateServer) {
        let log = self.log();
        let mut at: Option<BinlogPosition> = None;
        let mut files = BTreeMap::new();
        for segment in &epoch.segments {
            let (LogPlace::Binlog(from), LogPlace::Binlog(to)) = (&segment.from, &segment.to) else {
                panic!()
            };
            let follows = at.as_ref().is_none_or(|at| at == from)
                || (from.offset == 4 && at.as_ref().is_some_and(|at| ends_there(server, at)));
            assert!(follows, "{from} does not follow {at:?}");
            let path = log.segment_path(&epoch.record.epoch, segment.number).expect("a segment");
            let bytes = fs::read(&path).unwrap();
            let stored =
                &bytes[usize::try_from(segment.lead).unwrap()..usize::try_from(segment.bytes.0).unwrap()];
            let file = files.entry(from.file.clone()).or_insert_with(|| file_of(server, &from.file));
            let there = &file[usize::try_from(from.offset).unwrap()..usize::try_from(to.offset).unwrap()];
            assert!(stored == there, "{from} to {to} differs from the server's file");
            assert_is_readable(&path);
            at = Some(to.clone());
        }
        assert_eq!(at.as_ref(), Some(&position(server)), "it ends where the server stands");
    }
}

/// Whether nothing of the server's file comes after this place.
fn ends_there(server: &PrivateServer, at: &BinlogPosition) -> bool {
    file_of(server, &at.file).len() as u64 == at.offset
}

/// A file of the server's log, as if it were closed: while it is in use, or after a crash, a flag of its first event says so.
fn file_of(server: &PrivateServer, file: &str) -> Vec<u8> {
    let mut bytes = fs::read(server.datadir().join(file)).unwrap();
    bytes[4 + 17] &= !1;
    bytes
}

fn assert_is_readable(path: &Path) {
    let read = Command::new("mariadb-binlog").arg("--verify-binlog-checksum").arg(path).output().unwrap();
    assert!(read.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&read.stderr));
}

pub fn position(server: &PrivateServer) -> BinlogPosition {
    let row: (String, u64, String, String) =
        server.connect().query_first("SHOW MASTER STATUS").unwrap().unwrap();
    BinlogPosition { file: row.0, offset: row.1 }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
