//! Making and opening a repository.
//!
//! Crash story: a repository is there when its `config` is, which is written last. A directory that an
//! interrupted [`Repository::init`] left has no `config` and no data, and the next one takes it over.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    id::Relpath,
    pathtext,
    port::{Failure, FailureKind, Journal},
};
use rustic_core::{
    ConfigOptions, Credentials, FileType, Id, IndexedFullStatus, KeyOptions, RepositoryBackends,
    RepositoryOptions, WriteBackend,
};

use super::{
    backend::Backend,
    blobs::ReadIndex,
    carry::ReferenceState,
    crypt::SecretKey,
    disk::{Disk, RealDisk},
    error::{RepositoryError, StorageError, while_doing},
    gentle::Gentle,
    keys::{self, KeyInfo},
    lock::{Lock, LockKind, Locks, Me},
    meter::Meter,
    password::Password,
};
use crate::archiver::{IndexCache, keep_only, path_of};

/// Where the index of an application's repository is kept: `{state}/index/{relpath}.cache`, with `/` written `%`.
#[must_use]
pub fn index_cache(state: &Path, relpath: &Relpath) -> PathBuf {
    path_of(state, relpath.as_str())
}

/// Removes the kept indexes of all repositories but those whose [`index_cache`] is among these.
///
/// # Errors
/// If one of them cannot be removed.
pub fn keep_index_caches(state: &Path, wanted: &HashSet<PathBuf>) -> Result<(), Failure> {
    keep_only(state, wanted).map_err(|error| {
        let what = format!("cached indexes in {} cannot be removed", pathtext::show(&state.join("index")));
        Failure::new(FailureKind::Other, what, "see that this user may write there").because(error)
    })
}

/// rustic_core's repository with its index in memory.
pub(crate) type Indexed = rustic_core::Repository<IndexedFullStatus>;

/// Which repository, and how to open it.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Its directory.
    pub dir: PathBuf,
    /// Its password.
    pub password: Password,
}

/// An open repository.
pub struct Repository {
    pub(super) backend: Arc<Backend>,
    pub(super) locks: Locks,
    pub(super) meter: Meter,
    pub(super) key_id: Id,
    pub(super) session: Option<super::session::Session>,
    pub(super) reference: ReferenceState,
    pub(super) gentle: Gentle,
    /// What was last read of the index, for who reads it again at once.
    pub(super) read_index: ReadIndex,
    /// Where the index is kept from one session to the next.
    pub(super) index_cache: Option<IndexCache>,
}

impl Repository {
    /// Makes a repository with one key, and leaves it closed.
    ///
    /// # Errors
    /// [`RepositoryError::Exists`] if there is one, [`RepositoryError::Foreign`] if something else is there;
    /// if it cannot be written.
    pub fn init(opening: &Opening) -> Result<(), RepositoryError> {
        match look(&opening.dir)? {
            Found::Repository => return Err(RepositoryError::Exists { dir: opening.dir.clone() }),
            Found::Foreign(why) => return Err(RepositoryError::Foreign { dir: opening.dir.clone(), why }),
            Found::Nothing | Found::Begun => {}
        }
        let backend = Arc::new(Backend::new(&opening.dir, Arc::new(RealDisk)));
        backend.make_dirs()?;
        for (id, _) in backend.files(FileType::Key)? {
            backend.delete(FileType::Key, &id)?;
        }
        let (master, me) = (SecretKey::random(), Me::here());
        keys::add(&backend, &master, &opening.password, Timestamp::now(), (&me.username, &me.hostname))?;
        let credentials = Credentials::Masterkey(library_key(&master)?);
        library(&backend, &Meter::default())?
            .init(&credentials, &KeyOptions::default(), &config()?)
            .map_err(while_doing("making the repository"))?;
        Ok(())
    }

    /// Opens a repository. What it holds or locks while it is used is written to the journal first.
    ///
    /// # Errors
    /// [`RepositoryError::NoRepository`], [`RepositoryError::Foreign`], [`RepositoryError::WrongPassword`];
    /// if it cannot be read.
    pub fn open(opening: &Opening, journal: Arc<dyn Journal>) -> Result<Self, RepositoryError> {
        Self::open_on(opening, journal, Arc::new(RealDisk))
    }

