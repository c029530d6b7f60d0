//! Extent maps: telling from addresses alone which parts of two files are the same bytes.
//!
//! Two files of one filesystem that both exist and have the same address at the same place share the bytes there: a
//! filesystem with shared extents writes a change elsewhere. That holds for frozen files only, and only where the
//! address says something about the bytes: compressed, inline, delayed and unwritten extents are doubtful. A map
//! speaks of one moment, so nobody compares with a map that was kept: what is kept of one only tells whether the file's map
//! of now is the same.
//!
//! Crash story: pure functions, no effects.

use std::ops::Range;

/// No filesystem of Linux has larger blocks.
const LARGEST_BLOCK: u64 = 64 << 10;

/// One extent of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file, in bytes.
    pub logical: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// Where it begins on the device, in bytes; `None` if that says nothing about the bytes.
    pub physical: Option<u64>,
}

/// Where a file's extents lay at some moment.
///
/// To tell where a live file differs from a clone of it: take the clone's map, then the live file's
/// ([`Map::differing_from`]), and then the clone's again ([`Map::holds_outside`]). An address that the clone gave up in
/// between might have been given to the live file; if the clone still has the same addresses afterwards, it had them
/// all the time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Map {
    extents: Vec<Extent>,
    length: u64,
}

impl Map {
    /// The map of a file of so many bytes, without extents yet.
    #[must_use]
    pub fn new(length: u64) -> Self {
        Self { extents: Vec::new(), length }
    }

    /// Adds the next extent of the file, as a part of the last one if it goes on where that ends: a filesystem may cut
    /// one extent into several for reasons of its own, such as a part that has come to be shared.
    pub fn push(&mut self, next: Extent) {
        if let Some(last) = self.extents.last_mut()
            && last.logical.saturating_add(last.length) == next.logical
            && last.physical.map(|p| p.saturating_add(last.length)) == next.physical
        {
            last.length = last.length.saturating_add(next.length);
        } else {
            self.extents.push(next);
        }
    }

    /// The extents in order.
    pub fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.extents.iter()
    }

    /// How many extents there are, those that go on as one counted once.
    #[must_use]
    pub fn extents(&self) -> usize {
        self.extents.len()
    }

    /// The byte ranges where this file may differ from `other`, ordered, apart, and beginning at block boundaries;
    /// they end at block boundaries or at the end of the file. What is not in them is equal, if `other` still has
    /// its map. Ranges whose address says nothing about their bytes (compressed, inline, delayed or unwritten
    /// extents) count as different, and so does everything beyond the end of the shorter one.
    #[must_use]
    pub fn differing_from(&self, other: &Self) -> Vec<Range<u64>> {
        let both = if self.length == other.length {
            self.length
        } else {
            self.length.min(other.length) / LARGEST_BLOCK * LARGEST_BLOCK
        };
        let mut ranges = differing(&self.extents, &other.extents, both);
        if both < self.length {
            match ranges.last_mut() {
                Some(last) if last.end == both => last.end = self.length,
                _ => ranges.push(both..self.length),
            }
        }
        ranges
    }

    /// The same map, in which an address says nothing unless it lies in one of these ranges of the device, which are
    /// ordered and apart: those where the device is known to hold what the other file's device holds there. So two
    /// frozen files on two snapshots of one device are compared as two on one device.
    #[must_use]
    pub fn trusted_within(&self, ranges: &[Range<u64>]) -> Self {
        let mut map = Self::new(self.length);
        for extent in &self.extents {
            let Some(physical) = extent.physical else {
                map.push(*extent);
                continue;
            };
            let end = physical.saturating_add(extent.length);
            let mut part = |from: u64, to: u64, is_known: bool| {
                let logical = extent.logical.saturating_add(from - physical);
                if from < to {
                    map.push(Extent { logical, length: to - from, physical: is_known.then_some(from) });
                }
            };
            let mut at = physical;
            let first = ranges.partition_point(|range| range.end <= physical);
            for range in ranges.iter().skip(first).take_while(|range| range.start < end) {
                let (from, to) = (range.start.max(at), range.end.min(end));
                part(at, from, false);
                part(from, to, true);
                at = to;
            }
            part(at, end, false);
        }
        map
    }

    /// Whether a later map of the same file shows the same addresses everywhere but in these ranges, which are
    /// those of [`Self::differing_from`] with this as the other map.
    #[must_use]
    pub fn holds_outside(&self, ranges: &[Range<u64>], later: &Self) -> bool {
        // What is doubtful counts as different here too, but is among the ranges: nobody trusted it.
        let both = self.length.min(later.length);
        let moved = differing(&self.extents, &later.extents, both);
        let is_among = |moved: &Range<u64>| {
            let before = ranges.partition_point(|range| range.end <= moved.start);
            ranges.get(before).is_some_and(|range| range.start <= moved.start && moved.end <= range.end)
        };
        moved.iter().all(is_among)
    }
}

