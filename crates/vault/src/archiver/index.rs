//! Where every blob is: the repository's index in memory, with what this run adds.
//!
//! One entry of 48 bytes for each blob and 5 to 11 bytes of a hash table for finding it. An entry keeps its
//! place in the list for as long as the index lives, so contents of files are kept as lists of places, 4 bytes
//! a blob.
//!
//! Crash story: memory only.

mod left;

use std::{
    collections::HashMap,
    hint,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use os::memory;
use rustic_core::repofile::BlobType;

use super::{name::Name, records::IndexRecords};

/// The place of a blob in the index.
pub(crate) type Place = u32;

/// The pack of a blob that is not written yet.
const PENDING: u32 = (1 << 31) - 1;

/// The bit that says that a blob is a tree.
const TREE: u32 = 1 << 31;

const EMPTY: u32 = u32::MAX;

/// So many names are looked up together.
const BATCH: usize = 16;

/// Where a blob is in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Where it begins, in bytes.
    pub(crate) offset: u32,
    /// Its stored length in bytes, with nonce and tag.
    pub(crate) length: u32,
    /// Its length in bytes before it was compressed; 0 if it is not.
    pub(crate) raw: u32,
}

impl Spot {
    /// How many bytes of content there are.
    pub(crate) fn content_length(self) -> u64 {
        u64::from(if self.raw == 0 { self.length.saturating_sub(32) } else { self.raw })
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    name: Name,
    /// Number of its pack, and [`TREE`].
    pack: u32,
    spot: Spot,
}

impl Entry {
    fn is(&self, tpe: BlobType, name: &Name) -> bool {
        self.name == *name && (self.pack & TREE != 0) == (tpe == BlobType::Tree)
    }

    fn pack(&self) -> u32 {
        self.pack & !TREE
    }
}

/// A pack, and whether its blobs may be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// An index names it.
    Indexed,
    /// No index names it: a killed run left it. Nobody has looked into it yet.
    Orphan,
    /// It is not what its name says.
    Bad,
}

struct Pack {
    name: Name,
    /// Its size in bytes on disk; nothing if it is not there.
    size: Option<u64>,
    standing: Standing,
}

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    /// Places of entries, by open addressing; a power of two.
    slots: Vec<u32>,
    packs: Vec<Pack>,
    numbers: HashMap<Name, u32>,
    /// The index files that all this stands in.
    files: Vec<Name>,
    /// So many of the first entries were taken over from a cache.
    adopted: usize,
}

/// The answer to "must I store this blob".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The repository has it, or another worker is storing it.
    Known(Place),
    /// Whoever asked stores it.
    Mine(Place),
    /// It is in a pack that no index names: look whether that pack is good, then ask again.
    Orphan {
        /// The number of that pack.
        pack: u32,
    },
}

/// What is lost of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lost {
    /// A blob is in no index.
    Blob(Name),
    /// A pack is not there.
    Pack(Name),
    /// A pack ends before a blob does.
    EndOfPack(Name),
}

/// The index. Every method may be called from any thread.
#[derive(Default)]
pub(crate) struct Index(RwLock<Inner>);

