//! What concerns several applications at once: names, sources, and the partition.
//!
//! Crash story: pure functions, no effects. Paths are compared as they are written: symbolic links are not
//! known here.

use std::path::Path;

use globset::Glob;

use crate::{
    inventory::{
        Database, Directory, InventoryError, Origin, PathRole, ServerDatabase, application::Parsed,
        server::collision, values::pattern,
    },
    pathtext,
};

/// Everything wrong between the applications, and between them and the partition (if it is known).
pub(super) fn validate(partition: Option<&Path>, applications: &[Parsed]) -> Vec<InventoryError> {
    let mut errors = Vec::new();
    for (index, later) in applications.iter().enumerate() {
        for earlier in &applications[..index] {
            errors.extend(same_name(earlier, later));
            errors.extend(same_relpath(earlier, later));
            errors.extend(shared_sources(earlier, later));
            errors.extend(shared_servers(earlier, later));
        }
        errors.extend(listed_twice(later));
        errors.extend(one_server_twice(later));
        if let Some(partition) = partition {
            errors.extend(own_backups(later, partition));
        }
    }
    errors
}

fn error(at: &Origin, what: String, remedy: &str) -> InventoryError {
    InventoryError { file: at.file.clone(), line: at.line, what, remedy: remedy.to_owned() }
}

/// `file:line` of something named earlier.
fn place(file: &Path, line: usize) -> String {
    format!("{}:{line}", pathtext::show(file))
}

fn same_name(earlier: &Parsed, later: &Parsed) -> Option<InventoryError> {
    let name = &later.application.name;
    (earlier.application.name == *name).then(|| InventoryError {
        file: later.file.clone(),
        line: later.name_line,
        what: format!(
            "name {name} is taken by the application at {}",
            place(&earlier.file, earlier.name_line)
        ),
        remedy: "give each application a name of its own".to_owned(),
    })
}

fn same_relpath(earlier: &Parsed, later: &Parsed) -> Option<InventoryError> {
    let relpath = &later.application.relpath;
    (earlier.application.relpath == *relpath).then(|| InventoryError {
        file: later.file.clone(),
        line: later.relpath_line,
        what: format!(
            "relpath {relpath} is taken by application {} at {}",
            earlier.application.name,
            place(&earlier.file, earlier.relpath_line)
        ),
        remedy: "a relpath is an application's identity: give each its own".to_owned(),
    })
}

fn sources(parsed: &Parsed) -> impl Iterator<Item = &Origin> {
    parsed.origins.iter().filter(|o| matches!(o.role, PathRole::Directory | PathRole::Database))
}

fn shared_sources(earlier: &Parsed, later: &Parsed) -> Vec<InventoryError> {
    let mut errors = Vec::new();
    for ours in sources(later) {
        for theirs in sources(earlier) {
            if let Some(relation) = relation(later, ours, earlier, theirs) {
                let what = format!(
                    "{} {relation} {} of application {} at {}",
                    pathtext::show(&ours.path),
                    pathtext::show(&theirs.path),
                    earlier.application.name,
                    place(&theirs.file, theirs.line)
                );
                let remedy = "a source belongs to one application: remove one of the two, join the \
                              applications, or exclude the inner one from the outer directory";
                errors.push(error(ours, what, remedy));
            }
        }
    }
    errors
}

/// How a source of one application collides with one of another, if it does.
fn relation(later: &Parsed, ours: &Origin, earlier: &Parsed, theirs: &Origin) -> Option<&'static str> {
    if ours.path == theirs.path {
        Some("is the same source as")
    } else if holds(earlier, theirs, &ours.path) {
        Some("lies inside")
    } else if holds(later, ours, &theirs.path) {
        Some("contains")
    } else {
        None
    }
}

/// Whether a source is a directory that stores `path` too.
fn holds(parsed: &Parsed, outer: &Origin, path: &Path) -> bool {
    outer.role == PathRole::Directory
        && path.starts_with(&outer.path)
        && !parsed.application.directories.iter().any(|d| d.path == outer.path && leaves_out(d, path))
}

/// Whether a directory's patterns leave out `path`, which lies inside it, with all below it.
pub(super) fn leaves_out(directory: &Directory, path: &Path) -> bool {
    let Ok(relative) = path.strip_prefix(&directory.path) else { return false };
    let matches = |glob: &Glob| {
        let matcher = glob.compile_matcher();
        relative.ancestors().filter(|a| !a.as_os_str().is_empty()).any(|a| matcher.is_match(a))
    };
    // `cache/**` does not match `cache` itself, but leaves nothing of it.
    let below = |glob: &Glob| glob.glob().strip_suffix("/**").and_then(|stem| pattern(stem).ok());
    directory.exclude.iter().any(|glob| matches(glob) || below(glob).is_some_and(|stem| matches(&stem)))
}

/// The servers of an application with where they are named.
fn servers(parsed: &Parsed) -> Vec<(&ServerDatabase, &Origin)> {
    let servers = parsed.application.databases.iter().filter_map(|database| match database {
        Database::Server(server) => Some(&**server),
        Database::Sqlite { .. } => None,
    });
    servers.zip(parsed.origins.iter().filter(|o| o.role == PathRole::Server)).collect()
}

fn shared_servers(earlier: &Parsed, later: &Parsed) -> Vec<InventoryError> {
    let (theirs, ours) = (servers(earlier), servers(later));
    ours.iter().flat_map(|ours| theirs.iter().filter_map(|theirs| collision(*ours, *theirs))).collect()
}

fn one_server_twice(parsed: &Parsed) -> Vec<InventoryError> {
    let all = servers(parsed);
    let pairs =
        all.iter().enumerate().flat_map(|(index, later)| all[..index].iter().map(move |e| (e, later)));
    let same = pairs.filter(|((earlier, _), (later, _))| earlier.access.address == later.access.address);
    same.map(|(_, (server, origin))| {
        let what = format!("server {} is listed twice in one application", server.access.address);
        error(origin, what, "join the two entries")
    })
    .collect()
}

fn listed_twice(parsed: &Parsed) -> Vec<InventoryError> {
    let all: Vec<&Origin> = sources(parsed).collect();
    let mut errors = Vec::new();
    for (index, later) in all.iter().enumerate() {
        if let Some(earlier) = all[..index].iter().find(|o| o.path == later.path) {
            let what = format!(
                "{} is listed twice, first at {}",
                pathtext::show(&later.path),
                place(&earlier.file, earlier.line)
            );
            errors.push(error(later, what, "remove one of the two"));
        }
    }
    errors
}

/// Backups that would store themselves.
fn own_backups(parsed: &Parsed, partition: &Path) -> Vec<InventoryError> {
    let mut errors = Vec::new();
    for source in sources(parsed) {
        let shown = pathtext::show(&source.path);
        if holds(parsed, source, partition) {
            let what = format!("{shown} contains the partition {}", pathtext::show(partition));
            let remedy = "exclude the partition from the directory, or keep backups elsewhere";
            errors.push(error(source, what, remedy));
        }
        if ["local", "remote", "state"].iter().any(|own| source.path.starts_with(partition.join(own))) {
            let what = format!("{shown} lies among the backups in {}", pathtext::show(partition));
            errors.push(error(source, what, "keep backups and what is backed up apart"));
        }
    }
    errors
}
