//! Which processes belong to an application.
//!
//! Crash story: reads only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    fs::File,
    io::{self, Read},
    path::Path,
    time::{Duration, SystemTime},
};

use model::{inventory::ProcessSelector, pathtext, undo::ProcessRef};
use rustix::time::{ClockId, clock_gettime};

use super::{ProcessError, stat};

/// How much older than its process a pid file may seem. A process writes it after its start, but the time of
/// the boot is told in whole seconds.
const WRITTEN_EARLY: Duration = Duration::from_secs(2);

/// The processes of a systemd unit, or of a pid file with all their descendants, in the order of their ids;
/// empty if none runs.
///
/// # Errors
/// If the pid file cannot be used, or if the unit's name does not tell one control group.
pub fn find(selector: &ProcessSelector) -> Result<Vec<ProcessRef>, ProcessError> {
    match selector {
        ProcessSelector::Unit(unit) => of_unit(unit),
        ProcessSelector::PidFile(path) => of_pid_file(path),
        ProcessSelector::Process(process) => {
            Ok(super::process_ref(process.pid).filter(|found| found == process).into_iter().collect())
        }
    }
}

/// The selector as people call it: the unit's name, or the path of the pid file.
#[must_use]
pub fn describe(selector: &ProcessSelector) -> String {
    match selector {
        ProcessSelector::Unit(unit) => unit.clone(),
        ProcessSelector::PidFile(path) => pathtext::show(path),
        ProcessSelector::Process(process) => format!("process {}", process.pid),
    }
}

pub(super) fn all() -> Result<Vec<u32>, ProcessError> {
    stat::numbers(Path::new("/proc")).map_err(|source| ProcessError::Proc { path: "/proc".into(), source })
}

fn of_unit(unit: &str) -> Result<Vec<ProcessRef>, ProcessError> {
    let mut groups = BTreeSet::new();
    let mut found = BTreeSet::new();
    for pid in all()? {
        // Gone meanwhile, or hidden from us: then it is not ours to hold either.
        let Ok(text) = fs::read(format!("/proc/{pid}/cgroup")) else { continue };
        let text = String::from_utf8_lossy(&text);
        let Some(group) = unit_group(&text, unit) else { continue };
        let Some(process) = super::process_ref(pid) else { continue };
        groups.insert(group);
        found.insert(process);
    }
    if groups.len() > 1 {
        let groups = groups.into_iter().collect::<Vec<_>>().join(", ");
        return Err(ProcessError::Ambiguous { unit: unit.to_owned(), groups });
    }
    Ok(found.into_iter().collect())
}

/// The unit's control group among the lines of `/proc/PID/cgroup` (cgroups(7)): that of version 2 (`0::`) or
/// of systemd's own hierarchy of version 1. Those of controllers may lie elsewhere.
fn unit_group(text: &str, unit: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("0::").or_else(|| Some(line.split_once(":name=systemd:")?.1)))
        .find_map(|path| {
            let mut group = String::new();
            for component in path.split('/').skip(1) {
                group.push('/');
                group.push_str(component);
                if component == unit {
                    return Some(group);
                }
            }
            None
        })
}

fn of_pid_file(path: &Path) -> Result<Vec<ProcessRef>, ProcessError> {
    match root_of(path)? {
        Some(root) => with_descendants(root),
        None => Ok(Vec::new()),
    }
}

/// The process that a pid file names; `None` if there is no file or that process has ended.
///
/// # Errors
/// If the file cannot be used, or is older than the process that has the number now.
pub(crate) fn root_of(path: &Path) -> Result<Option<ProcessRef>, ProcessError> {
    let unreadable = |source| ProcessError::PidFile { path: path.into(), source };
    let (text, written) = match read_with_time(path) {
        Ok(read) => read,
        // A daemon removes its pid file when it ends.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(unreadable(source)),
    };
    let pid = text
        .split_ascii_whitespace()
        .next()
        .and_then(|word| word.parse::<u32>().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| ProcessError::NoPid { path: path.into() })?;
    let Some(root) = super::process_ref(pid) else { return Ok(None) };
    let started = started_at(root)?;
    if started > written + WRITTEN_EARLY {
        return Err(ProcessError::StalePidFile { path: path.into(), pid });
    }
    Ok(Some(root))
}

fn read_with_time(path: &Path) -> io::Result<(String, SystemTime)> {
    let mut file = File::open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((text, file.metadata()?.modified()?))
}

/// When a process started, by the wall clock: `btime` of proc_stat(5) is in whole seconds, field 22 of
/// proc_pid_stat(5) in clock ticks since then.
fn started_at(process: ProcessRef) -> Result<SystemTime, ProcessError> {
    let path = Path::new("/proc/stat");
    let failed = |source| ProcessError::Proc { path: path.into(), source };
    let stat = fs::read_to_string(path).map_err(failed)?;
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
    let boot =
        boot.ok_or_else(|| failed(io::Error::other("it does not tell when the machine was booted")))?;
    let since = Duration::from_millis(process.start.saturating_mul(1000) / ticks_per_second());
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(boot) + since)
}

/// What [`ProcessRef::start`] would be of a process that started now: clock ticks since boot.
#[must_use]
pub fn start_of_a_process_now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    let ticks = ticks_per_second();
    seconds.saturating_mul(ticks).saturating_add(nanos.saturating_mul(ticks) / 1_000_000_000)
}

