//! Our own way of writing into a repository of restic's format: a manifest becomes packs, index and trees.
//!
//! ```text
//! manifest ─┬─ worker ─ read, cut, hash, look up, compress, encrypt ─ its own pack ─┐
//!           ├─ worker …                                                             ├─ index files
//!           └─ (in order) where the contents are ─ trees, by all cores ─ tree packs ┘
//! ```
//!
//! Of large files of pages whose frozen copy of the backup before still exists, only what changed since is read
//! ([`carry`]). Files that the parent holds under the same path and stamp are carried over from memory ([`parent`]); nothing of
//! them is opened. Files of pages are cut at fixed places, all others where restic cuts them ([`chunk`]). Memory is
//! bounded by the workers' packs and pieces, 16 MiB each, by the index (53 to 59 bytes a blob) and by what is known
//! of the parent (about 50 bytes a file).
//!
//! Crash story: packs are durable before the index names them, and the snapshot is written by whoever called us, after
//! that. Whatever ends us leaves packs that no index names; the next session finds and reuses them ([`orphans`]). Who
//! may run beside us: `docs/CONCURRENCY.md`.

mod blobs;
mod cache;
mod carried;
mod carry;
mod catch_up;
mod chunk;
mod compress;
mod digest;
mod found;
mod index;
mod indexer;
mod large;
mod layout;
mod load;
mod name;
mod node;
mod orphans;
mod pack;
mod parent;
mod records;
mod trees;
mod work;
mod written;

use std::{
    collections::{HashMap, HashSet},
    num::NonZero,
    panic::resume_unwind,
    path::PathBuf,
    sync::Arc,
    thread,
};

use rustic_core::repofile::{BlobType, ConfigFile};

pub(crate) use self::{
    blobs::{Blobs, no_tree},
    cache::{IndexCache, keep_only, path_of},
    carry::{Carry, Frozen, Older, recorded},
    digest::digest,
    found::Stored,
    index::{Index, Lost, Place, Spot},
    layout::{Child, Layout},
    load::{load, packs},
    name::Name,
    node::{StoredKind, StoredNode},
    parent::{Base, Contents},
    trees::Made,
};
use self::{
    carried::Carried,
    chunk::Chunking,
    compress::Levels,
    indexer::IndexWriter,
    pack::{Sealed, Sink},
    trees::Fresh,
    work::Board,
};
#[cfg(test)]
pub(crate) use self::{
    index::Standing,
    indexer::IndexContent,
    pack::{parse_header, read_header},
    records::IndexRecords,
};
use crate::repository::{
    backend::Backend,
    crypt::SecretKey,
    error::{RepositoryError, while_doing},
    feed::Feed,
    meter::Meter,
};

/// Packs of data are not larger than this, in bytes, but for one with a single blob.
const DATA_PACK: usize = 8 << 20;

/// Packs of trees likewise.
const TREE_PACK: usize = 4 << 20;

/// The workers are told how far the caller is every so many entries.
const REACH: usize = 1024;

/// How many cores there are.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(2, NonZero::get)
}

/// What lasts for a writing session.
pub(crate) struct Archiver {
    chunking: Chunking,
    levels: Option<Levels>,
    pub(crate) index: Index,
    indexer: IndexWriter,
    /// Where the index is left for the next session.
    cache: Option<IndexCache>,
}

/// One pass over a feed.
pub(crate) struct Job<'a> {
    pub(crate) feed: &'a Feed,
    pub(crate) bases: &'a [Base],
    carry: Option<&'a Carry>,
    carried: Carried,
    chunking: &'a Chunking,
    meter: &'a Meter,
    sink: Sink<'a>,
    data_pack: usize,
    tree_pack: usize,
}

/// What a pass reads from and writes to.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) backend: &'a Arc<Backend>,
    pub(crate) key: &'a SecretKey,
    pub(crate) meter: &'a Meter,
    pub(crate) feed: &'a Feed,
    /// What may be carried over, the first that has it wins.
    pub(crate) bases: &'a [Base],
    /// Whose unchanged parts may be, and what is learnt for the next backup.
    pub(crate) carry: Option<&'a Carry>,
}

