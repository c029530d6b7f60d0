//! How processes can be held, found out without holding anybody.
//!
//! Crash story: reads only. What is true now may not be at the freeze; the holds check again.

use std::{fs, fs::File, io};

use model::{
    inventory::ProcessSelector,
    plan::{ProcessFacts, ProcessMethod},
    undo::ProcessRef,
};
use rustix::process::{Pid, test_kill_process};

use super::{describe, find};
use crate::hold::{cgroup, ptrace_is_allowed};

/// Finds the application's processes and the best way to hold them.
#[must_use]
pub fn facts(selector: &ProcessSelector) -> ProcessFacts {
    let processes = match find(selector) {
        Ok(processes) => processes,
        Err(error) => {
            let why = match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            };
            return ProcessFacts { pids: Vec::new(), method: None, why, unknown: true };
        }
    };
    let pids = processes.iter().map(|p| p.pid).collect();
    if processes.is_empty() {
        let why = format!("no process of {} runs", describe(selector));
        return ProcessFacts { pids, method: None, why, unknown: false };
    }
    let (method, why) = choose(&processes);
    ProcessFacts { pids, method, why, unknown: false }
}

fn choose(processes: &[ProcessRef]) -> (Option<ProcessMethod>, String) {
    let Err(no_ptrace) = traceable(processes) else {
        return (Some(ProcessMethod::Ptrace), "ptrace is allowed, and ends with its holder".to_owned());
    };
    let no_freezer = match cgroup::of_exactly(processes) {
        Ok(group) => {
            let cgroup = group.directory().to_owned();
            return (Some(ProcessMethod::Freezer { cgroup }), no_ptrace);
        }
        Err(why) => why,
    };
    match processes.iter().find_map(|p| unsignallable(*p)) {
        None => (Some(ProcessMethod::Stop), format!("{no_ptrace}; {no_freezer}")),
        Some(why) => (None, format!("{no_ptrace}; {no_freezer}; {why}")),
    }
}

/// Opening `mem` is decided by the same check as attaching (`PTRACE_MODE_ATTACH`, ptrace(2)) and attaches
/// nobody.
fn traceable(processes: &[ProcessRef]) -> Result<(), String> {
    if !ptrace_is_allowed() {
        return Err("ptrace is forbidden to this program here (a seccomp filter)".to_owned());
    }
    for process in processes {
        let pid = process.pid;
        match File::open(format!("/proc/{pid}/mem")) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("process {pid} may not be traced by us ({error})")),
        }
        if let Some(tracer) = tracer_of(pid, pid).filter(|tracer| *tracer != 0) {
            return Err(format!("process {pid} is traced by process {tracer} already"));
        }
    }
    Ok(())
}

/// Who traces a thread: 0 if nobody; `None` if the thread is gone.
pub(crate) fn tracer_of(pid: u32, tid: u32) -> Option<u32> {
    let status = fs::read(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()
}

fn unsignallable(process: ProcessRef) -> Option<String> {
    let pid = Pid::from_raw(i32::try_from(process.pid).ok()?)?;
    match test_kill_process(pid) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => None,
        Err(error) => Some(format!("process {} may not be signalled by us either ({error})", process.pid)),
    }
}