fn ticks_per_second() -> u64 {
    // SAFETY: sysconf takes a number and gives one; no memory is handed over.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    // 100 is USER_HZ on every architecture that we know.
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// A process and all its descendants. A child born during the reading may be missed: the holds look again
/// when all known stand still.
fn with_descendants(root: ProcessRef) -> Result<Vec<ProcessRef>, ProcessError> {
    let reading = Reading::of_all()?;
    let settled = reading.all_parents_were_seen;
    let mut before = reading.descendants(root);
    if settled {
        return Ok(before.into_iter().collect());
    }
    // Whoever lost his parent while we read may have been handed to one of the descendants; or his parent is
    // hidden from us, then another reading says the same.
    for _ in 0..8 {
        let now = Reading::of_all()?.descendants(root);
        if now == before {
            break;
        }
        before = now;
    }
    Ok(before.into_iter().collect())
}

/// One reading of all processes.
struct Reading {
    children: BTreeMap<u32, Vec<ProcessRef>>,
    alive: BTreeSet<ProcessRef>,
    all_parents_were_seen: bool,
}

impl Reading {
    fn of_all() -> Result<Self, ProcessError> {
        let mut children: BTreeMap<u32, Vec<ProcessRef>> = BTreeMap::new();
        let mut alive = BTreeSet::new();
        for pid in all()? {
            let Ok(stat) = stat::read(pid) else { continue };
            if stat.has_ended() {
                continue;
            }
            let process = ProcessRef { pid, start: stat.start };
            alive.insert(process);
            children.entry(stat.parent).or_default().push(process);
        }
        let pids: BTreeSet<u32> = alive.iter().map(|p| p.pid).collect();
        // 0 is the parent of those that come from outside.
        let all_parents_were_seen = children.keys().all(|parent| *parent == 0 || pids.contains(parent));
        Ok(Self { children, alive, all_parents_were_seen })
    }

    fn descendants(mut self, root: ProcessRef) -> BTreeSet<ProcessRef> {
        let mut found = BTreeSet::new();
        let mut open = Vec::new();
        if self.alive.contains(&root) {
            found.insert(root);
            open.push(root.pid);
        }
        while let Some(pid) = open.pop() {
            for child in self.children.remove(&pid).unwrap_or_default() {
                if found.insert(child) {
                    open.push(child.pid);
                }
            }
        }
        found
    }
}

/// The ids of our ancestors, nearest first.
pub(crate) fn ancestors() -> Vec<u32> {
    let mut found = Vec::new();
    let mut pid = std::process::id();
    while let Ok(stat) = stat::read(pid) {
        if stat.parent == 0 || found.contains(&stat.parent) {
            break;
        }
        pid = stat.parent;
        found.push(pid);
    }
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use model::inventory::ProcessSelector;

    use super::{ancestors, find, root_of, unit_group};
    use crate::process::{ProcessError, this_process};

    #[test]
    fn a_unit_is_a_whole_component() {
        let v2 = "0::/system.slice/hydro.service/workers\n";
        assert_eq!(unit_group(v2, "hydro.service").as_deref(), Some("/system.slice/hydro.service"));
        assert_eq!(unit_group(v2, "dro.service"), None);
        let v1 = "4:memory:/hydro.service\n1:name=systemd:/system.slice/other.service\n";
        assert_eq!(unit_group(v1, "hydro.service"), None);
        let v1 = "1:name=systemd:/system.slice/hydro.service\n";
        assert_eq!(unit_group(v1, "hydro.service").as_deref(), Some("/system.slice/hydro.service"));
    }

    #[test]
    fn a_pid_file_names_a_process_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let selector = ProcessSelector::PidFile(file.clone());
        assert_eq!(find(&selector).unwrap(), []);

        let mut child = std::process::Command::new("sh").args(["-c", "sleep 100 & wait"]).spawn().unwrap();
        fs::write(&file, format!("{}\n", child.id())).unwrap();
        let mut found = find(&selector).unwrap();
        for _ in 0..500 {
            if found.len() == 2 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            found = find(&selector).unwrap();
        }
        assert_eq!(found.len(), 2);
        assert!(found.iter().any(|p| p.pid == child.id()));
        for process in found {
            assert!(super::super::signal(process, rustix::process::Signal::KILL).unwrap());
        }
        child.wait().unwrap();
        assert_eq!(find(&selector).unwrap(), []);

        fs::write(&file, "none").unwrap();
        assert!(find(&selector).unwrap_err().to_string().contains("does not hold a process id"));
    }

    #[test]
    fn a_pid_file_older_than_the_process_of_that_number_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        fs::write(&file, std::process::id().to_string()).unwrap();
        assert_eq!(root_of(&file).unwrap(), Some(this_process().unwrap()));

        let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        fs::File::options().write(true).open(&file).unwrap().set_modified(hour_ago).unwrap();
        let error = find(&ProcessSelector::PidFile(file.clone())).unwrap_err();
        assert!(matches!(error, ProcessError::StalePidFile { pid, .. } if pid == std::process::id()));

        // Whoever had the number has ended: then nothing runs, however old the file is.
        fs::write(&file, "4194305").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(hour_ago).unwrap();
        assert_eq!(root_of(&file).unwrap(), None);
    }

    #[test]
    fn our_parent_is_an_ancestor() {
        assert_eq!(ancestors().first(), Some(&std::os::unix::process::parent_id()));
        assert!(!ancestors().contains(&std::process::id()));
    }
}
