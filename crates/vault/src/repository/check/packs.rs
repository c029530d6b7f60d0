//! Packs against the index, the directory and their own names.
//!
//! Crash story: reads only.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use model::{port::Progress, problem::Problem, size::Bytes};
use rustic_core::{
    FileType, Id,
    repofile::{BlobType, IndexBlob, IndexFile, IndexId, IndexPack},
};
use sha2::{Digest, Sha256};

use super::{super::error::RepositoryError, super::error::while_doing, super::open::Repository, full};

/// One pack that the index names.
pub(super) struct Pack {
    pub(super) id: Id,
    size: u32,
    fault: Option<PackFault>,
}

/// What is wrong with a pack.
#[derive(Debug, Clone)]
pub(super) struct PackFault {
    pub(super) what: String,
    /// The parts that are lost with it; nothing means all of them.
    pub(super) parts: Option<HashSet<Id>>,
}

/// Everything that the index says.
#[derive(Default)]
pub(super) struct Catalog {
    pub(super) packs: Vec<Pack>,
    numbers: HashMap<Id, usize>,
    /// Parts of files with the packs that hold them, sorted.
    data: Vec<(Id, u32)>,
    /// Directories with every place that holds them.
    trees: HashMap<Id, Vec<(usize, IndexBlob)>>,
    /// Packs in no index.
    pub(super) unnamed: Vec<Id>,
    indexes: Vec<IndexId>,
}

impl Catalog {
    /// Reads all index files; one that cannot be read is a problem.
    pub(super) fn read(
        repository: &Repository,
        problems: &mut Vec<Problem>,
    ) -> Result<Self, RepositoryError> {
        let opened = repository.opened()?;
        let mut catalog = Self::default();
        for (id, _) in repository.backend.files(FileType::Index)? {
            let read: Result<IndexFile, _> = opened.get_file(&IndexId::from(id));
            match read.map_err(while_doing("reading an index")) {
                Ok(file) => {
                    catalog.indexes.push(id.into());
                    file.packs.into_iter().for_each(|pack| catalog.add(&pack));
                }
                Err(error) => {
                    let path = repository.backend.path(FileType::Index, &id);
                    let remedy = "run `restic repair index` (`restic rebuild-index` before 0.16), which reads \
                                  the packs and writes the index anew";
                    problems.push(Problem::missing(path, full(&error), remedy));
                }
            }
        }
        catalog.data.sort_unstable();
        Ok(catalog)
    }

    fn add(&mut self, pack: &IndexPack) {
        let id = *pack.id;
        if self.numbers.contains_key(&id) {
            return;
        }
        let number = self.packs.len();
        self.numbers.insert(id, number);
        self.packs.push(Pack { id, size: pack.pack_size(), fault: None });
        for blob in &pack.blobs {
            match blob.tpe {
                // A repository has far fewer than 2^32 packs of 16 MiB.
                BlobType::Data => self.data.push((*blob.id, u32::try_from(number).unwrap_or(u32::MAX))),
                BlobType::Tree => self.trees.entry(*blob.id).or_default().push((number, *blob)),
            }
        }
    }

    /// Looks which packs are missing, have another size, or stand in no index.
    pub(super) fn compare_with_directory(&mut self, repository: &Repository) -> Result<(), RepositoryError> {
        let there: HashMap<Id, u64> = repository.backend.files(FileType::Pack)?.into_iter().collect();
        for pack in &mut self.packs {
            pack.fault = match there.get(&pack.id) {
                None => Some(PackFault::new("it is missing")),
                Some(size) if *size != u64::from(pack.size) => {
                    Some(PackFault::new(format!("it has {size} bytes and should have {}", pack.size)))
                }
                Some(_) => None,
            };
        }
        self.unnamed = there.into_keys().filter(|id| !self.numbers.contains_key(id)).collect();
        self.unnamed.sort_unstable();
        Ok(())
    }

    /// Bytes in all packs.
    pub(super) fn size(&self) -> Bytes {
        self.packs.iter().map(|pack| Bytes(u64::from(pack.size))).sum()
    }

    /// The packs with faults.
    pub(super) fn faults(&self) -> impl Iterator<Item = (usize, &PackFault)> {
        self.packs.iter().enumerate().filter_map(|(number, pack)| Some((number, pack.fault.as_ref()?)))
    }

    /// Where a directory is stored.
    pub(super) fn tree(&self, id: &Id) -> &[(usize, IndexBlob)] {
        self.trees.get(id).map_or(&[], Vec::as_slice)
    }