impl Index {
    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner_mut(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes which packs exist, with their sizes in bytes; all others do not.
    pub(crate) fn note_packs(&self, there: &[(Name, u64)]) {
        let mut inner = self.inner_mut();
        inner.packs.iter_mut().for_each(|pack| pack.size = None);
        for (name, size) in there {
            let number = inner.pack_number(*name, Standing::Orphan);
            if let Some(pack) = inner.packs.get_mut(number as usize) {
                pack.size = Some(*size);
            }
        }
    }

    /// Adds a pack with its blobs. What is known already stays where it is, unless that place is lost.
    pub(crate) fn add_pack(&self, name: Name, standing: Standing, blobs: &[(BlobType, Name, Spot)]) {
        self.inner_mut().add_pack(name, standing, blobs);
    }

    /// Adds what the index file of this name says. So many blobs are expected in all of them, for which room is made at once.
    pub(crate) fn add_records(&self, file: Name, records: &IndexRecords, expected: usize) {
        let mut inner = self.inner_mut();
        inner.make_room(expected);
        records.packs().for_each(|(name, blobs)| inner.add_pack(name, Standing::Indexed, blobs));
        inner.files.push(file);
    }

    /// Takes note of an index file that was written.
    pub(crate) fn note_file(&self, name: Name) {
        self.inner_mut().files.push(name);
    }

    /// Packs on disk that no index names.
    pub(crate) fn orphans(&self) -> Vec<(Name, u64)> {
        let inner = self.inner();
        let orphans = inner.packs.iter().filter(|pack| pack.standing == Standing::Orphan);
        orphans.filter_map(|pack| Some((pack.name, pack.size?))).collect()
    }

    /// The name and size of a pack.
    pub(crate) fn pack(&self, number: u32) -> Option<(Name, u64, Standing)> {
        let inner = self.inner();
        let pack = inner.packs.get(number as usize)?;
        Some((pack.name, pack.size?, pack.standing))
    }

    /// Says what became of an orphan.
    pub(crate) fn judge(&self, number: u32, standing: Standing) {
        if let Some(pack) = self.inner_mut().packs.get_mut(number as usize) {
            pack.standing = standing;
        }
    }

    /// The place of a blob, which becomes that of whoever asks if nobody has it.
    pub(crate) fn claim(&self, tpe: BlobType, name: &Name) -> Claim {
        let mut inner = self.inner_mut();
        let tree = if tpe == BlobType::Tree { TREE } else { 0 };
        let pending =
            Entry { name: *name, pack: PENDING | tree, spot: Spot { offset: 0, length: 0, raw: 0 } };
        let place = match inner.find_or_push(tpe, pending) {
            Ok(place) => place,
            Err(pushed) => return Claim::Mine(pushed),
        };
        let pack = inner.entries[place as usize].pack();
        match inner.packs.get(pack as usize).map(|pack| pack.standing) {
            Some(Standing::Orphan) => Claim::Orphan { pack },
            Some(Standing::Bad) => {
                inner.entries[place as usize] = pending;
                Claim::Mine(place)
            }
            Some(Standing::Indexed) | None => Claim::Known(place),
        }
    }

    /// Says where claimed blobs are now: in a pack that is on disk.
    pub(crate) fn settle(&self, pack: Name, size: u64, blobs: &[(Place, Spot)]) {
        let mut inner = self.inner_mut();
        let number = inner.pack_number(pack, Standing::Indexed);
        if let Some(pack) = inner.packs.get_mut(number as usize) {
            (pack.size, pack.standing) = (Some(size), Standing::Indexed);
        }
        for (place, spot) in blobs {
            if let Some(entry) = inner.entries.get_mut(*place as usize) {
                entry.pack = (entry.pack & TREE) | number;
                entry.spot = *spot;
            }
        }
    }

    /// The places of data blobs that an index names; nothing if it does not name all of them. And how many bytes they have
    /// together, if all of them are there.
    pub(crate) fn locate(&self, names: &[Name]) -> Option<(Vec<Place>, Option<u64>)> {
        let inner = self.inner();
        let (mut places, mut length) = (Vec::with_capacity(names.len()), Some(0));
        for batch in names.chunks(BATCH) {
            inner.fetch(batch.iter());
            for name in batch {
                let place = inner.indexed(BlobType::Data, name)?;
                let entry = &inner.entries[place as usize];
                length = length.filter(|_| inner.holds(entry)).map(|sum| sum + entry.spot.content_length());
                places.push(place);
            }
        }
        Some((places, length))
    }

    /// Where a blob is: the name of its pack and the spot in it.
    pub(crate) fn spot(&self, tpe: BlobType, name: &Name) -> Option<(Name, Spot)> {
        let inner = self.inner();
        let entry = inner.entries[inner.indexed(tpe, name)? as usize];
        Some((inner.packs.get(entry.pack() as usize)?.name, entry.spot))
    }

    /// What is at a place: its name, the name of its pack and the spot in it; nothing if no index names it.
    pub(crate) fn at(&self, place: Place) -> Option<(Name, Name, Spot)> {
        let inner = self.inner();
        let entry = inner.entries.get(place as usize)?;
        let pack = inner.packs.get(entry.pack() as usize)?;
        (pack.standing == Standing::Indexed).then_some((entry.name, pack.name, entry.spot))
    }

    /// The names of blobs.
    pub(crate) fn names(&self, places: &[Place]) -> Vec<Name> {
        let inner = self.inner();
        places.iter().map(|place| inner.entries[*place as usize].name).collect()
    }

    /// The same, in the place of what was there.
    pub(crate) fn names_into(&self, places: &[Place], names: &mut Vec<Name>) {
        let inner = self.inner();
        names.clear();
        names.extend(places.iter().map(|place| inner.entries[*place as usize].name));
    }

    /// Whether a blob is in a pack that an index names and that reaches as far as it says.
    pub(crate) fn is_there(&self, tpe: BlobType, name: &Name) -> bool {
        let inner = self.inner();
        inner.indexed(tpe, name).is_some_and(|place| inner.holds_at(place))
    }

    /// Whether all these files, each with the places of its parts and its size in bytes, are there whole.
    pub(crate) fn hold<'a>(&self, mut files: impl Iterator<Item = (&'a [Place], u64)>) -> bool {
        let inner = self.inner();
        files.all(|(places, size)| {
            let mut length = 0;
            let are_there = places.iter().all(|place| {
                let Some(entry) = inner.entries.get(*place as usize) else { return false };
                length += entry.spot.content_length();
                let pack = inner.packs.get(entry.pack() as usize);
                pack.is_some_and(|pack| pack.standing == Standing::Indexed) && inner.holds(entry)
            });
            are_there && length == size
        })
    }

    /// How many bytes the blobs at these places have together; nothing unless they are those with these names and all of them
    /// are there.
    pub(crate) fn are_there(&self, places: &[Place], names: &[Name]) -> Option<u64> {
        let inner = self.inner();
        let length = |(place, name): (&Place, &Name)| {
            let entry = inner.entries.get(*place as usize).filter(|entry| entry.is(BlobType::Data, name))?;
            let is_indexed = inner.packs.get(entry.pack() as usize)?.standing == Standing::Indexed;
            (is_indexed && inner.holds(entry)).then(|| entry.spot.content_length())
        };
        if places.len() == names.len() { places.iter().zip(names).map(length).sum() } else { None }
    }

    /// How many bytes these data blobs have together.
    ///
    /// # Errors
    /// If one of them is not there.
    pub(crate) fn measure(&self, names: &[Name]) -> Result<u64, Lost> {
        let inner = self.inner();
        let mut length = 0;
        for name in names {
            let place = inner.indexed(BlobType::Data, name).ok_or(Lost::Blob(*name))?;
            let entry = inner.entries[place as usize];
            let pack = inner.packs.get(entry.pack() as usize).ok_or(Lost::Blob(*name))?;
            match pack.size {
                None => return Err(Lost::Pack(pack.name)),
                Some(_) if !inner.holds(&entry) => return Err(Lost::EndOfPack(pack.name)),
                Some(_) => length += entry.spot.content_length(),
            }
        }
        Ok(length)
    }
}

