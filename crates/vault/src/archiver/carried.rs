//! Which files of a feed are carried over, found once for the whole pass.
//!
//! Crash story: memory only.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
};

use model::entry::Body;

use super::{Base, Carry, cores, index::Place};
use crate::repository::feed::Feed;

/// A file that is not carried over.
const NONE: u32 = u32::MAX;

/// So many of the upper bits say which base has it; the others are its number there.
const BASE_BITS: u32 = 2;

/// So many entries are looked for at a time.
const PART: usize = 4096;

/// 4 bytes for each entry; nothing if there is nothing to carry over.
pub(crate) struct Carried(Vec<u32>);

impl Carried {
    /// Looks for all files of a feed, by all cores.
    pub(crate) fn find(feed: &Feed, bases: &[Base], carry: Option<&Carry>) -> Self {
        if bases.iter().all(|base| base.known.is_empty()) {
            return Self(Vec::new());
        }
        let mut found = vec![NONE; feed.len()];
        let parts = Mutex::new(found.chunks_mut(PART).enumerate());
        let work = || {
            let mut path = PathBuf::new();
            loop {
                // Not in the loop's head: the lock would be held meanwhile.
                let next = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((number, part)) = next else { break };
                for (place, slot) in (number * PART..).zip(part) {
                    *slot = look(feed, bases, carry, place, &mut path).unwrap_or(NONE);
                }
            }
        };
        thread::scope(|scope| {
            (1..cores()).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        Self(found)
    }

    /// The content of the file at this place, if it is carried over.
    pub(crate) fn content<'a>(&self, bases: &'a [Base], place: usize) -> Option<&'a [Place]> {
        let found = self.0.get(place).copied().filter(|found| *found != NONE)?;
        let base = bases.get((found >> (u32::BITS - BASE_BITS)) as usize)?;
        base.contents.content((found & (u32::MAX >> BASE_BITS)) as usize)
    }
}

fn look(feed: &Feed, bases: &[Base], carry: Option<&Carry>, place: usize, path: &mut PathBuf) -> Option<u32> {
    if feed.body(place)? != &Body::Carried {
        return None;
    }
    let (dir, name) = feed.name(place)?;
    path.as_mut_os_string().clear();
    path.push(dir);
    path.push(name);
    if carry.is_some_and(|carry| carry.is_to_be_proven(path)) {
        return None;
    }
    let stamp = feed.stamp(place)?;
    let mut numbered = (0_u32..1 << BASE_BITS).zip(bases);
    numbered.find_map(|(number, base)| {
        let file = u32::try_from(base.contents.find(path, &stamp)?).ok()?;
        let fits = file < u32::MAX >> BASE_BITS;
        fits.then_some(number << (u32::BITS - BASE_BITS) | file)
    })
}
