//! The reference: frozen copies of the large files of pages in the newest backup, kept so that the next one reads only
//! what changed since. Written form: `docs/format/reference.md`.
//!
//! Crash story: plain values and pure functions, no effects. A reference is proven before it is used: it names the
//! backup that was made from it, and what each of its files was when that backup was stored.

use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    entry::Stamp,
    id::{BackupId, Relpath},
    inventory::show_duration,
    pathtext,
    size::Bytes,
};

/// Version of the record's form.
pub const REFERENCE_VERSION: u32 = 1;

/// Files below this size are read whole: opening and comparing them would cost as much.
pub const LARGE: Bytes = Bytes(4 << 20);

/// The reference of one application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Format version, [`REFERENCE_VERSION`].
    pub version: u32,
    /// Whose it is.
    pub relpath: Relpath,
    /// The backup that was made from these very files.
    pub backup: BackupId,
    /// The last backup that read everything: the instant of its cut.
    pub read_all_at: Timestamp,
    /// The directories that hold the copies; their names begin with `.stillpoint-reference-`.
    #[serde(with = "pathtext::list")]
    pub dirs: Vec<PathBuf>,
    /// The snapshots of logical volumes that hold copies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<ReferenceVolume>,
    /// The copies.
    pub files: Vec<ReferenceFile>,
    /// Copies of the backup before, which nothing is compared with.
    #[serde(default, skip_serializing_if = "Spare::is_empty")]
    pub spare: Spare,
}

/// Copies that the next backup's are cloned over: most of each is where it has to be already.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spare {
    /// The directories that hold them.
    #[serde(with = "pathtext::list")]
    pub dirs: Vec<PathBuf>,
    /// The copies.
    pub files: Vec<SpareFile>,
}

impl Spare {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty() && self.files.is_empty()
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpareFile {
    /// The original's path.
    #[serde(with = "pathtext")]
    pub path: PathBuf,
    /// Where the copy is.
    #[serde(with = "pathtext")]
    pub copy: PathBuf,
}

/// A snapshot of a thin logical volume, kept with the copies in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceVolume {
    /// Volume group.
    pub group: String,
    /// Its name in the group: `stillpoint-` and 16 hexadecimal digits.
    pub name: String,
    /// LVM's UUID of it.
    pub uuid: String,
    /// Its number in the thin pool.
    pub thin_id: u32,
    /// The logical volume whose state it holds.
    pub origin: String,
    /// Its filesystem.
    pub filesystem: String,
}

/// One frozen copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceFile {
    /// The original's path, as in the backup.
    #[serde(with = "pathtext")]
    pub path: PathBuf,
    /// Where the copy is; in a volume, the path from the root of its filesystem.
    #[serde(with = "pathtext")]
    pub copy: PathBuf,
    /// The name of the volume that it lies in; nothing if it lies in one of `dirs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Its size in bytes, which is the original's.
    pub size: Bytes,
    /// The copy's inode number.
    pub inode: u64,
    /// The copy's change time, nanoseconds since the epoch.
    pub ctime: i64,
    /// The copy's modification time, nanoseconds since the epoch.
    pub mtime: i64,
    /// The size of the blobs that it was cut into, in bytes; the last one may be shorter.
    pub blob: u64,
    /// SHA-256 over the ids of these blobs, in order, in hexadecimal digits.
    pub content: String,
    /// SHA-256 over the map that the copy had when it was stored, in hexadecimal digits; of a copy in one of `dirs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
}

impl ReferenceFile {
    /// What the copy was when its backup was listed, and has to be still.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { size: self.size, mtime: self.mtime.into(), ctime: self.ctime.into(), inode: self.inode }
    }
}

/// What there is of a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// None.
    Nothing,
    /// It cannot be read, and why.
    Unreadable(String),
    /// This one.
    There(Reference),
}

/// How the next backup reads large files of pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "read")]
pub enum Reading {
    /// All of them, whole.
    All {
        /// Why.
        why: String,
        /// Whether what would have been carried over is compared with what is read.
        proves: bool,
        /// Whether frozen copies are kept for the backup after it.
        keeps: bool,
    },
    /// What changed since the reference, as far as it proves itself.
    Changed {
        /// The backup that it belongs to.
        since: BackupId,
        /// How many files it has.
        files: u64,
        /// How large they are.
        bytes: Bytes,
        /// When all is to be read again.
        read_all_from: Timestamp,
    },
}