impl Inner {
    fn pack_number(&mut self, name: Name, standing: Standing) -> u32 {
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        let number = self.packs.len() as u32;
        self.packs.push(Pack { name, size: None, standing });
        self.numbers.insert(name, number);
        number
    }

    /// Whether the entry's pack reaches as far as the entry says.
    fn holds(&self, entry: &Entry) -> bool {
        let size = self.packs.get(entry.pack() as usize).and_then(|pack| pack.size);
        size.is_some_and(|size| u64::from(entry.spot.offset) + u64::from(entry.spot.length) <= size)
    }

    fn holds_at(&self, place: Place) -> bool {
        let entry = self.entries[place as usize];
        self.holds(&entry)
    }

    /// The place of a blob in a pack that an index names.
    fn indexed(&self, tpe: BlobType, name: &Name) -> Option<Place> {
        let place = self.find(tpe, name)?;
        let pack = self.packs.get(self.entries[place as usize].pack() as usize)?;
        (pack.standing == Standing::Indexed).then_some(place)
    }

    fn add_pack(&mut self, name: Name, standing: Standing, blobs: &[(BlobType, Name, Spot)]) {
        let number = self.pack_number(name, standing);
        if standing == Standing::Indexed
            && let Some(pack) = self.packs.get_mut(number as usize)
        {
            pack.standing = standing;
        }
        for batch in blobs.chunks(BATCH) {
            self.fetch(batch.iter().map(|(_, name, _)| name));
            for (tpe, name, spot) in batch {
                let tree = if *tpe == BlobType::Tree { TREE } else { 0 };
                let entry = Entry { name: *name, pack: number | tree, spot: *spot };
                if let Ok(place) = self.find_or_push(*tpe, entry)
                    && self.holds(&entry)
                    && !self.holds_at(place)
                {
                    self.entries[place as usize] = entry;
                }
            }
        }
    }