    /// The same on another disk, for tests that let one fail.
    pub(crate) fn open_on(
        opening: &Opening,
        journal: Arc<dyn Journal>,
        disk: Arc<dyn Disk>,
    ) -> Result<Self, RepositoryError> {
        let dir = opening.dir.clone();
        match look(&dir)? {
            Found::Repository => {}
            Found::Foreign(why) => return Err(RepositoryError::Foreign { dir, why }),
            Found::Nothing | Found::Begun => return Err(RepositoryError::NoRepository { dir }),
        }
        let backend = Arc::new(Backend::new(&dir, disk.clone()));
        let (key_id, key) = keys::open(&backend, &opening.password)?;
        let locks = Locks { dir, disk, key, me: Me::here(), journal };
        Ok(Self {
            backend,
            locks,
            meter: Meter::default(),
            key_id,
            session: None,
            reference: ReferenceState::default(),
            gentle: Gentle::default(),
            read_index: ReadIndex::default(),
            index_cache: None,
        })
    }

    /// From now on the index is also kept in this file, in a form that is faster to read ([`index_cache`]).
    pub fn cache_index_at(&mut self, path: PathBuf) {
        self.index_cache = Some(IndexCache::at(path));
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.backend.dir()
    }

    /// Its keys, oldest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn keys(&self) -> Result<Vec<KeyInfo>, RepositoryError> {
        keys::list(&self.backend, &self.key_id)
    }

    /// Adds a key that opens with this password; returns its id. It has been opened once when this returns.
    ///
    /// # Errors
    /// If it cannot be written, or somebody holds the repository exclusively.
    pub fn add_key(&mut self, password: &Password) -> Result<String, RepositoryError> {
        let lock = self.locks.take(LockKind::Shared)?;
        let added = self.write_key(password);
        lock.release()?;
        Ok(added?.to_hex().to_string())
    }

    /// Removes a key. The one in use is refused.
    ///
    /// # Errors
    /// If there is no such key, it is the one in use, or somebody else uses the repository.
    pub fn remove_key(&mut self, id: &str) -> Result<(), RepositoryError> {
        let known = self.keys()?;
        let refused = |what: String, remedy: &str| RepositoryError::Refused { what, remedy: remedy.into() };
        let Some(key) = known.iter().find(|key| key.id == id) else {
            return Err(refused(format!("there is no key {id}"), "`stillpoint key show` lists the keys"));
        };
        if key.current {
            return Err(refused(
                format!("key {} is the one in use", &id[..8]),
                "open the repository with another key to remove it",
            ));
        }
        let key_id = id.parse().map_err(while_doing("reading a key's id"))?;
        let lock = self.locks.take(LockKind::Exclusive)?;
        let removed = self.backend.delete(FileType::Key, &key_id);
        lock.release()?;
        Ok(removed?)
    }

    /// Puts a key with this password in place of the one in use. The new one is written and opened before
    /// the old one is removed; the caller updates the password file between [`Repository::add_key`] and
    /// [`Repository::remove_key`] if it wants to survive a crash in the middle without the old password.
    ///
    /// # Errors
    /// If the new key cannot be written, then the old one stands; if the old one cannot be removed, then
    /// both open.
    pub fn change_password(&mut self, password: &Password) -> Result<(), RepositoryError> {
        let lock = self.locks.take(LockKind::Exclusive)?;
        let changed = self.write_key(password).and_then(|new| {
            let old = std::mem::replace(&mut self.key_id, new);
            Ok(self.backend.delete(FileType::Key, &old)?)
        });
        lock.release()?;
        changed
    }

    fn write_key(&self, password: &Password) -> Result<Id, RepositoryError> {
        let who = (self.locks.me.username.as_str(), self.locks.me.hostname.as_str());
        keys::add(&self.backend, &self.locks.key, password, Timestamp::now(), who)
    }

    /// rustic_core's view, with the whole index loaded as it is now.
    pub(crate) fn indexed(&self) -> Result<Indexed, RepositoryError> {
        self.opened()?.to_indexed().map_err(while_doing("reading the index"))
    }

    /// rustic_core's view without the index.
    pub(crate) fn opened(&self) -> Result<rustic_core::Repository<rustic_core::OpenStatus>, RepositoryError> {
        // rustic_core would not name the file.
        let sealed = self.backend.read(FileType::Config, &Id::default())?;
        self.locks.key.decrypt_file(&sealed).map_err(|error| StorageError::Damaged {
            path: self.backend.path(FileType::Config, &Id::default()),
            what: error.to_string(),
        })?;
        let credentials = Credentials::Masterkey(library_key(&self.locks.key)?);
        library(&self.backend, &self.meter)?.open(&credentials).map_err(while_doing("opening the repository"))
    }

    /// Takes an exclusive lock for deleting; a writing session of our own ends first.
    pub(crate) fn lock_exclusively(&mut self) -> Result<Lock, RepositoryError> {
        self.end_session()?;
        self.locks.take(LockKind::Exclusive)
    }
}

