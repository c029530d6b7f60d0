//! Which files are written from the repository, and which are hard links to one of those.
//!
//! Crash story: pure functions, no effects.

use std::collections::HashMap;

use super::{Kind, Listing, Path, RestorePlan};

/// What is to be written, as pairs of a part's index in the plan and an item's index in the listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Work {
    /// Regular files to be written in full.
    pub files: Vec<(usize, usize)>,
    /// Hard links, each with the file that it is a link to.
    pub links: Vec<((usize, usize), (usize, usize))>,
    /// Files that were one with a file of another part, but cannot be any more: they are written in full.
    pub parted: Vec<usize>,
}

/// By the directory beside which it is written: the first name of one inode.
type Written<'a> = HashMap<&'a Path, (usize, usize)>;

/// Finds out what is to be written. Two names are one file if the backup gives them the same device and inode
/// and they are written beside the same directory.
#[must_use]
pub fn work(plan: &RestorePlan, listing: &Listing) -> Work {
    let mut work = Work::default();
    let mut first: HashMap<(u64, u64), Written<'_>> = HashMap::new();
    for (index, part) in plan.parts.iter().enumerate() {
        for item in listing.below(&part.from) {
            let entry = &listing.entries()[item];
            if entry.kind != Kind::File {
                continue;
            }
            let here = (index, item);
            if entry.meta.links < 2 || entry.meta.inode == 0 {
                work.files.push(here);
                continue;
            }
            let known = first.entry((entry.meta.device, entry.meta.inode)).or_default();
            if let Some(original) = known.get(part.beside.as_path()) {
                work.links.push((here, *original));
                continue;
            }
            if !known.is_empty() {
                work.parted.push(item);
            }
            known.insert(&part.beside, here);
            work.files.push(here);
        }
    }
    work
}
