//! The directories that belong to a server: what its variables say, and where links lead.
//!
//! A directory inside another that is stored is not listed again. A directory that holds more than this server's files (one
//! above the data directory, `/tmp`) is refused: storing it would store strangers, leaving it out would lose tables.
//!
//! Crash story: reads only.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
};

use model::{
    pathtext,
    plan::Refusal,
    server::{RootFacts, RootRole},
};
use os::{
    extents::clone_works,
    mounts::{Mount, Mounts},
};
use rustix::fs::{Access, access};

use super::{
    exclude,
    variables::Variables,
    walk::{Walked, leads, walk},
};

/// More directories than this do not belong to one server by intention.
const MOST: usize = 200;

/// All directories of a server, and what is in them.
pub(super) struct Roots {
    pub(super) facts: Vec<RootFacts>,
    pub(super) walked: Walked,
    pub(super) notes: Vec<String>,
}

/// Finds them, the data directory first, those named in `more` too. `staging` says where clones of files in a directory could
/// be put, best first.
pub(super) fn find(
    variables: &Variables,
    more: Vec<(RootRole, PathBuf)>,
    staging: &dyn Fn(&Path) -> Vec<PathBuf>,
) -> Result<Roots, Refusal> {
    let data = variables.path("datadir").ok_or_else(|| unseen(Path::new("datadir"), "is not told"))?;
    let data = real(&data)?;
    let mounts = Mounts::read().map_err(|error| unseen(&data, &error.to_string()))?;
    let mut roots = Roots { facts: vec![], walked: Walked::default(), notes: vec![] };
    let mut queue: VecDeque<(RootRole, PathBuf)> = VecDeque::from([(RootRole::Data, data.clone())]);
    for (role, path) in named(variables).into_iter().chain(more) {
        queue.push_back((role, real(&path)?));
    }
    while let Some((role, path)) = queue.pop_front() {
        if roots.facts.iter().any(|known| path.starts_with(&known.path)) {
            continue;
        }
        refuse_shared(&path, &data, role)?;
        if roots.facts.len() >= MOST {
            return Err(unseen(
                &path,
                &format!("is one of more than {MOST} directories outside the data directory"),
            ));
        }
        roots.facts.retain(|known| !known.path.starts_with(&path) || known.role == RootRole::Data);
        let exclude = exclude::patterns(variables, &path);
        let walked = walk(&path, &exclude, &mounts).map_err(|error| unseen(&path, &error.to_string()))?;
        queue.extend(outside(&walked.targets).map(|root| (RootRole::External, root)));
        roots.facts.push(look(role, path, exclude, &mounts, staging));
        roots.walked.add(walked);
    }
    // What was being dropped meanwhile is gone by now.
    roots.walked.broken.retain(|link| leads(link).is_some_and(|to| to.canonicalize().is_err()));
    roots.notes = notes(&roots);
    Ok(roots)
}

/// Where link targets lie: a directory is itself, a file is in one.
fn outside(targets: &BTreeSet<PathBuf>) -> impl Iterator<Item = PathBuf> {
    let root = |target: &PathBuf| {
        if target.is_dir() { Some(target.clone()) } else { target.parent().map(Path::to_owned) }
    };
    targets.iter().filter_map(root).collect::<BTreeSet<_>>().into_iter()
}

/// What the variables name, <https://mariadb.com/kb/en/innodb-system-variables/>.
fn named(variables: &Variables) -> Vec<(RootRole, PathBuf)> {
    let mut found = vec![];
    for (name, role) in [
        ("innodb_data_home_dir", RootRole::SystemTablespace),
        ("innodb_log_group_home_dir", RootRole::Redo),
        ("innodb_undo_directory", RootRole::Undo),
        ("aria_log_dir_path", RootRole::AriaLog),
        ("rocksdb_datadir", RootRole::Rocks),
        ("rocksdb_wal_dir", RootRole::Rocks),
        ("file_key_management_filename", RootRole::Keyring),
    ] {
        found.extend(variables.path(name).map(|path| (role, path)));
    }
    let files = variables.get("innodb_data_file_path").unwrap_or_default();
    let files = files.split(';').filter_map(|file| file.split(':').next()).map(Path::new);
    for file in files.filter(|file| file.is_absolute()) {
        found.extend(file.parent().map(|dir| (RootRole::SystemTablespace, dir.to_owned())));
    }
    let filekey = variables.get("file_key_management_filekey");
    if let Some(path) = filekey.and_then(|value| value.strip_prefix("FILE:")) {
        found.push((RootRole::Keyring, variables.place(path)));
    }
    found
}

fn real(path: &Path) -> Result<PathBuf, Refusal> {
    path.canonicalize().map_err(|error| unseen(path, &error.to_string()))
}

fn unseen(path: &Path, why: &str) -> Refusal {
    Refusal {
        what: format!("has files in {}, which cannot be looked at: {why}", pathtext::show(path)),
        remedy: "run as root on the machine, and in the container, where the server runs".into(),
    }
}

