//! Directories as restic's trees: one JSON document each, named by its hash.
//!
//! Made when the contents of all files are known, by all cores, from the deepest directories up. One that is, to the
//! letter, what the repository has already costs no more than its text.
//!
//! Crash story: see [`super::pack`].

use std::{
    panic::resume_unwind,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use model::{entry::Kind, pathtext, size::Bytes};
use rustic_core::repofile::BlobType;

use super::{
    Job,
    blobs::LARGE,
    compress::Effort,
    cores,
    index::{Claim, Place},
    layout::{Child, Layout},
    name::Name,
    orphans,
    pack::{self, Packer},
    written::Text,
};
use crate::repository::{error::RepositoryError, node::Names};

/// No tree is longer, in bytes; sealed, one still has a place in a pack of less than 4 GiB.
const LONGEST: usize = u32::MAX as usize - (1 << 16);

/// What was stored of the files that were not carried over, in the order of the feed: 16 bytes for each, and 4 for each
/// of their blobs.
#[derive(Default)]
pub(crate) struct Fresh {
    files: Vec<(usize, u32)>,
    places: Vec<Place>,
}

impl Fresh {
    /// Adds the content of the next file.
    pub(crate) fn add(&mut self, place: usize, content: &[Place]) {
        self.files.push((place, self.places.len() as u32));
        self.places.extend_from_slice(content);
    }

    /// The content of the file at this place, if it was stored.
    fn content(&self, place: usize) -> Option<&[Place]> {
        let at = self.files.binary_search_by_key(&place, |(place, _)| *place).ok()?;
        let from = self.files[at].1 as usize;
        let to = self.files.get(at + 1).map_or(self.places.len(), |(_, next)| *next as usize);
        self.places.get(from..to)
    }
}

/// The trees of a feed, as they were stored.
pub(crate) struct Made<'a> {
    pub(crate) job: Job<'a>,
    pub(crate) layout: Layout,
    pub(crate) fresh: Fresh,
    /// By the number of the directory.
    pub(crate) names: Vec<Name>,
}

impl Made<'_> {
    /// The tree of everything.
    pub(crate) fn root(&self) -> Name {
        self.names.first().copied().unwrap_or_default()
    }

    /// Where the content of the file at this place is; nothing if it could not be read.
    pub(crate) fn content(&self, place: usize) -> Option<&[Place]> {
        content(&self.job, &self.fresh, place)
    }
}

fn content<'a>(job: &Job<'a>, fresh: &'a Fresh, place: usize) -> Option<&'a [Place]> {
    job.carried.content(job.bases, place).or_else(|| fresh.content(place))
}

/// One thread's tools.
struct Maker {
    packer: Packer,
    users: Names,
    json: Vec<u8>,
}

/// Stores all directories; all trees are on disk when this returns.
///
/// # Errors
/// If a pack cannot be written.
pub(crate) fn store(job: &Job<'_>, layout: &Layout, fresh: &Fresh) -> Result<Vec<Name>, RepositoryError> {
    let maker = || {
        let packer = Packer::new(BlobType::Tree, job.tree_pack, job.sink.levels)?;
        Ok(Maker { packer, users: Names::default(), json: Vec::new() })
    };
    let mut makers = (0..cores()).map(|_| maker()).collect::<Result<Vec<Maker>, RepositoryError>>()?;
    let mut names = vec![Name::default(); layout.len()];
    for level in layout.deepest_first() {
        let made = {
            let make = |maker: &mut Maker, number| maker.make(job, layout, fresh, &names, number);
            on_all(&mut makers, level, make)?
        };
        made.into_iter().for_each(|(number, name)| names[number as usize] = name);
    }
    let left = makers.into_iter().map(|maker| maker.packer.end()).collect();
    pack::write_all(&job.sink, BlobType::Tree, job.tree_pack, left)?;
    Ok(names)
}

