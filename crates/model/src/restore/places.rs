//! Which objects of a backup go where.
//!
//! Crash story: pure functions, no effects.

use std::{collections::BTreeSet, path::Component};

use super::{
    Kind, Listing, Path, PathBuf, Place, PlaceKind, Request, StoredBackup, Target, pathtext, refused, server,
    sidecars,
};
use crate::{id::SourceId, port::Failure};

/// As many symbolic links as Linux follows in one path (`MAXSYMLINKS`, path_resolution(7)).
const MOST_LINKS: usize = 40;

/// The objects that this restore would put somewhere; those inside another go with it.
///
/// # Errors
/// If the backup does not say what it holds, or does not hold what it says.
pub fn places(request: &Request, listing: &Listing) -> Result<Vec<Place>, Failure> {
    let pins = match &request.target {
        Target::Directory { dir } if !request.only.is_empty() => return some(request, dir, listing),
        Target::Directory { dir } => {
            let everything = Place { from: PathBuf::from("/"), to: dir.clone(), kind: PlaceKind::Tree };
            return Ok(vec![everything]);
        }
        Target::InPlace { .. } => pinned(&request.backup)?,
    };
    let mut found: Vec<Place> = Vec::new();
    let mut links = BTreeSet::new();
    for (source, path) in pins {
        if !server::is_put_in_place(request, &source, &path)? {
            continue;
        }
        let root = resolve(listing, &path, &mut links)?;
        let entry = listing.find(&root).ok_or_else(|| lacks(&path))?;
        let kind = match entry.kind {
            Kind::Dir => PlaceKind::Tree,
            _ if is_sqlite(&source) => PlaceKind::Database,
            _ => PlaceKind::File,
        };
        found.push(Place { from: root.clone(), to: root, kind });
    }
    for link in links {
        found.push(Place { from: link.clone(), to: link, kind: PlaceKind::Link });
    }
    found.sort_by(|a, b| crate::entry::tree_order(&a.from, &b.from));
    found.dedup_by(|later, first| later.from == first.from);
    Ok(without_nested(found))
}

/// The databases of a backup by their original paths, wherever they lie, links resolved.
///
/// # Errors
/// As [`places`].
pub fn databases(backup: &StoredBackup, listing: &Listing) -> Result<Vec<PathBuf>, Failure> {
    pinned(backup)?
        .into_iter()
        .filter(|(source, _)| is_sqlite(source))
        .map(|(_, path)| resolve(listing, &path, &mut BTreeSet::new()))
        .collect()
}

/// Some objects below a directory, each under its original path.
fn some(request: &Request, dir: &Path, listing: &Listing) -> Result<Vec<Place>, Failure> {
    let databases = databases(&request.backup, listing)?;
    let place = |from: &PathBuf| {
        let entry = listing.find(from).ok_or_else(|| lacks(from))?;
        let kind = match entry.kind {
            Kind::Dir => PlaceKind::Tree,
            _ if databases.contains(from) => PlaceKind::Database,
            _ => PlaceKind::File,
        };
        let to = dir.join(from.strip_prefix("/").unwrap_or(from));
        Ok(Place { from: from.clone(), to, kind })
    };
    let mut found = request.only.iter().map(place).collect::<Result<Vec<_>, Failure>>()?;
    found.sort_by(|a, b| crate::entry::tree_order(&a.from, &b.from));
    Ok(without_nested(found))
}

fn lacks(path: &Path) -> Failure {
    refused(
        format!("the backup says that it holds {}, but does not", pathtext::show(path)),
        "restore with --to DIR what there is, or use another backup",
    )
}

fn is_sqlite(source: &SourceId) -> bool {
    source.as_str().starts_with("sqlite:")
}

fn pinned(backup: &StoredBackup) -> Result<Vec<(SourceId, PathBuf)>, Failure> {
    let record = backup.record.as_ref().filter(|r| !r.pins.is_empty()).ok_or_else(|| {
        refused(
            format!("backup {} does not say which directories and databases it holds", backup.id.short()),
            "another program made it: restore it with --to DIR",
        )
    })?;
    Ok(record.pins.iter().map(|p| (p.source.clone(), p.path.clone())).collect())
}

fn without_nested(places: Vec<Place>) -> Vec<Place> {
    let mut kept: Vec<Place> = Vec::new();
    for place in places {
        let inside = kept.iter().any(|k| k.kind == PlaceKind::Tree && place.from.starts_with(&k.from));
        let sidecar =
            kept.iter().any(|k| k.kind == PlaceKind::Database && sidecars(&k.from).contains(&place.from));
        if !inside && !sidecar {
            kept.push(place);
        }
    }
    kept
}

/// Follows the symbolic links that the backup itself holds.
fn resolve(listing: &Listing, path: &Path, links: &mut BTreeSet<PathBuf>) -> Result<PathBuf, Failure> {
    let mut todo: Vec<PathBuf> = rest_of(path);
    let mut real = PathBuf::from("/");
    let mut followed = 0;
    while let Some(part) = todo.pop() {
        if part == Path::new("..") {
            real.pop();
            continue;
        }
        let next = real.join(&part);
        let Some(Kind::Symlink(target)) = listing.find(&next).map(|e| &e.kind) else {
            real = next;
            continue;
        };
        followed += 1;
        if followed > MOST_LINKS {
            return Err(refused(
                format!("{} is a circle of symbolic links in the backup", pathtext::show(path)),
                "restore with --to DIR",
            ));
        }
        links.insert(next);
        if target.is_absolute() {
            real = PathBuf::from("/");
        }
        todo.extend(rest_of(target));
    }
    Ok(real)
}

/// The components of a path that lead somewhere, last first.
fn rest_of(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir))
        .map(|c| PathBuf::from(c.as_os_str()))
        .collect()
}