/// The chunks of a frozen file that have to be read, since they may not be what stood there in an older frozen file:
/// ranges of chunk numbers, ordered and apart. Chunks begin at multiples of `chunk` bytes; the last one ends with its
/// file. All others are the same bytes and have the same ends in both.
///
/// The older file's map was taken `before` the newer one's and again `after` it; `before` may be of when the older file was
/// made, if it was frozen since. Nothing is answered if these two
/// differ: then the filesystem is moving its extents about, and any chunk may be another one.
#[must_use]
pub fn chunks_to_read(before: &Map, newer: &Map, after: &Map, chunk: u64) -> Option<Vec<Range<u64>>> {
    if before != after || chunk == 0 {
        return None;
    }
    let mut found: Vec<Range<u64>> = Vec::new();
    // Where the shorter one ends within a chunk, that chunk is another one even if all its bytes are the same.
    let end = newer.length.min(before.length);
    let is_cut = newer.length != before.length && !end.is_multiple_of(chunk);
    let cut = is_cut.then(|| end / chunk * chunk..end);
    for bytes in newer.differing_from(before).into_iter().chain(cut) {
        let chunks = bytes.start / chunk..bytes.end.div_ceil(chunk);
        match found.last_mut() {
            Some(last) if last.end >= chunks.start => last.end = last.end.max(chunks.end),
            _ => found.push(chunks),
        }
    }
    Some(found)
}

/// What stands at one place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing: it reads as zeroes.
    Hole,
    /// On the device: the distance from the place in the file, which is the same all along an extent.
    At(u64),
    /// Unknown.
    Doubtful,
}

/// The ranges below `length` where the two maps do not say that the bytes are the same. Both are ordered.
fn differing(a: &[Extent], b: &[Extent], length: u64) -> Vec<Range<u64>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    let (mut a, mut b) = (Cursor(a), Cursor(b));
    let mut at = 0;
    while at < length {
        let (here, end_a) = a.look(at);
        let (there, end_b) = b.look(at);
        let end = end_a.min(end_b).min(length);
        if here != there || here == Place::Doubtful {
            match found.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => found.push(at..end),
            }
        }
        at = end;
    }
    found
}

/// The extents that do not end before the place last looked at.
struct Cursor<'a>(&'a [Extent]);

