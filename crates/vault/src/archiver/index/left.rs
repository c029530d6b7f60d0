//! What a session leaves of its index for the next one, and what that takes over: see [`super::super::cache`].
//!
//! Crash story: memory only.

use super::{
    super::{cache::Left, name::Name},
    Entry, Index, Spot, Standing, TREE,
};

impl Index {
    /// Takes over packs that index files name, each with the place in bytes that it has to reach: their numbers here. Nothing if
    /// one of them is not there, or ends before.
    pub(in crate::archiver) fn adopt_packs(&self, packs: &[(Name, u64)]) -> Option<Vec<u32>> {
        let mut inner = self.inner_mut();
        let number = |(name, end): &(Name, u64)| {
            let number = inner.pack_number(*name, Standing::Indexed);
            let pack = inner.packs.get_mut(number as usize)?;
            pack.standing = Standing::Indexed;
            // A pack without blobs is one that is to be deleted.
            (*end == 0 || pack.size? >= *end).then_some(number)
        };
        packs.iter().map(number).collect()
    }

    /// Makes room for so many blobs.
    pub(in crate::archiver) fn expect(&self, count: usize) {
        self.inner_mut().make_room(count + count / 8);
    }

    /// Takes over blobs, none of them twice, each with the place of its pack in these numbers and [`TREE`]; they are found after
    /// [`Self::adopted`]. Nothing if there is no such pack.
    pub(in crate::archiver) fn adopt(
        &self,
        numbers: &[u32],
        mut blobs: impl Iterator<Item = (Name, u32, Spot)>,
    ) -> Option<()> {
        let mut inner = self.inner_mut();
        blobs.try_for_each(|(name, pack, spot)| {
            let number = numbers.get((pack & !TREE) as usize)?;
            inner.entries.push(Entry { name, pack: number | (pack & TREE), spot });
            Some(())
        })
    }

    /// All of these index files are taken over.
    pub(in crate::archiver) fn adopted(&self, files: impl Iterator<Item = Name>) {
        let mut inner = self.inner_mut();
        inner.files.extend(files);
        inner.adopted = inner.entries.len();
        let slots = inner.slots.len();
        inner.spread_over(slots);
    }

    /// Hands over what a later session can take over, and how much of it was not taken over by this one. Nothing if there is a
    /// pack that has not all of its blobs.
    pub(in crate::archiver) fn leave<T>(&self, take: impl FnOnce(Left<'_>, usize) -> T) -> Option<T> {
        let inner = self.inner();
        let (mut packs, mut numbers) = (Vec::new(), vec![None; inner.packs.len()]);
        for (pack, number) in inner.packs.iter().zip(&mut numbers) {
            if pack.standing == Standing::Indexed {
                *number = Some(packs.len());
                packs.push((pack.name, 0));
            }
        }
        let number = |entry: &Entry| numbers.get(entry.pack() as usize).copied().flatten();
        let mut count = 0;
        for entry in &inner.entries {
            let Some(number) = number(entry) else { continue };
            if !inner.holds(entry) {
                return None;
            }
            let end = u64::from(entry.spot.offset) + u64::from(entry.spot.length);
            packs[number].1 = end.max(packs[number].1);
            count += 1;
        }
        let blob =
            |entry: &Entry| Some((entry.name, number(entry)? as u32 | (entry.pack & TREE), entry.spot));
        let fresh = inner.entries.len() - inner.adopted;
        let blobs = &mut inner.entries.iter().filter_map(blob);
        Some(take(Left { files: &inner.files, packs, count, blobs }, fresh))
    }
}
