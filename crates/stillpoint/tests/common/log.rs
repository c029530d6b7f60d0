//! `stillpoint log` of a site, and what it has written.

use std::{
    fs, io,
    path::PathBuf,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use engines::server::binlog::whole;
use jiff::Timestamp;
use model::{
    id::SourceId,
    logs::{LogStatus, SegmentHead, WholePart},
};
use rustix::process::{Pid, Signal, kill_process};
use vault::logs::{Spool, Tail};

use super::{Site, start};

/// Finds the end of what is whole in a segment of a binary log.
pub struct BinlogTail;

impl Tail for BinlogTail {
    fn whole(&self, head: &SegmentHead, segment: &mut dyn io::Read) -> io::Result<WholePart> {
        whole(head, segment)
    }
}

/// The log archive of a site's application.
pub fn spool(site: &Site) -> Spool {
    Spool::open(&logs(site))
}

/// Where it lies.
pub fn logs(site: &Site) -> PathBuf {
    site.repository().with_file_name("logs")
}

/// Starts to follow.
pub fn follow(site: &Site) -> Child {
    start(site.command(["log", "guestbook"]))
}

/// What the archive of a source says of itself.
pub fn status(site: &Site, source: &SourceId) -> Option<LogStatus> {
    serde_json::from_slice(&fs::read(spool(site).source_dir(source).join("status.json")).ok()?).ok()
}

/// Waits until it has everything that is committed now.
pub fn wait_until_caught_up(site: &Site, source: &SourceId) -> LogStatus {
    let (now, asked) = (Timestamp::now(), Instant::now());
    loop {
        match status(site, source) {
            Some(status) if status.caught_up_at.is_some_and(|at| at > now) => return status,
            found => assert!(asked.elapsed() < Duration::from_secs(60), "it does not catch up: {found:?}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Ends a process; whoever is asked to end must end well.
pub fn end(mut archive: Child, signal: Signal) {
    send(&archive, signal);
    let status = archive.wait().unwrap();
    assert!(signal == Signal::KILL || status.success(), "{status}");
}

pub fn send(archive: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(archive.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}
