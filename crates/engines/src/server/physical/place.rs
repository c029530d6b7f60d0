//! Where the files of a copy belong: mariadb-backup gathers what lies in several directories.
//!
//! Crash story: reads only.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry, Kind, Meta, Role},
    plan::ServerPlan,
    port::{Failure, FailureKind},
    problem::Problem,
    server::RootRole,
    size::Bytes,
};
use os::tree::{Found, ancestors, read_entry_meta};

use super::{
    super::dump::entries::{fresh, of_tree},
    tool::is_its_own,
};

/// Permissions where there is no original any more: what MariaDB makes its files and directories with.
const MODES: (u32, u32) = (0o100_660, 0o040_700);

/// What a copy becomes in a backup.
pub(super) struct Placed {
    pub entries: Vec<Entry>,
    pub problems: Vec<Problem>,
}

/// The files of the copy under the originals' paths, with the originals' owners; the logs below `beside`.
///
/// # Errors
/// If the copy cannot be read, or the data directory cannot be looked at.
pub(super) fn entries(
    copy: &Path,
    logs: &Path,
    plan: &ServerPlan,
    beside: &Path,
    now: Timestamp,
) -> Result<Placed, Failure> {
    let unreadable = |path: &Path| {
        let what = format!("{} cannot be read", path.display());
        move |error: io::Error| Failure::new(FailureKind::Other, what, "").because(error)
    };
    let places = Places::of(copy, plan).map_err(unreadable(copy))?;
    let mut placed = Placed { entries: Vec::new(), problems: Vec::new() };
    for root in places.roots() {
        placed.entries.extend(ancestors(root));
        let meta = places.original(root, Kind::Dir).map_err(unreadable(root))?;
        placed.entries.push(entry(root, Kind::Dir, fresh(meta, now), Body::Nothing));
    }
    let mut ahead = vec![PathBuf::new()];
    while let Some(dir) = ahead.pop() {
        for name in fs::read_dir(copy.join(&dir)).map_err(unreadable(copy))? {
            let name = dir.join(name.map_err(unreadable(copy))?.file_name());
            if dir.as_os_str().is_empty() && name.to_str().is_some_and(is_its_own) {
                continue;
            }
            let here = copy.join(&name);
            let (found, found_meta) = read_entry_meta(&here).map_err(unreadable(&here))?;
            let there = places.place(&name).map_err(unreadable(&here))?;
            let Found::Stored(kind @ (Kind::Dir | Kind::File)) = found else {
                placed.problems.push(Problem::missing(there, "mariadb-backup made no file of it", ""));
                continue;
            };
            let original = places.original(&there, kind.clone()).map_err(unreadable(&here))?;
            let meta = Meta { size: found_meta.size, mtime: found_meta.mtime, ..fresh(original, now) };
            let body = if kind == Kind::File { Body::At(here) } else { Body::Nothing };
            if kind == Kind::Dir {
                ahead.push(name);
            }
            placed.entries.push(entry(&there, kind, meta, body));
        }
    }
    placed.entries.extend(of_tree(logs, beside, now).map_err(unreadable(logs))?);
    Ok(placed)
}

fn entry(path: &Path, kind: Kind, meta: Meta, body: Body) -> Entry {
    Entry { path: path.to_owned(), kind, meta, body, role: Role::Content }
}

/// The directories of a server.
struct Places<'a> {
    copy: &'a Path,
    plan: &'a ServerPlan,
    data: &'a Path,
    owner: Meta,
    /// Files of the system tablespace.
    system: Vec<String>,
}

impl<'a> Places<'a> {
    fn of(copy: &'a Path, plan: &'a ServerPlan) -> io::Result<Self> {
        let data = plan.roots.iter().find(|root| root.role == RootRole::Data);
        let data = data.map(|root| root.tree.root.as_path()).ok_or(io::ErrorKind::NotFound)?;
        let (_, owner) = read_entry_meta(data)?;
        let made = fs::read_to_string(copy.join("backup-my.cnf")).unwrap_or_default();
        let path =
            made.lines().find_map(|line| line.strip_prefix("innodb_data_file_path=")).unwrap_or("ibdata1");
        let system = path.split(';').filter_map(|file| file.split(':').next()).map(str::to_owned).collect();
        Ok(Self { copy, plan, data, owner, system })
    }

    /// Directories that the copy's files go to, each once.
    fn roots(&self) -> Vec<&Path> {
        let gathered = |role| !matches!(role, RootRole::External | RootRole::Keyring);
        let mut roots: Vec<&Path> = self
            .plan
            .roots
            .iter()
            .filter(|root| gathered(root.role))
            .map(|root| root.tree.root.as_path())
            .collect();
        roots.sort();
        roots.dedup();
        roots
    }

    fn root(&self, role: RootRole) -> &Path {
        let known = self.plan.roots.iter().find(|root| root.role == role);
        known.map_or(self.data, |root| root.tree.root.as_path())
    }

    /// Where a file of the copy belongs.
    fn place(&self, name: &Path) -> io::Result<PathBuf> {
        let text = name.to_string_lossy();
        if let Ok(below) = name.strip_prefix("#rocksdb") {
            let known = self.plan.roots.iter().find(|root| root.role == RootRole::Rocks);
            let root = known.map_or_else(|| self.data.join("#rocksdb"), |root| root.tree.root.clone());
            return Ok(if below.as_os_str().is_empty() { root } else { root.join(below) });
        }
        if name.components().count() == 1 {
            let role = if text.starts_with("aria_log") {
                RootRole::AriaLog
            } else if text.starts_with("ib_logfile") {
                RootRole::Redo
            } else if is_undo(&text) {
                RootRole::Undo
            } else if self.system.contains(&text.clone().into_owned()) {
                RootRole::SystemTablespace
            } else {
                RootRole::Data
            };
            return Ok(self.root(role).join(name));
        }
        // A table with a DATA DIRECTORY: the link file says where it is.
        let link = self.copy.join(name).with_extension("isl");
        if name.extension().is_some_and(|end| end == "ibd") && link.is_file() {
            let target = fs::read_to_string(&link)?;
            return Ok(PathBuf::from(target.trim()));
        }
        Ok(self.data.join(name))
    }

    /// Owner and permissions of the original, or such as the server would have made it.
    fn original(&self, path: &Path, kind: Kind) -> io::Result<Meta> {
        match read_entry_meta(path) {
            Ok((Found::Stored(found), meta)) if found == kind => Ok(meta),
            Ok(_) => Ok(self.made(&kind)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self.made(&kind)),
            Err(error) => Err(error),
        }
    }

    fn made(&self, kind: &Kind) -> Meta {
        let mode = if *kind == Kind::File { MODES.0 } else { MODES.1 };
        Meta { mode, size: Bytes(0), ..self.owner.clone() }
    }
}

/// `undo001` to `undo127`.
fn is_undo(name: &str) -> bool {
    name.strip_prefix("undo")
        .is_some_and(|digits| digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()))
}