/// Makes these with all tools, each with one at a time.
fn on_all(
    makers: &mut [Maker],
    level: &[u32],
    make: impl Fn(&mut Maker, u32) -> Result<Name, RepositoryError> + Sync,
) -> Result<Vec<(u32, Name)>, RepositoryError> {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Ok(Vec::with_capacity(level.len())));
    let work = |maker: &mut Maker| {
        let mut made = Vec::new();
        let worked = loop {
            let Some(number) = level.get(next.fetch_add(1, Ordering::Relaxed)).copied() else { break Ok(()) };
            match make(maker, number) {
                Ok(name) => made.push((number, name)),
                Err(error) => break Err(error),
            }
        };
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *all, worked) {
            (Ok(all), Ok(())) => all.extend(made),
            (Ok(_), Err(error)) => {
                next.store(level.len(), Ordering::Relaxed);
                *all = Err(error);
            }
            (Err(_), _) => {}
        }
    };
    let Some((first, others)) = makers.split_first_mut() else { return Ok(Vec::new()) };
    let work = &work;
    thread::scope(|scope| {
        let helping = others.iter_mut().take(level.len().saturating_sub(1));
        helping.for_each(|maker| drop(scope.spawn(move || work(maker))));
        work(first);
    });
    all.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Maker {
    fn make(
        &mut self,
        job: &Job<'_>,
        layout: &Layout,
        fresh: &Fresh,
        names: &[Name],
        number: u32,
    ) -> Result<Name, RepositoryError> {
        let mut json = std::mem::take(&mut self.json);
        let mut text = Text::begin(&mut json, &self.users);
        let written = write(&mut text, job, layout, fresh, names, number);
        text.end();
        let stored = written
            .map_err(|error| RepositoryError::Damaged {
                what: format!("{} cannot be written: {error}", layout.path(job.feed, number).display()),
            })
            .and_then(|()| fits(json.len(), || layout.path(job.feed, number)))
            .and_then(|()| self.store(job, &json));
        self.json = json;
        stored
    }

    fn store(&mut self, job: &Job<'_>, json: &[u8]) -> Result<Name, RepositoryError> {
        if json.len() >= LARGE {
            return self.store_large(job, json);
        }
        let name = Name::of(json);
        if let Some(place) = claim(job, &name)? {
            self.packer.add(&job.sink, (place, name), json, &mut Effort::Quick)?;
        }
        Ok(name)
    }

    /// A large one is compressed while it gets its name, for nothing if it is known: others may wait for it, and nothing
    /// else is to be done.
    fn store_large(&mut self, job: &Job<'_>, json: &[u8]) -> Result<Name, RepositoryError> {
        let (name, is_smaller) = thread::scope(|scope| {
            let naming = scope.spawn(|| Name::of(json));
            let is_smaller = self.packer.compress_by_all(json);
            (naming.join().unwrap_or_else(|panic| resume_unwind(panic)), is_smaller)
        });
        if let Some(place) = claim(job, &name)? {
            self.packer.add_compressed(&job.sink, (place, name), json, is_smaller?)?;
        }
        Ok(name)
    }
}

/// The place of a tree that is to be stored; nothing if there is one already.
fn claim(job: &Job<'_>, name: &Name) -> Result<Option<Place>, RepositoryError> {
    loop {
        match job.sink.index.claim(BlobType::Tree, name) {
            Claim::Known(_) => return Ok(None),
            Claim::Mine(place) => return Ok(Some(place)),
            Claim::Orphan { pack } => orphans::look(&job.sink, pack)?,
        }
    }
}

/// A pack and its index give lengths and places in 32 bits (restic's `doc/design.rst`, "Pack Format"): what is longer would be
/// stored under another length, and read by nobody.
fn fits(length: usize, path: impl FnOnce() -> PathBuf) -> Result<(), RepositoryError> {
    match length <= LONGEST {
        true => Ok(()),
        false => Err(RepositoryError::Refused {
            what: format!(
                "the list of {} is too long for a repository ({})",
                pathtext::show(&path()),
                Bytes(length as u64)
            ),
            remedy: "divide it into several directories, or exclude a part of it".to_owned(),
        }),
    }
}

/// Writes what a directory holds. Files that could not be read are left out.
fn write(
    text: &mut Text<'_>,
    job: &Job<'_>,
    layout: &Layout,
    fresh: &Fresh,
    names: &[Name],
    number: u32,
) -> Result<(), serde_json::Error> {
    let feed = job.feed;
    let mut parts = Vec::new();
    for child in &layout.dir(number).children {
        match child {
            Child::Places(places) => {
                for (place, entry) in places.clone().filter_map(|place| Some((place, feed.entry(place)?))) {
                    let is_file = entry.kind == Kind::File;
                    if is_file {
                        let Some(content) = content(job, fresh, place) else { continue };
                        job.sink.index.names_into(content, &mut parts);
                    }
                    text.add(&entry, feed.ctime(&entry), is_file.then_some(&*parts), None)?;
                }
            }
            Child::Dir(below) => {
                let subtree = names.get(*below as usize).copied();
                match layout.dir(*below).place.and_then(|place| feed.entry(place)) {
                    Some(entry) => text.add(&entry, entry.meta.ctime, None, subtree)?,
                    None => text.add_missing(layout.name(feed, *below), subtree)?,
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, fits};

    #[test]
    fn a_list_that_has_no_place_in_a_pack_is_refused_by_its_name() {
        let asked = |length| fits(length, || "/srv/wiki/images".into());
        asked(LONGEST).unwrap();
        let refused = asked(LONGEST + 1).unwrap_err().to_string();
        assert!(refused.contains("/srv/wiki/images") && refused.contains("GiB"), "{refused}");
    }
}