/// What the inventory says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// A reference is kept.
    pub keep: bool,
    /// All is read again when the last time is so long ago.
    pub read_all_every: Duration,
}

/// Decides how the next backup reads. `newest` is the newest backup that is whole enough to be a parent.
#[must_use]
pub fn reading(choice: Choice, kept: &Kept, newest: Option<&BackupId>, now: Timestamp) -> Reading {
    let all = |why: String| Reading::All { why, proves: false, keeps: choice.keep };
    if !choice.keep {
        return all("changed_extents_only is false in the inventory".into());
    }
    let reference = match kept {
        Kept::Nothing => return all("no frozen copies of the backup before were kept".into()),
        Kept::Unreadable(why) => return all(format!("the reference cannot be read: {why}")),
        Kept::There(reference) => reference,
    };
    if newest != Some(&reference.backup) {
        let newest = newest.map_or("there is none".to_owned(), |id| format!("the newest is {}", id.short()));
        return all(format!(
            "the frozen copies are those of backup {}, and {newest}",
            reference.backup.short()
        ));
    }
    let from = due(reference.read_all_at, choice.read_all_every);
    if now >= from || now < reference.read_all_at {
        return Reading::All {
            why: format!("all is read and proven every {}", show_duration(choice.read_all_every)),
            proves: true,
            keeps: true,
        };
    }
    Reading::Changed {
        since: reference.backup.clone(),
        files: reference.files.len() as u64,
        bytes: reference.files.iter().map(|file| file.size).sum(),
        read_all_from: from,
    }
}

/// A tenth earlier than asked for: a backup that begins a minute before the one of last week is still the one of this
/// week.
fn due(last: Timestamp, every: Duration) -> Timestamp {
    last.checked_add(every - every / 10).unwrap_or(Timestamp::MAX)
}

impl Reading {
    /// For people, in one line.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::All { why, .. } => format!("all files whole: {why}"),
            Self::Changed { since, files, bytes, read_all_from } => format!(
                "only what changed since backup {} in {files} large files of pages ({bytes}); all from {}",
                since.short(),
                read_all_from.strftime("%Y-%m-%d %H:%M:%S+00:00")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::{Choice, Kept, Reading, Reference, Spare, reading};
    use crate::id::{BackupId, Relpath};

    const WEEK: Duration = Duration::from_secs(7 * 86_400);

    fn id(digit: char) -> BackupId {
        BackupId::new(digit.to_string().repeat(64)).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn kept() -> Kept {
        Kept::There(Reference {
            version: 1,
            relpath: Relpath::new("a").unwrap(),
            backup: id('a'),
            read_all_at: at("2026-11-01T03:00:00Z"),
            dirs: vec![],
            volumes: vec![],
            files: vec![],
            spare: Spare::default(),
        })
    }

    fn decide(keep: bool, kept: &Kept, newest: Option<char>, now: &str) -> Reading {
        let choice = Choice { keep, read_all_every: WEEK };
        reading(choice, kept, newest.map(id).as_ref(), at(now))
    }

    #[test]
    fn only_the_reference_of_the_newest_backup_is_compared() {
        let monday = "2026-11-02T03:00:00Z";
        assert!(
            matches!(decide(true, &kept(), Some('a'), monday), Reading::Changed { since, .. } if since == id('a'))
        );
        for reading in [
            decide(true, &kept(), Some('b'), monday),
            decide(true, &kept(), None, monday),
            decide(true, &Kept::Nothing, Some('a'), monday),
            decide(true, &Kept::Unreadable("torn".into()), Some('a'), monday),
        ] {
            assert!(matches!(reading, Reading::All { proves: false, keeps: true, .. }), "{reading:?}");
        }
        assert!(matches!(decide(false, &kept(), Some('a'), monday), Reading::All { keeps: false, .. }));
    }

    #[test]
    fn all_is_read_again_in_time_also_by_a_clock_that_was_set_back() {
        let proves = |now| matches!(decide(true, &kept(), Some('a'), now), Reading::All { proves: true, .. });
        assert!(!proves("2026-11-07T03:00:00Z"));
        assert!(proves("2026-11-08T02:59:00Z"), "a minute early is still weekly");
        assert!(proves("2027-11-08T02:59:00Z"));
        assert!(proves("2026-10-31T03:00:00Z"));
    }
}