/// A directory that others use too cannot be stored as the server's own.
fn refuse_shared(path: &Path, data: &Path, role: RootRole) -> Result<(), Refusal> {
    const OF_ALL: [&str; 14] = [
        "/", "/bin", "/boot", "/dev", "/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/usr",
        "/var", "/var/tmp",
    ];
    let is_above = role != RootRole::Data && data.starts_with(path);
    if (is_above || OF_ALL.iter().any(|common| Path::new(common) == path)) && !path.is_file() {
        return Err(Refusal {
            what: format!("has files in {}, which others use too", pathtext::show(path)),
            remedy: "give them a directory of their own (ALTER TABLE … DATA DIRECTORY, innodb_data_home_dir)"
                .into(),
        });
    }
    Ok(())
}

fn look(
    role: RootRole,
    path: PathBuf,
    exclude: Vec<String>,
    mounts: &Mounts,
    staging: &dyn Fn(&Path) -> Vec<PathBuf>,
) -> RootFacts {
    let below = mounts.below(&path).into_iter().filter(|mount| !mount.is_pseudo());
    // What another mount covers cannot be seen.
    let nested_mounts = below.map(|mount| mount.point.clone()).filter(|point| point.exists()).collect();
    let filesystem = mounts.of(&path).map(|mount: &Mount| mount.filesystem.clone()).unwrap_or_default();
    let places = staging(&path);
    let directory = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(&path) };
    let clones_into = places.iter().find(|place| clone_works(directory, existing(place)));
    let reflink = clones_into.is_some();
    let writable = |place: &&PathBuf| access(existing(place), Access::WRITE_OK).is_ok();
    let staging = clones_into.or_else(|| places.iter().find(writable)).cloned();
    let volume = crate::fs::volume_of(&path);
    RootFacts { role, path, exclude, filesystem, nested_mounts, volume, reflink, staging }
}

/// A place for clones may have to be made first.
fn existing(place: &Path) -> &Path {
    place.ancestors().find(|dir| dir.is_dir()).unwrap_or(place)
}

fn notes(roots: &Roots) -> Vec<String> {
    let mut notes = vec![];
    let mut outside: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for root in roots.facts.iter().skip(1) {
        let what = match root.role {
            RootRole::External => "tables (DATA DIRECTORY or links)",
            RootRole::Keyring => "keys of encrypted tables",
            _ => "files",
        };
        outside.entry(what).or_default().push(pathtext::show(&root.path));
    }
    for (what, paths) in outside {
        notes.push(format!(
            "{what} outside its data directory are stored too, and these directories replaced whole by a restore in \
             place, so they should be this server's alone: {}",
            paths.join(", ")
        ));
    }
    if let Some(data) = roots.facts.first() {
        let logs: Vec<&str> =
            data.exclude.iter().filter(|glob| !glob.contains("lost+found")).map(String::as_str).collect();
        notes.push(format!(
            "left out of its data directory: binary and relay logs, logs for people, temporary files ({})",
            logs.join(", ")
        ));
    }
    if roots.walked.leftovers > 0 {
        notes.push(format!(
            "{} #sql files of statements that run or were cut short are kept: the copy's recovery needs them",
            roots.walked.leftovers
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use model::server::RootRole;

    use super::{super::variables::Variables, find, refuse_shared};

    #[test]
    fn directories_are_listed_once_and_links_lead_to_more() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let at = |name: &str| base.join(name);
        for name in ["data/d", "data/undo", "redo", "far/d", "sys", "keys"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("far/d/t.ibd"), "x").unwrap();
        fs::write(at("data/d/t.isl"), at("far/d/t.ibd").display().to_string()).unwrap();
        fs::write(at("keys/k"), "1;00").unwrap();
        symlink(at("data"), at("link")).unwrap();
        let text = |name: &str| at(name).display().to_string();
        let variables = Variables::of(&[
            ("datadir", &text("link")),
            ("innodb_log_group_home_dir", &text("redo")),
            ("innodb_undo_directory", "undo"),
            ("innodb_data_home_dir", ""),
            ("innodb_data_file_path", &format!("{}:12M;{}:1M:autoextend", text("sys/a"), text("sys/b"))),
            ("aria_log_dir_path", "./"),
            ("file_key_management_filename", &text("keys/k")),
        ]);
        let roots =
            find(&variables, vec![], &|_| vec![]).unwrap_or_else(|refusal| panic!("{}", refusal.what));
        let found: Vec<_> = roots.facts.iter().map(|root| (root.role, root.path.clone())).collect();
        let expected = [
            (RootRole::Data, at("data")),
            (RootRole::Redo, at("redo")),
            (RootRole::Keyring, at("keys/k")),
            (RootRole::SystemTablespace, at("sys")),
            (RootRole::External, at("far/d")),
        ];
        assert_eq!(found, expected);
        assert!(roots.notes.iter().any(|note| note.contains("far/d")), "{:?}", roots.notes);
        assert_eq!(roots.walked.files, 3);
    }

    #[test]
    fn directories_of_others_are_refused() {
        let refused =
            |path: &str, role| refuse_shared(Path::new(path), Path::new("/srv/db/data"), role).is_err();
        assert!(refused("/tmp", RootRole::External) && refused("/srv/db", RootRole::Redo));
        assert!(!refused("/srv/db/data", RootRole::Data) && !refused("/mnt/ext", RootRole::External));
    }
}
