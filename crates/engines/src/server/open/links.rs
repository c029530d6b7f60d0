//! `.isl` files and symbolic links of a copy: rewritten to where the copy lies.
//!
//! An `.isl` file (InnoDB symbolic link) stands beside the `.frm` of a table made with `DATA DIRECTORY` and holds
//! the absolute path of its `.ibd` as text (<https://mariadb.com/kb/en/innodb-file-per-table-tablespaces/>). MyISAM and
//! Aria use symbolic links for the same, and a whole database can be one.
//!
//! Crash story: each file is replaced by renaming, so a stop leaves some links rewritten and some not. Rewriting again
//! goes on where it stopped: what leads into the copy already is left alone.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{MetadataExt, lchown, symlink},
    },
    path::{Path, PathBuf},
};

use model::{
    pathtext,
    port::{Failure, FailureKind},
};
use os::staging;

use super::copy::{Placement, ServerCopy, cannot, plain};

/// What [`relocate`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relocated {
    /// Files and links that were rewritten.
    pub rewritten: Vec<PathBuf>,
    /// How many tablespaces lie outside of the data directory: `.isl` files.
    pub tablespaces: u64,
}

/// Where one link leads, and where it should.
enum Found {
    Isl { file: PathBuf, leads: PathBuf },
    Symlink { link: PathBuf, leads: PathBuf },
}

/// Rewrites everything in a copy that leads to one of its original directories, so that it leads to `placement`.
/// Nothing is rewritten before all was looked at.
///
/// # Errors
/// [`FailureKind::Refused`] if anything leads out of the copy; else if a file cannot be read or written.
pub fn relocate(copy: &ServerCopy, placement: &Placement) -> Result<Relocated, Failure> {
    let mut relocated = Relocated::default();
    let mut changes = Vec::new();
    for root in copy.roots() {
        for found in links(&copy.below(&root.path))? {
            let (path, leads) = match &found {
                Found::Isl { file, leads } => {
                    relocated.tablespaces += 1;
                    (file, leads)
                }
                Found::Symlink { link, leads } => (link, leads),
            };
            let original = original(copy, path, leads);
            let place = match placement.at(&original) {
                Some(place) => place,
                None if placement.is_placed(&original) => original.clone(),
                None => return Err(leads_out(path, leads)),
            };
            let there = copy.placement().at(&original).unwrap_or_else(|| original.clone());
            stays_inside(copy, path, &there)?;
            // A relative link inside one directory moves along with it.
            let moves_along = leads.is_relative() && !matches!(found, Found::Isl { .. });
            if !moves_along && place != *leads {
                changes.push((found, place));
            }
        }
    }
    for (found, place) in changes {
        match found {
            Found::Isl { file, .. } => {
                rewrite_isl(&file, &place).map_err(|e| cannot("rewritten", &file, e))?;
                relocated.rewritten.push(file);
            }
            Found::Symlink { link, .. } => {
                rewrite_symlink(&link, &place).map_err(|e| cannot("rewritten", &link, e))?;
                relocated.rewritten.push(link);
            }
        }
    }
    Ok(relocated)
}

/// The absolute path, as it was on the original machine, that a link leads to; also if it was rewritten already.
fn original(copy: &ServerCopy, at: &Path, leads: &Path) -> PathBuf {
    if leads.is_absolute() {
        let leads = plain(leads);
        return copy.placement().original_of(&leads).unwrap_or_else(|| copy.real(&leads));
    }
    let stood = copy.placement().original_of(at).unwrap_or_else(|| at.to_owned());
    copy.real(&stood.parent().unwrap_or(Path::new("/")).join(leads))
}