    /// Brings near what is looked up next: slots lie all over the memory, and the processor fetches several at once if none
    /// of them has to be waited for.
    fn fetch<'n>(&self, names: impl Iterator<Item = &'n Name>) {
        let Some(mask) = self.slots.len().checked_sub(1) else { return };
        let place = |name: &Name| self.slots[name.spread() as usize & mask];
        hint::black_box(names.map(place).fold(0, |all, place| all ^ place));
    }

    /// The place of a blob, or the slot that it would take.
    fn look_up(&self, tpe: BlobType, name: &Name) -> Result<Place, Option<usize>> {
        let mask = self.slots.len().checked_sub(1).ok_or(None)?;
        let mut slot = name.spread() as usize & mask;
        loop {
            match self.slots[slot] {
                EMPTY => return Err(Some(slot)),
                place if self.entries[place as usize].is(tpe, name) => return Ok(place),
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    fn find(&self, tpe: BlobType, name: &Name) -> Option<Place> {
        self.look_up(tpe, name).ok()
    }

    /// The place of a blob; or the one that it has from now on.
    fn find_or_push(&mut self, tpe: BlobType, entry: Entry) -> Result<Place, Place> {
        let slot = match self.look_up(tpe, &entry.name) {
            Ok(place) => return Ok(place),
            Err(slot) => slot,
        };
        let place = self.entries.len() as Place;
        self.entries.push(entry);
        match slot {
            Some(slot) if self.entries.len() * 4 <= self.slots.len() * 3 => self.slots[slot] = place,
            _ => self.spread_over((self.slots.len() * 2).max(1024)),
        }
        Err(place)
    }

    /// Makes room for so many entries in all.
    fn make_room(&mut self, count: usize) {
        let more = count.saturating_sub(self.entries.len());
        if more > self.entries.capacity() - self.entries.len() {
            // And for what this run stores.
            self.entries.reserve(more + more / 8);
            memory::prefer_large_pages(&mut self.entries);
        }
        if count * 4 > self.slots.len() * 3 {
            self.spread_over((count * 4).div_ceil(3).next_power_of_two());
        }
    }

    /// Makes so many slots, a power of two, for the entries.
    fn spread_over(&mut self, count: usize) {
        self.slots = Vec::new();
        self.slots.reserve_exact(count);
        memory::prefer_large_pages(&mut self.slots);
        self.slots.resize(count, EMPTY);
        let mask = count - 1;
        for (place, entry) in self.entries.iter().enumerate() {
            let mut slot = entry.name.spread() as usize & mask;
            while self.slots[slot] != EMPTY {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = place as Place;
        }
    }
}

#[cfg(test)]
mod tests {
    use rustic_core::repofile::BlobType::{Data, Tree};

    use super::{Claim, Index, Lost, Name, Spot, Standing};

    fn spot(offset: u32) -> Spot {
        Spot { offset, length: 132, raw: 0 }
    }

    #[test]
    fn what_is_claimed_is_claimed_once_and_found_when_it_is_settled() {
        let index = Index::default();
        let names: Vec<Name> = (0..5000_u32).map(|n| Name::of(&n.to_le_bytes())).collect();
        for (n, name) in names.iter().enumerate() {
            assert_eq!(index.claim(Data, name), Claim::Mine(n as u32));
            assert_eq!(index.claim(Data, name), Claim::Known(n as u32));
        }
        assert_eq!(index.locate(&names[..1]), None, "it is in no pack yet");
        let pack = Name::of(b"pack");
        let places: Vec<_> = (0..5000).map(|n| (n, spot(n * 132))).collect();
        index.settle(pack, 5000 * 132, &places);
        assert_eq!(index.names(&index.locate(&names).unwrap().0), names);
        assert_eq!(index.measure(&names), Ok(5000 * 100));
        assert_eq!(index.spot(Data, &names[7]), Some((pack, spot(7 * 132))));
        assert_eq!(index.spot(Tree, &names[7]), None, "data is no tree");
        assert_eq!(index.claim(Tree, &names[7]), Claim::Mine(5000));
    }

    #[test]
    fn what_is_lost_is_told_and_a_better_place_is_taken() {
        let index = Index::default();
        let (blob, short, gone) = (Name::of(b"blob"), Name::of(b"short"), Name::of(b"gone"));
        index.note_packs(&[(short, 100)]);
        index.add_pack(gone, Standing::Indexed, &[(Data, blob, spot(0))]);
        assert_eq!(index.measure(&[blob]), Err(Lost::Pack(gone)));
        index.add_pack(short, Standing::Indexed, &[(Data, blob, spot(0))]);
        assert_eq!(index.measure(&[blob]), Err(Lost::Pack(gone)), "this one is no better");
        index.note_packs(&[(short, 132)]);
        index.add_pack(short, Standing::Indexed, &[(Data, blob, spot(0))]);
        assert_eq!(index.measure(&[blob]), Ok(100));
        index.note_packs(&[(short, 131)]);
        assert_eq!(index.measure(&[blob]), Err(Lost::EndOfPack(short)));
    }

    #[test]
    fn an_orphan_is_looked_at_before_it_is_used() {
        let index = Index::default();
        let (blob, pack) = (Name::of(b"blob"), Name::of(b"pack"));
        index.note_packs(&[(pack, 132)]);
        assert_eq!(index.orphans(), [(pack, 132)]);
        index.add_pack(pack, Standing::Orphan, &[(Data, blob, spot(0))]);
        assert_eq!(index.claim(Data, &blob), Claim::Orphan { pack: 0 });
        assert_eq!(index.locate(&[blob]), None);
        index.judge(0, Standing::Bad);
        assert_eq!(index.claim(Data, &blob), Claim::Mine(0));
        index.judge(0, Standing::Indexed);
        assert_eq!(index.orphans(), []);
    }
}
