//! Comparing two extent maps.
//!
//! Crash story: pure functions, no effects.

use std::ops::Range;

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

/// Adds the next extent of a file, as a part of the last one if it goes on where that ends: a filesystem may cut
/// one extent into several for reasons of its own, such as a part that has come to be shared.
pub(super) fn push(extents: &mut Vec<Extent>, next: Extent) {
    if let Some(last) = extents.last_mut()
        && last.logical.saturating_add(last.length) == next.logical
        && last.physical.map(|p| p.saturating_add(last.length)) == next.physical
    {
        last.length = last.length.saturating_add(next.length);
    } else {
        extents.push(next);
    }
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
pub(super) fn differing(a: &[Extent], b: &[Extent], length: u64) -> Vec<Range<u64>> {
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
    use proptest::prelude::{Just, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};

    use super::{Extent, differing, push};

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
        let mut joined = Vec::new();
        for next in [
            extent(0, 4, Some(100)),
            extent(4, 4, Some(104)),
            extent(8, 4, Some(50)),
            extent(16, 4, Some(58)),
            extent(20, 4, None),
            extent(24, 4, None),
        ] {
            push(&mut joined, next);
        }
        assert_eq!(
            joined,
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

    proptest! {
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
    }
}