/// Looks at what is really there: a path may be right by its text and still lead out over another link. What does
/// not exist is not dangerous, and the server says what it lacks.
fn stays_inside(copy: &ServerCopy, link: &Path, place: &Path) -> Result<(), Failure> {
    let Some(above) = place.ancestors().find(|dir| dir.symlink_metadata().is_ok()) else { return Ok(()) };
    // A link at the end is looked at in its own turn.
    let dir = if above.is_symlink() { above.parent().unwrap_or(above) } else { above };
    let real = dir.canonicalize().map_err(|e| cannot("followed", link, e))?;
    if copy.placement().is_placed(&real) { Ok(()) } else { Err(leads_out(link, place)) }
}

fn leads_out(link: &Path, leads: &Path) -> Failure {
    let what = format!(
        "{} leads to {}, which is not in the backup: a server started on this copy would use the original",
        pathtext::show(link),
        pathtext::show(leads)
    );
    let remedy = "remove or mend the link in the copy, or restore another backup";
    Failure::new(FailureKind::Refused, what, remedy)
}

/// All links in a directory, by walking it without following any.
fn links(root: &Path) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().map_err(|e| cannot("looked at", &path, e))?;
        if meta.is_symlink() {
            let leads = fs::read_link(&path).map_err(|e| cannot("read", &path, e))?;
            found.push(Found::Symlink { link: path, leads });
        } else if meta.is_dir() {
            let names = fs::read_dir(&path).and_then(|dir| dir.collect::<io::Result<Vec<_>>>());
            for entry in names.map_err(|e| cannot("read", &path, e))? {
                if !staging::is_ours(&entry.path()) {
                    todo.push(entry.path());
                }
            }
        } else if meta.is_file() && path.extension() == Some(OsStr::new("isl")) {
            let text = fs::read(&path).map_err(|e| cannot("read", &path, e))?;
            let leads = PathBuf::from(OsStr::from_bytes(text.trim_ascii()));
            if leads.as_os_str().is_empty() {
                let what = format!("{} is empty", pathtext::show(&path));
                return Err(Failure::new(FailureKind::Damaged, what, "restore another backup"));
            }
            found.push(Found::Isl { file: path, leads });
        }
    }
    Ok(found)
}

/// The original paths of tablespaces that `.isl` files name: as they name it, and really.
///
/// # Errors
/// If the copy cannot be read.
pub(super) fn tablespaces(copy: &ServerCopy) -> Result<Vec<(PathBuf, PathBuf)>, Failure> {
    let mut paths = Vec::new();
    for root in copy.roots() {
        for found in links(&copy.below(&root.path))? {
            if let Found::Isl { file, leads } = found {
                let real = original(copy, &file, &leads);
                let leads = plain(&leads);
                let is_rewritten = leads.is_relative() || copy.placement().is_placed(&leads);
                paths.push((if is_rewritten { real.clone() } else { leads }, real));
            }
        }
    }
    Ok(paths)
}

fn rewrite_isl(file: &Path, place: &Path) -> io::Result<()> {
    let old = file.metadata()?;
    let new = beside(file)?;
    fs::write(&new, place.as_os_str().as_bytes())?;
    let made = fs::set_permissions(&new, old.permissions())
        .and_then(|()| own(&new, &old))
        .and_then(|()| fs::File::open(&new)?.sync_all())
        .and_then(|()| fs::rename(&new, file));
    made.inspect_err(|_| drop(fs::remove_file(&new)))
}

fn rewrite_symlink(link: &Path, place: &Path) -> io::Result<()> {
    let old = link.symlink_metadata()?;
    let new = beside(link)?;
    symlink(place, &new)?;
    own(&new, &old).and_then(|()| fs::rename(&new, link)).inspect_err(|_| drop(fs::remove_file(&new)))
}

fn own(path: &Path, like: &fs::Metadata) -> io::Result<()> {
    let now = path.symlink_metadata()?;
    if (now.uid(), now.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    lchown(path, Some(like.uid()), Some(like.gid()))
}

/// A name that every walker of ours skips.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut name = staging::new_name(dir, "link")?.into_os_string().into_vec();
    name.extend_from_slice(b".tmp");
    Ok(PathBuf::from(std::ffi::OsString::from_vec(name)))
}