    /// The pack that is to blame if this part of a file is lost: `Ok` if it is there, `Err(None)` if it is in
    /// no index.
    pub(super) fn part(&self, id: &Id) -> Result<(), Option<usize>> {
        let from = self.data.partition_point(|(part, _)| part < id);
        let mut to_blame = None;
        for (_, number) in self.data[from..].iter().take_while(|(part, _)| part == id) {
            let number = *number as usize;
            match &self.packs[number].fault {
                None => return Ok(()),
                Some(PackFault { parts: Some(parts), .. }) if !parts.contains(id) => return Ok(()),
                Some(_) => to_blame = Some(number),
            }
        }
        Err(to_blame)
    }

    /// Reads every pack and every part in it. Returns how many bytes were read.
    pub(super) fn read_packs(
        &mut self,
        repository: &Repository,
        progress: &dyn Progress,
    ) -> Result<Bytes, RepositoryError> {
        let opened = repository.opened()?;
        let (read, mut seen) = (AtomicU64::new(0), HashSet::new());
        for id in self.indexes.clone() {
            let file: IndexFile = opened.get_file(&id).map_err(while_doing("reading an index"))?;
            let whole = |pack: &IndexPack| {
                self.numbers.get(&*pack.id).is_some_and(|number| self.packs[*number].fault.is_none())
            };
            let packs: Vec<IndexPack> =
                file.packs.into_iter().filter(|pack| seen.insert(*pack.id) && whole(pack)).collect();
            for (pack, fault) in read_all(repository, &packs, &read, progress) {
                if let Some(number) = self.numbers.get(&pack) {
                    self.packs[*number].fault = Some(fault);
                }
            }
        }
        Ok(Bytes(read.into_inner()))
    }
}

/// Reads packs on all processors, and returns the faults found.
fn read_all(
    repository: &Repository,
    packs: &[IndexPack],
    read: &AtomicU64,
    progress: &dyn Progress,
) -> Vec<(Id, PackFault)> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let readers = thread::available_parallelism().map_or(2, usize::from).min(4);
    thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| {
                while let Some(pack) = packs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(fault) = read_one(repository, pack) {
                        found.lock().unwrap_or_else(PoisonError::into_inner).push((*pack.id, fault));
                    }
                    read.fetch_add(u64::from(pack.pack_size()), Ordering::Relaxed);
                    progress.advance(Bytes(u64::from(pack.pack_size())));
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn read_one(repository: &Repository, pack: &IndexPack) -> Option<PackFault> {
    let bytes = match repository.backend.read(FileType::Pack, &pack.id) {
        Ok(bytes) => bytes,
        Err(error) => return Some(PackFault::new(full(&error))),
    };
    let is_named = hex::encode(Sha256::digest(&bytes)) == *pack.id.to_hex();
    let lost: HashSet<Id> =
        pack.blobs.iter().filter(|blob| part(repository, &bytes, blob).is_none()).map(|b| *b.id).collect();
    match (is_named, lost.len()) {
        (true, 0) => None,
        (_, 0) => Some(PackFault {
            what: "it is damaged where no content is (its header)".into(),
            parts: Some(lost),
        }),
        (_, count) => Some(PackFault {
            what: format!("it is damaged: {count} of its {} parts do not read", pack.blobs.len()),
            parts: Some(lost),
        }),
    }
}

/// One part of a pack, decrypted, unpacked, and compared with its name.
fn part(repository: &Repository, pack: &[u8], blob: &IndexBlob) -> Option<Vec<u8>> {
    let from = blob.location.offset as usize;
    let sealed = pack.get(from..from.checked_add(blob.location.length as usize)?)?;
    let plain = repository.locks.key.decrypt(sealed).ok()?;
    let plain = match blob.location.uncompressed_length {
        Some(_) => zstd::stream::decode_all(&*plain).ok()?,
        None => plain,
    };
    (hex::encode(Sha256::digest(&plain)) == *blob.id.to_hex()).then_some(plain)
}

/// One stored directory, from the first place that has it whole.
pub(super) fn directory(
    repository: &Repository,
    catalog: &Catalog,
    id: &Id,
) -> Result<rustic_core::repofile::Tree, Option<usize>> {
    let mut to_blame = None;
    for (number, blob) in catalog.tree(id) {
        let (pack, place) = (&catalog.packs[*number].id, blob.location);
        let sealed = repository.backend.read_part(FileType::Pack, pack, place.offset, place.length);
        let mut alone = *blob;
        alone.location.offset = 0;
        let plain = sealed.ok().and_then(|sealed| part(repository, &sealed, &alone));
        if let Some(tree) = plain.and_then(|plain| serde_json::from_slice(&plain).ok()) {
            return Ok(tree);
        }
        to_blame = Some(*number);
    }
    Err(to_blame)
}
