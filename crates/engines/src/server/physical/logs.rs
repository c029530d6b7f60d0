//! The binary logs between a copy and the cut, kept by open descriptors: a purge cannot take them away, and all before
//! a position never changes.
//!
//! Crash story: descriptors close with us.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use model::{
    pathtext,
    port::{Failure, FailureKind},
    server::BinlogPosition,
};

use super::super::dump::create;

/// A server keeps fewer logs than this between a copy and the cut made right after it.
const MOST: usize = 10_000;

/// The logs from one position to another, both included.
pub(super) struct Logs {
    files: Vec<(String, File)>,
    to: BinlogPosition,
}

impl Logs {
    /// Opens them. `index` is the server's list of logs, which it keeps beside them.
    ///
    /// # Errors
    /// If one is missing, or the positions are not in the list in this order.
    pub(super) fn open(index: &Path, from: &BinlogPosition, to: &BinlogPosition) -> Result<Self, Failure> {
        let listed = std::fs::read_to_string(index).map_err(|error| unreadable(index, error))?;
        let dir = index.parent().unwrap_or(Path::new("/"));
        let paths: Vec<PathBuf> =
            listed.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| dir.join(l)).collect();
        let at = |place: &BinlogPosition| {
            paths.iter().position(|path| path.file_name().is_some_and(|n| *n == *place.file))
        };
        let range = match (at(from), at(to)) {
            (Some(first), Some(last))
                if (first < last || first == last && from.offset <= to.offset) && last - first < MOST =>
            {
                first..=last
            }
            _ => {
                let what = format!(
                    "{} does not list the binary logs from {from} to {to}: they were purged or reset meanwhile",
                    pathtext::show(index)
                );
                return Err(Failure::new(FailureKind::Busy, what, "try again; keep binary logs for longer"));
            }
        };
        let mut files = Vec::new();
        for path in &paths[range] {
            let file = File::open(path).map_err(|error| unreadable(path, error))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push((name, file));
        }
        Ok(Self { files, to: to.clone() })
    }

    /// Copies them to a directory, the last one up to the position and not a byte more.
    ///
    /// # Errors
    /// If one cannot be read or written, or the last one is shorter than the position says.
    pub(super) fn copy(&mut self, to: &Path) -> Result<u64, Failure> {
        let mut copied = 0;
        for (name, file) in &mut self.files {
            let path = to.join(&*name);
            let limit = if *name == self.to.file { self.to.offset } else { u64::MAX };
            let wrong = |error: io::Error| {
                let kind =
                    if os::staging::is_no_space(&error) { FailureKind::NoSpace } else { FailureKind::Other };
                let what = format!("binary log {name} cannot be copied to {}", pathtext::show(&path));
                Failure::new(kind, what, "see that the partition has space").because(error)
            };
            let length = copy_one(file, &path, limit).map_err(wrong)?;
            if *name == self.to.file && length < self.to.offset {
                let what =
                    format!("binary log {name} has {length} bytes, and the cut is at {}", self.to.offset);
                return Err(Failure::new(FailureKind::Damaged, what, "run the backup again"));
            }
            copied += length;
        }
        Ok(copied)
    }

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }
}

fn copy_one(file: &mut File, to: &Path, limit: u64) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut out = create(to)?;
    let length = io::copy(&mut file.take(limit), &mut out)?;
    out.flush()?;
    Ok(length)
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    let what = format!("{} cannot be read", pathtext::show(path));
    Failure::new(FailureKind::Other, what, "run as a user who may read the server's binary logs")
        .because(error)
}

#[cfg(test)]
mod tests {
    use model::server::BinlogPosition;

    use super::Logs;

    fn place(file: &str, offset: u64) -> BinlogPosition {
        BinlogPosition { file: file.into(), offset }
    }

    #[test]
    fn logs_are_copied_up_to_the_cut_though_they_were_purged() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for n in 1..=4 {
            std::fs::write(at(&format!("b.00000{n}")), format!("{n}").repeat(10)).unwrap();
        }
        let index = at("b.index");
        std::fs::write(&index, "./b.000001\n./b.000002\n./b.000003\n./b.000004\n").unwrap();
        let mut logs = Logs::open(&index, &place("b.000002", 4), &place("b.000003", 7)).unwrap();
        std::fs::remove_file(at("b.000002")).unwrap();
        let to = tempfile::tempdir().unwrap();
        assert_eq!(logs.copy(to.path()).unwrap(), 17);
        assert_eq!(std::fs::read_to_string(to.path().join("b.000003")).unwrap(), "3333333");
        assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 2);
        assert!(Logs::open(&index, &place("b.000003", 4), &place("b.000001", 7)).is_err());
        assert!(Logs::open(&index, &place("b.000009", 4), &place("b.000009", 7)).is_err());
        let mut short = Logs::open(&index, &place("b.000001", 4), &place("b.000001", 11)).unwrap();
        assert!(short.copy(to.path()).is_err());
    }
}