/// What is at a directory.
enum Found {
    Nothing,
    /// What an interrupted `init` leaves.
    Begun,
    Repository,
    Foreign(String),
}

fn look(dir: &Path) -> Result<Found, StorageError> {
    let failed = |source| StorageError::read(dir, source);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Ok(Found::Foreign("it is not a directory".into()));
        }
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    let has = |name: &str| names.iter().any(|n| n == name);
    if has("config") {
        let missing = ["data", "index", "keys", "snapshots"].into_iter().find(|name| !has(name));
        return Ok(missing
            .map_or(Found::Repository, |name| Found::Foreign(format!("it has a `config` but no `{name}`"))));
    }
    let ours = ["data", "index", "keys", "locks", "snapshots"];
    match names.iter().find(|name| !ours.contains(&name.as_str()) && !name.starts_with("config-tmp-")) {
        Some(stranger) => Ok(Found::Foreign(format!("it holds `{stranger}` and no `config`"))),
        None if names.is_empty() => Ok(Found::Nothing),
        None if holds_data(dir)? => Ok(Found::Foreign("it holds data but no `config`".into())),
        None => Ok(Found::Begun),
    }
}

fn holds_data(dir: &Path) -> Result<bool, StorageError> {
    if !dir.join("data").is_dir() {
        return Ok(false);
    }
    let backend = Backend::new(dir, Arc::new(RealDisk));
    Ok(!backend.files(FileType::Pack)?.is_empty())
}

fn library(backend: &Arc<Backend>, meter: &Meter) -> Result<rustic_core::Repository<()>, RepositoryError> {
    let storage: Arc<dyn WriteBackend> = backend.clone();
    let options = RepositoryOptions::default().no_cache(true);
    rustic_core::Repository::new_with_progress(
        &options,
        &RepositoryBackends::new(storage, None),
        meter.clone(),
    )
    .map_err(while_doing("opening the repository"))
}

fn library_key(key: &SecretKey) -> Result<rustic_core::repofile::MasterKey, RepositoryError> {
    key.master()
        .ok_or_else(|| RepositoryError::Damaged { what: "the master key has not the right form".into() })
}

/// Our choice of pack sizes: 8 MiB whatever the repository's size. Half a dozen are in flight at once, and
/// rustic_core would let them grow with the repository.
fn config() -> Result<ConfigOptions, RepositoryError> {
    let mut options = ConfigOptions::default();
    options.set_datapack_size = "8MiB".parse().ok();
    options.set_datapack_growfactor = Some(0);
    options.set_treepack_size = "4MiB".parse().ok();
    options.set_treepack_growfactor = Some(0);
    if options.set_datapack_size.is_none() || options.set_treepack_size.is_none() {
        return Err(RepositoryError::Damaged { what: "the pack size was not understood".into() });
    }
    Ok(options)
}