impl Archiver {
    /// Begins a session on what the repository holds now, with the help of a cache if there is one. `alone` says, when it is asked, whether nobody else holds
    /// a lock.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub(crate) fn begin(
        backend: &Backend,
        key: &SecretKey,
        config: &ConfigFile,
        cache: Option<IndexCache>,
        alone: impl FnOnce() -> Result<bool, RepositoryError>,
    ) -> Result<Self, RepositoryError> {
        let reading = "reading the repository's config";
        let compressed = config.zstd().map_err(while_doing(reading))?;
        Ok(Self {
            chunking: Chunking::of(config).map_err(while_doing(reading))?,
            levels: compressed.map(Levels::of),
            index: load::load(backend, key, cache.as_ref(), alone)?,
            indexer: IndexWriter::default(),
            cache,
        })
    }

    /// Reads what a stored tree holds that can be carried over, and which of its directories cannot be read; the
    /// contents of the wanted files whatever their stamps are.
    pub(crate) fn base(
        &self,
        backend: &Backend,
        key: &SecretKey,
        root: Name,
        wanted: &HashSet<PathBuf>,
    ) -> (Base, Vec<(PathBuf, RepositoryError)>) {
        parent::read(Blobs { backend, key, index: &self.index }, root, wanted)
    }

    /// Stores the contents of a feed's files, and returns them as what a later pass may carry over.
    ///
    /// # Errors
    /// If the repository cannot be written, or somebody asked to stop.
    pub(crate) fn store_ahead(&self, pass: Pass<'_>) -> Result<Base, RepositoryError> {
        let (mut known, mut contents) = (model::known::Known::default(), Contents::default());
        let job = self.job(pass);
        let left = job.run(|place, content| {
            if let Some(entry) = job.feed.entry(place).filter(|entry| job.feed.is_settled(entry)) {
                let stamp = entry.meta.stamp();
                known.insert(&entry.path, stamp);
                contents.add(&entry.path, &stamp, content);
            }
        })?;
        job.write_left(left)?;
        self.indexer.finish(&job.sink)?;
        contents.sort();
        Ok(Base { known: known.into(), contents: contents.into(), ..Base::default() })
    }

    /// Stores a feed; all packs are on disk when this returns, and [`Self::list`] writes the rest of the index.
    ///
    /// # Errors
    /// If the repository cannot be written, or somebody asked to stop.
    pub(crate) fn store<'a>(&'a self, pass: Pass<'a>) -> Result<Made<'a>, RepositoryError> {
        let job = self.job(pass);
        let mut fresh = Fresh::default();
        let left = job.run(|place, content| {
            if job.carried.content(job.bases, place).is_none() {
                fresh.add(place, content);
            }
        })?;
        if let Some(carry) = job.carry {
            carry.begin_catching_up(pass.backend);
        }
        let layout = Layout::of(job.feed);
        let names = thread::scope(|scope| {
            let written = scope.spawn(|| job.write_left(left));
            let names = trees::store(&job, &layout, &fresh);
            written.join().unwrap_or_else(|panic| resume_unwind(panic)).and(names)
        })?;
        Ok(Made { job, layout, fresh, names })
    }

    /// Writes the rest of the index: what was stored may be named by a snapshot once this has returned.
    ///
    /// # Errors
    /// If the repository cannot be written.
    pub(crate) fn list(&self, made: &Made<'_>) -> Result<(), RepositoryError> {
        self.indexer.finish(&made.job.sink)
    }

    /// Leaves the index for the next session, once all of it is written.
    pub(crate) fn leave_index(&self, key: &SecretKey) {
        if let Some(cache) = &self.cache {
            cache.save(key, &self.index);
        }
    }

    fn job<'a>(&'a self, pass: Pass<'a>) -> Job<'a> {
        let sink = Sink {
            backend: pass.backend,
            key: pass.key,
            index: &self.index,
            indexer: &self.indexer,
            levels: self.levels,
        };
        Job {
            feed: pass.feed,
            bases: pass.bases,
            carry: pass.carry,
            carried: Carried::find(pass.feed, pass.bases, pass.carry),
            chunking: &self.chunking,
            meter: pass.meter,
            sink,
            data_pack: DATA_PACK,
            tree_pack: TREE_PACK,
        }
    }
}

impl Job<'_> {
    /// Stores the contents of all files, and hands them to `take` in order; files that cannot be read are left out. All
    /// packs of data are on disk when this returns but what is left over for [`Self::write_left`].
    fn run(&self, mut take: impl FnMut(usize, &[Place])) -> Result<Vec<Sealed>, RepositoryError> {
        let board = Board::new();
        let (taken, left) = thread::scope(|scope| {
            let all = 2 * cores();
            let board = &board;
            let workers: Vec<_> =
                (0..all).map(|number| scope.spawn(move || work::work(self, board, (number, all)))).collect();
            let taken = self.take_all(board, &mut take);
            if let Err(error) = &taken {
                tracing::debug!("the archiver gives up: {error}");
                board.fail(RepositoryError::Damaged { what: "the archiver gave up".into() });
            }
            // A worker that panics has failed the board.
            let left: Vec<_> =
                workers.into_iter().filter_map(|worker| worker.join().ok().flatten()).collect();
            (taken, left)
        });
        taken?;
        board.into_result()?;
        Ok(left)
    }

    fn write_left(&self, left: Vec<Sealed>) -> Result<(), RepositoryError> {
        pack::write_all(&self.sink, BlobType::Data, self.data_pack, left)
    }

    fn take_all(&self, board: &Board, take: &mut impl FnMut(usize, &[Place])) -> Result<(), RepositoryError> {
        let mut early = HashMap::new();
        for place in 0..self.feed.len() {
            if place % REACH == 0 {
                board.reached(place);
            }
            let Some(size) = self.feed.file_size(place) else { continue };
            if let Some(content) = self.carried.content(self.bases, place) {
                self.meter.count(size.0);
                take(place, content);
            } else if let Some(content) = board.wait(self, place, &mut early)? {
                take(place, &content);
            }
        }
        board.reached(self.feed.len());
        Ok(())
    }
}
