//! Which processes belong to an application.
//!
//! Crash story: reads only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use model::{inventory::ProcessSelector, pathtext, undo::ProcessRef};

use super::{ProcessError, stat};

/// The processes of a systemd unit, or of a pid file with all their descendants, in the order of their ids;
/// empty if none runs.
///
/// # Errors
/// If the pid file cannot be used, or if the unit's name does not tell one control group.
pub fn find(selector: &ProcessSelector) -> Result<Vec<ProcessRef>, ProcessError> {
    match selector {
        ProcessSelector::Unit(unit) => of_unit(unit),
        ProcessSelector::PidFile(path) => of_pid_file(path),
    }
}

/// The selector as people call it: the unit's name, or the path of the pid file.
#[must_use]
pub fn describe(selector: &ProcessSelector) -> String {
    match selector {
        ProcessSelector::Unit(unit) => unit.clone(),
        ProcessSelector::PidFile(path) => pathtext::show(path),
    }
}

pub(super) fn all() -> Result<Vec<u32>, ProcessError> {
    stat::numbers(Path::new("/proc")).map_err(|source| ProcessError::Proc { path: "/proc".into(), source })
}

fn of_unit(unit: &str) -> Result<Vec<ProcessRef>, ProcessError> {
    let mut groups = BTreeSet::new();
    let mut found = BTreeSet::new();
    for pid in all()? {
        let Some(process) = super::process_ref(pid) else { continue };
        // Gone meanwhile, or hidden from us: then it is not ours to hold either.
        let Ok(text) = fs::read(format!("/proc/{pid}/cgroup")) else { continue };
        let text = String::from_utf8_lossy(&text);
        if let Some(group) = unit_group(&text, unit) {
            groups.insert(group);
            found.insert(process);
        }
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
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        // A daemon removes its pid file when it ends.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ProcessError::PidFile { path: path.into(), source }),
    };
    let pid = text
        .split_ascii_whitespace()
        .next()
        .and_then(|word| word.parse::<u32>().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| ProcessError::NoPid { path: path.into() })?;
    with_descendants(pid)
}

/// A process and all its descendants, read again until two readings agree: a child born during a reading
/// may be missed by it.
fn with_descendants(pid: u32) -> Result<Vec<ProcessRef>, ProcessError> {
    let mut before = descendants(pid)?;
    // Whoever forks without end is caught by the hold, which looks again after it has stopped them.
    for _ in 0..8 {
        let now = descendants(pid)?;
        if now == before {
            break;
        }
        before = now;
    }
    Ok(before.into_iter().collect())
}

fn descendants(root: u32) -> Result<BTreeSet<ProcessRef>, ProcessError> {
    let mut children: BTreeMap<u32, Vec<ProcessRef>> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for pid in all()? {
        let Ok(stat) = stat::read(pid) else { continue };
        if stat.has_ended() {
            continue;
        }
        let process = ProcessRef { pid, start: stat.start };
        if pid == root {
            found.insert(process);
        }
        children.entry(stat.parent).or_default().push(process);
    }
    let mut open: Vec<u32> = found.iter().map(|p| p.pid).collect();
    while let Some(pid) = open.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            if found.insert(child) {
                open.push(child.pid);
            }
        }
    }
    Ok(found)
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

    use super::{ancestors, find, unit_group};

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
    fn our_parent_is_an_ancestor() {
        assert_eq!(ancestors().first(), Some(&std::os::unix::process::parent_id()));
        assert!(!ancestors().contains(&std::process::id()));
    }
}