impl Cursor<'_> {
    /// What stands at `at`, and up to where that goes on; always beyond `at`. Called with growing places.
    fn look(&mut self, at: u64) -> (Place, u64) {
        while let Some((first, rest)) = self.0.split_first() {
            if first.logical.saturating_add(first.length) > at {
                break;
            }
            self.0 = rest;
        }
        match self.0.first() {
            None => (Place::Hole, u64::MAX),
            Some(next) if next.logical > at => (Place::Hole, next.logical),
            Some(here) => {
                let place = match here.physical {
                    Some(physical) => Place::At(physical.wrapping_sub(here.logical)),
                    None => Place::Doubtful,
                };
                (place, here.logical.saturating_add(here.length))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::{Extent, Map, chunks_to_read, differing};

    const fn extent(logical: u64, length: u64, physical: Option<u64>) -> Extent {
        Extent { logical, length, physical }
    }

    #[test]
    fn equal_addresses_are_equal_bytes_unless_doubtful() {
        let a = [extent(0, 8, Some(100)), extent(8, 8, None)];
        assert_eq!(differing(&a, &a, 16), vec![8..16]);
        assert_eq!(differing(&a, &a, 10), vec![8..10]);
    }

    #[test]
    fn the_same_address_at_another_place_is_different() {
        let a = [extent(0, 8, Some(100))];
        let b = [extent(4, 4, Some(100))];
        assert_eq!(differing(&a, &b, 8), vec![0..8]);
    }

    #[test]
    fn extents_that_go_on_are_one() {
        let mut joined = Map::new(24);
        for next in [
            extent(0, 4, Some(100)),
            extent(4, 4, Some(104)),
            extent(8, 4, Some(50)),
            extent(16, 4, Some(58)),
            extent(20, 4, None),
            extent(24, 4, None),
        ] {
            joined.push(next);
        }
        assert_eq!(
            joined.extents,
            [extent(0, 8, Some(100)), extent(8, 4, Some(50)), extent(16, 4, Some(58)), extent(20, 8, None)]
        );
    }

    #[test]
    fn extents_cut_otherwise_are_still_equal() {
        let whole = [extent(0, 8, Some(100))];
        let cut = [extent(0, 4, Some(100)), extent(4, 4, Some(104))];
        assert_eq!(differing(&whole, &cut, 8), vec![]);
    }

    /// A file of blocks, each a hole, doubtful, or at some address.
    fn blocks() -> impl Strategy<Value = Vec<Option<Option<u64>>>> {
        let block = prop_oneof![Just(None), Just(Some(None)), (0_u64..4).prop_map(|p| Some(Some(p)))];
        prop::collection::vec(block, 0..12)
    }

    /// The blocks as extents, neighbours joined where they can be and `join` says so.
    fn map(blocks: &[Option<Option<u64>>], join: &[bool]) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for (n, block) in blocks.iter().enumerate() {
            let Some(address) = block else { continue };
            let (logical, physical) = (n as u64 * 4, address.map(|p| (p * 100 + n as u64) * 4));
            match extents.last_mut() {
                Some(last)
                    if join[n]
                        && last.logical + last.length == logical
                        && last.physical.map(|p| p + last.length) == physical =>
                {
                    last.length += 4;
                }
                _ => extents.push(extent(logical, 4, physical)),
            }
        }
        extents
    }

    /// What the last block lacks: files of pages often end with a block.
    fn cut() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0_u64..65536]
    }

    fn as_map(extents: Vec<Extent>, length: u64) -> Map {
        let mut map = Map::new(length);
        extents.into_iter().for_each(|extent| map.push(extent));
        map
    }

    #[test]
    fn nothing_is_believed_while_extents_are_moved() {
        let (here, there) = (as_map(vec![extent(0, 8, Some(8))], 8), as_map(vec![extent(0, 8, Some(80))], 8));
        assert_eq!(chunks_to_read(&here, &here, &here, 4), Some(vec![]));
        assert_eq!(chunks_to_read(&here, &here, &there, 4), None);
        let read = chunks_to_read(&here, &there, &here, 4);
        assert!(matches!(read.as_deref(), Some([Range { start: 0, end: 2 }])), "{read:?}");
        assert_eq!(chunks_to_read(&here, &here, &as_map(vec![extent(0, 8, Some(8))], 7), 4), None);
    }

    #[test]
    fn an_address_outside_what_the_devices_share_says_nothing() {
        let map =
            as_map(vec![extent(0, 100, Some(1000)), extent(100, 50, None), extent(200, 50, Some(500))], 250);
        let trusted = map.trusted_within(&[0..10, 505..510, 1020..1040, 1090..2000]);
        let parts = [
            extent(0, 20, None),
            extent(20, 20, Some(1020)),
            extent(40, 50, None),
            extent(90, 10, Some(1090)),
            extent(100, 50, None),
            extent(200, 5, None),
            extent(205, 5, Some(505)),
            extent(210, 40, None),
        ];
        assert_eq!(trusted.extents, parts);
        assert_eq!(map.trusted_within(std::slice::from_ref(&(0..u64::MAX))), map);
    }

    proptest! {
        /// Two snapshots of one device of 64 blocks, a file in each, pool blocks of any size: the oracle compares bytes.
        #[test]
        fn what_two_snapshots_share_is_not_read_and_all_else_is(
            a in blocks(), b in blocks(), join in prop::collection::vec(any::<bool>(), 12),
            changed in prop::collection::vec(any::<bool>(), 64), pool_block in 1_u64..9, chunk in 1_u64..4,
        ) {
            const BLOCK: u64 = 65536;
            let on_device = |blocks: &[Option<Option<u64>>]| {
                let wide = map(blocks, &join).into_iter().map(|e| {
                    // Addresses of `map` are 400 apart for each of four runs of 12 blocks.
                    let physical = e.physical.map(|p| (p / 4 % 100 + p / 400 * 16) * BLOCK);
                    extent(e.logical * BLOCK / 4, e.length * BLOCK / 4, physical)
                });
                as_map(wide.collect(), blocks.len() as u64 * BLOCK)
            };
            let (older, newer) = (on_device(&a), on_device(&b));
            let is_changed = |block: u64| changed[usize::try_from(block / pool_block).unwrap()];
            let mut same: Vec<Range<u64>> = Vec::new();
            for pool in (0..64_u64.div_ceil(pool_block)).filter(|n| !is_changed(n * pool_block)) {
                same.push(pool * pool_block * BLOCK..(pool + 1) * pool_block * BLOCK);
            }
            let read = chunks_to_read(&older, &newer.trusted_within(&same), &older, chunk * BLOCK).unwrap();
            // What the device holds at a place, in either snapshot.
            let content = |blocks: &[Option<Option<u64>>], n: u64, is_newer: bool| {
                match blocks.get(usize::try_from(n).unwrap()) {
                    None | Some(None) => Some((0, false)),
                    Some(Some(None)) => None,
                    Some(Some(Some(run))) => {
                        let at = run * 16 + n;
                        Some((1 + at, is_newer && is_changed(at)))
                    }
                }
            };
            let differs = |n: u64| {
                let (here, there) = (content(&a, n, false), content(&b, n, true));
                here.is_none() || here != there
            };
            for n in 0..(b.len() as u64).div_ceil(chunk) {
                let mut blocks = n * chunk..((n + 1) * chunk).min(b.len() as u64);
                let is_cut = (n + 1) * chunk > a.len().min(b.len()) as u64 && a.len() != b.len();
                let is_read = read.iter().any(|range| range.contains(&n));
                prop_assert_eq!(is_read || is_cut, blocks.any(differs) || is_cut, "chunk {}", n);
            }
        }

        #[test]
        fn every_byte_is_judged_as_its_block(
            a in blocks(), b in blocks(), join in prop::collection::vec(any::<bool>(), 12), tail in 0_u64..4,
        ) {
            let n = a.len().max(b.len());
            let length = (n as u64 * 4).saturating_sub(tail);
            let found = differing(&map(&a, &join), &map(&b, &join[..]), length);
            for at in 0..length {
                let block = usize::try_from(at / 4).unwrap();
                let here = a.get(block).copied().flatten();
                let there = b.get(block).copied().flatten();
                let differs = here != there || here == Some(None);
                prop_assert_eq!(found.iter().any(|r| r.contains(&at)), differs, "at {}", at);
            }
        }

        /// Files of 64 KiB blocks; what a device holds is told by its address alone, so that the oracle can compare bytes.
        #[test]
        fn chunks_that_are_not_read_are_the_same_bytes(
            a in blocks(), b in blocks(), join in prop::collection::vec(any::<bool>(), 12),
            cut in (cut(), cut()), chunk in 1_u64..4, grown in any::<bool>(),
        ) {
            const BLOCK: u64 = 65536;
            let sized = |blocks: &[Option<Option<u64>>], cut: u64| {
                let length = (blocks.len() as u64 * BLOCK).saturating_sub(cut);
                let wide = map(blocks, &join).into_iter().map(|e| extent(
                    e.logical * BLOCK / 4, e.length * BLOCK / 4, e.physical.map(|p| p * BLOCK / 4),
                ));
                as_map(wide.collect(), length)
            };
            let (older, newer) = (sized(&a, cut.0), sized(&b, if grown { cut.1 } else { cut.0 }));
            let chunk = chunk * BLOCK;
            let read = chunks_to_read(&older, &newer, &older, chunk).unwrap();
            prop_assert!(read.windows(2).all(|pair| pair[0].end < pair[1].start));
            let chunks = newer.length.div_ceil(chunk);
            prop_assert!(read.last().is_none_or(|last| last.end <= chunks));
            // The bytes of a block: nobody knows those of a doubtful one.
            let content = |blocks: &[Option<Option<u64>>], n: u64| match blocks.get(usize::try_from(n).unwrap()) {
                None | Some(None) => Some(0),
                Some(Some(None)) => None,
                Some(Some(Some(address))) => Some(1 + (*address * 100 + n) * 4),
            };
            for n in (0..chunks).filter(|n| !read.iter().any(|range| range.contains(n))) {
                let end = |map: &Map| ((n + 1) * chunk).min(map.length);
                prop_assert_eq!(end(&newer), end(&older), "the same bounds");
                for block in n * chunk / BLOCK..end(&newer).div_ceil(BLOCK) {
                    let (here, there) = (content(&a, block), content(&b, block));
                    prop_assert!(here.is_some() && here == there, "block {}: {:?} {:?}", block, here, there);
                }
            }
            // And nothing is read that need not be.
            for n in read.into_iter().flatten() {
                let blocks = n * chunk / BLOCK..((n + 1) * chunk).div_ceil(BLOCK);
                let differs = |k: u64| content(&a, k).is_none() || content(&a, k) != content(&b, k);
                let at_an_end = (n + 1) * chunk > newer.length.min(older.length) / BLOCK * BLOCK;
                prop_assert!(at_an_end && newer.length != older.length || blocks.clone().any(differs), "chunk {}", n);
            }
        }
    }
}
