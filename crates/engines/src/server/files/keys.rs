//! A root that is a file: keys of encrypted tables.
//!
//! Crash story: memory only.

use std::{fs, io::Read, path::PathBuf, sync::Arc};

use model::{
    entry::{Body, Entry, Harvest, Kind, Manifest, Role},
    id::SourceId,
    known::Known,
    pathtext,
    port::{Clock, Difference, Failure, FailureKind, Pin, Pinner, Progress},
    size::Bytes,
    time::Deadline,
    verdict::Stillness,
};
use os::tree::{Found, read_entry_meta, resolve};

/// More than this is no file of keys.
const MOST: u64 = 16 << 20;

/// Pins one small file by reading it.
pub(super) struct KeyFile {
    source: SourceId,
    path: PathBuf,
    clock: Arc<dyn Clock>,
}

impl KeyFile {
    pub(super) fn new(source: SourceId, path: PathBuf, clock: Arc<dyn Clock>) -> Self {
        Self { source, path, clock }
    }

    fn read(&self) -> Result<Vec<Entry>, Failure> {
        let shown = pathtext::show(&self.path);
        let failed = |error: std::io::Error| {
            let what = format!("{shown}, which holds keys of the server, cannot be read");
            Failure::new(FailureKind::Other, what, "without it the copy cannot be opened: run as root")
                .because(error)
        };
        let resolved = resolve(&self.path).map_err(failed)?;
        let (found, meta) = read_entry_meta(&resolved.real).map_err(failed)?;
        let file = fs::File::open(&resolved.real).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(MOST + 1).read_to_end(&mut bytes).map_err(failed)?;
        if found != Found::Stored(Kind::File) || bytes.len() as u64 > MOST {
            let what =
                format!("{shown} is no file of keys: it is larger than {} MiB, or no file", MOST >> 20);
            return Err(Failure::new(FailureKind::Refused, what, "correct the server's option"));
        }
        let mut entries = resolved.way();
        let mut entry =
            Entry { path: resolved.real, kind: Kind::File, meta, body: Body::Nothing, role: Role::Content };
        entry.meta.size = Bytes(bytes.len() as u64);
        entry.body = Body::Inline(bytes);
        entries.push(entry);
        Ok(entries)
    }
}

impl Pinner for KeyFile {
    fn source(&self) -> SourceId {
        self.source.clone()
    }
    fn prepare(&mut self, _known: &Known) -> Result<Option<Manifest>, Failure> {
        self.read().map(|_| None)
    }
    fn round(&mut self) -> Result<Difference, Failure> {
        Ok(Difference::default())
    }
    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        if until.has_passed(self.clock.moment()) {
            let what = format!("{} was not read by the deadline", pathtext::show(&self.path));
            return Err(Failure::new(FailureKind::TimedOut, what, ""));
        }
        Ok(Box::new(Keys { path: self.path.clone(), entries: self.read()? }))
    }
}

/// The file as it was read.
struct Keys {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl Pin for Keys {
    fn unchanged(&mut self, _until: Deadline) -> Result<Stillness, Failure> {
        let stamp = |entries: &[Entry]| entries.last().map(|entry| entry.meta.stamp());
        let now = read_entry_meta(&self.entries.last().map_or_else(|| self.path.clone(), |e| e.path.clone()));
        Ok(match now {
            Ok((_, meta)) if Some(meta.stamp()) == stamp(&self.entries) => {
                Stillness::NothingChanged("the file of keys is unchanged".to_owned())
            }
            _ => Stillness::NotShown(format!("{} changed under the locks", pathtext::show(&self.path))),
        })
    }
    fn harvest(&mut self, _progress: &dyn Progress) -> Result<Harvest, Failure> {
        Ok(Harvest { entries: std::mem::take(&mut self.entries), ..Harvest::default() })
    }
    fn release(self: Box<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc, time::Duration};

    use model::{
        entry::{Body, Role},
        id::SourceId,
        known::Known,
        port::{FailureKind, Pinner, Silent},
        verdict::Stillness,
    };
    use os::clock::{SystemClock, deadline_in};

    use super::KeyFile;

    #[test]
    fn a_file_of_keys_is_stored_with_the_way_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("keys");
        fs::write(&path, "1;abcdef").unwrap();
        let source = SourceId::new("mariadb", "/run/s");
        let mut keys = KeyFile::new(source, path.clone(), Arc::new(SystemClock));
        assert!(keys.prepare(&Known::default()).unwrap().is_none());
        let soon = deadline_in(Duration::from_secs(5));
        let mut pin = keys.pin(soon).unwrap();
        assert!(matches!(pin.unchanged(soon).unwrap(), Stillness::NothingChanged(_)));
        let entries = pin.harvest(&Silent).unwrap().entries;
        let (keys_entry, above) = entries.split_last().unwrap();
        assert_eq!((&keys_entry.path, &keys_entry.body), (&path, &Body::Inline(b"1;abcdef".to_vec())));
        assert!(above.iter().all(|entry| entry.role == Role::Ancestor && path.starts_with(&entry.path)));

        let mut changed = keys.pin(soon).unwrap();
        fs::write(&path, "2;abcdefgh").unwrap();
        assert!(matches!(changed.unchanged(soon).unwrap(), Stillness::NotShown(_)));
        fs::remove_file(&path).unwrap();
        assert_eq!(keys.pin(soon).err().unwrap().kind, FailureKind::Other);
    }
}
