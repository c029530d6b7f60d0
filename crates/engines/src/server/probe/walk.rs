//! One walk through a directory of a server: how much it is, and where it leads.
//!
//! Crash story: reads only; the server runs meanwhile, so what vanishes is no error.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::OsStr,
    fs::{self, File},
    io,
    ops::ControlFlow,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use model::entry::{Entry, Kind};
use os::{
    extents::extent_count,
    mounts::Mounts,
    tree::{Vanished, Walk},
};

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Of those files of which the filesystem tells.
    pub(super) extents: Option<u64>,
    /// Where symbolic links and `.isl` files lead to: real paths of files and directories.
    pub(super) targets: BTreeSet<PathBuf>,
    /// Links that lead nowhere.
    pub(super) broken: Vec<PathBuf>,
    /// `#sql*` files and directories: a statement that runs now, or one that a crash cut short.
    pub(super) leftovers: u64,
}

/// Walks through `root`, a real path of a directory; a file is a tree of its own.
pub(super) fn walk(root: &Path, exclude: &[String], mounts: &Mounts) -> io::Result<Walked> {
    let mut walked = Walked::default();
    if fs::metadata(root)?.is_file() {
        walked.count(root, fs::metadata(root)?.len());
        return Ok(walked);
    }
    let set = globs(exclude);
    let exclude = |path: &Path| set.is_match(path);
    let carved = HashSet::new();
    let walk = Walk {
        root,
        exclude: &exclude,
        carved: &carved,
        mounts,
        vanished: Vanished::Expected,
        xattrs: false,
    };
    walk.run(&mut |entry| {
        walked.take(&entry);
        ControlFlow::Continue(())
    })?;
    Ok(walked)
}

fn globs(exclude: &[String]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in exclude.iter().filter_map(|text| GlobBuilder::new(text).literal_separator(true).build().ok())
    {
        set.add(glob);
    }
    set.build().unwrap_or_else(|_| GlobSet::empty())
}

/// Where a symbolic link or an `.isl` file leads; nothing if there is none any more.
pub(super) fn leads(link: &Path) -> Option<PathBuf> {
    let to = match fs::read_link(link) {
        Ok(to) => to,
        Err(_) => PathBuf::from(OsStr::from_bytes(fs::read(link).ok()?.trim_ascii())),
    };
    Some(link.parent().unwrap_or(Path::new("/")).join(to))
}

impl Walked {
    fn take(&mut self, entry: &Entry) {
        let name = entry.path.file_name().unwrap_or_default().to_string_lossy();
        self.leftovers += u64::from(name.starts_with("#sql"));
        match &entry.kind {
            Kind::File => {
                self.count(&entry.path, fs::symlink_metadata(&entry.path).map_or(0, |meta| meta.len()));
                if name.ends_with(".isl") {
                    self.follow(&entry.path);
                }
            }
            Kind::Symlink(_) => self.follow(&entry.path),
            _ => {}
        }
    }

    fn follow(&mut self, link: &Path) {
        let Some(place) = leads(link) else { return };
        match place.canonicalize() {
            Ok(real) => {
                self.targets.insert(real);
            }
            Err(_) => self.broken.push(link.to_owned()),
        }
    }

    fn count(&mut self, path: &Path, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
        let extents = File::open(path).and_then(|file| extent_count(&file));
        if let Ok(Some(extents)) = extents {
            *self.extents.get_or_insert(0) += extents;
        }
    }

    /// Both together.
    pub(super) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.leftovers += other.leftovers;
        if let Some(extents) = other.extents {
            *self.extents.get_or_insert(0) += extents;
        }
        self.targets.extend(other.targets);
        self.broken.extend(other.broken);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use os::mounts::Mounts;

    use super::walk;

    #[test]
    fn links_of_every_kind_are_followed_and_what_is_left_out_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let (data, far) = (base.join("data"), base.join("far"));
        for path in [data.join("d"), far.join("db"), far.join("x")] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(far.join("x/t.ibd"), "1234").unwrap();
        fs::write(data.join("d/t.isl"), format!("{}\n", far.join("x/t.ibd").display())).unwrap();
        fs::write(data.join("d/#sql-ib1.ibd"), "12").unwrap();
        fs::write(data.join("binlog.000001"), "123").unwrap();
        symlink(far.join("db"), data.join("db")).unwrap();
        symlink("../nowhere", data.join("gone")).unwrap();
        let walked = walk(&data, &["binlog.[0-9]*".into()], &Mounts::read().unwrap()).unwrap();
        assert_eq!(walked.targets.into_iter().collect::<Vec<_>>(), [far.join("db"), far.join("x/t.ibd")]);
        assert_eq!((walked.broken, walked.leftovers), (vec![data.join("gone")], 1));
        assert_eq!(walked.files, 2, "the .isl file and the leftover");
    }
}
