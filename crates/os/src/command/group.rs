//! Ending a process group that we started.
//!
//! Crash story: may be repeated at any point; whoever has ended is passed over. Only processes that are shown
//! to be of the group are signalled, each through a pidfd.

use std::{fs, io, thread, time::Duration};

use model::undo::ProcessRef;
use rustix::process::Signal;

use crate::process::{self, stat};

/// How long a process group may take to end after SIGTERM before it gets SIGKILL.
pub const GRACE: Duration = Duration::from_secs(2);

const STEP: Duration = Duration::from_millis(10);

/// The environment variable by which processes of a gated hook are known when its leader has ended.
const MARK: &str = "STILLPOINT_HOOK";

/// The line that opens a gated hook's gate: it becomes the value of the mark.
pub(super) fn mark(leader: ProcessRef) -> String {
    format!("{}-{}", leader.pid, leader.start)
}

/// Ends the process group that `leader` leads: SIGTERM, and SIGKILL to whoever is left after `grace`. Returns
/// when all have ended. Does nothing if there is no such group any more. Once the leader has ended, only
/// those are known that carry the mark of a gated hook: their number alone could be somebody else's by now.
///
/// # Errors
/// If a member may not be signalled, or does not end even by SIGKILL (it hangs in the kernel).
pub fn end_group(leader: ProcessRef, grace: Duration) -> io::Result<()> {
    if drive(leader, Signal::TERM, grace)? || drive(leader, Signal::KILL, GRACE)? {
        return Ok(());
    }
    Err(io::Error::other(format!("processes of group {} do not end", leader.pid)))
}

/// Signals all members, also those born meanwhile, until all have ended or the time is over.
fn drive(leader: ProcessRef, signal: Signal, time: Duration) -> io::Result<bool> {
    let mut told = Vec::new();
    let mut waited = Duration::ZERO;
    // Seen alive at the beginning, a leader's number stays the group's until the last member has ended.
    let led = process::alive(leader);
    loop {
        let members = members(leader, led)?;
        if members.is_empty() {
            return Ok(true);
        }
        for member in members {
            if !told.contains(&member) {
                process::signal(member, signal)?;
                // Someone who is stopped takes no SIGTERM until continued.
                process::signal(member, Signal::CONT)?;
                told.push(member);
            }
        }
        if waited >= time {
            return Ok(false);
        }
        thread::sleep(STEP);
        waited += STEP;
    }
}

fn members(leader: ProcessRef, led: bool) -> io::Result<Vec<ProcessRef>> {
    let mut found = Vec::new();
    for pid in stat::numbers("/proc".as_ref())? {
        let Ok(stat) = stat::read(pid) else { continue };
        if stat.group == leader.pid && !stat.has_ended() && (led || has_mark(pid, leader)) {
            found.push(ProcessRef { pid, start: stat.start });
        }
    }
    Ok(found)
}

fn has_mark(pid: u32, leader: ProcessRef) -> bool {
    let wanted = format!("{MARK}={}", mark(leader));
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|b| *b == 0).any(|variable| variable == wanted.as_bytes())
}
