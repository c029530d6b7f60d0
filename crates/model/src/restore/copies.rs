//! Frozen copies of a backup that are still kept, from which its files can be cloned.
//!
//! What is cloned shares its blocks with the copy, and maybe with what is live: where a disk has changed them, all have the
//! same wrong bytes. So a clone is read and compared with what the repository has for it, unless somebody does not want that.
//!
//! Crash story: pure functions, no effects.

use serde::Serialize;

use super::{Bytes, Kind, Listing, Place, ReferenceFile, Request, SiteFacts, Target, pathtext};

/// So many are named to people.
const MOST_NAMED: usize = 5;

/// What of a restore was cloned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cloned {
    /// Regular files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: Bytes,
    /// Each was read, and is what the repository has.
    pub compared: bool,
}

/// The copies that are cloned: those on the filesystem that their file is written to. A file with several names is written.
pub(super) fn usable(places: &[Place], facts: &SiteFacts, listing: &Listing) -> Vec<ReferenceFile> {
    let is_usable = |(copy, device): &&(ReferenceFile, u64)| {
        let is_same = |file: &super::Listed| {
            file.kind == Kind::File && file.meta.size == copy.size && file.meta.links < 2
        };
        let mut to = places.iter().zip(&facts.places);
        listing.find(&copy.path).is_some_and(is_same)
            && to.any(|(place, found)| copy.path.starts_with(&place.from) && found.device == *device)
    };
    facts.copies.iter().filter(is_usable).map(|(copy, _)| copy.clone()).collect()
}

/// Whether clones are not read.
pub(super) fn trusts(request: &Request) -> bool {
    request.trust_copies && !request.read_back && matches!(request.target, Target::Directory { .. })
}

/// What is planned, for people.
pub(super) fn describe(copies: &[ReferenceFile], trusts: bool) -> Option<String> {
    let mut names: Vec<String> =
        copies.iter().take(MOST_NAMED).map(|copy| pathtext::show(&copy.path)).collect();
    if copies.len() > MOST_NAMED {
        names.push(format!("{} more", copies.len() - MOST_NAMED));
    }
    let bytes: Bytes = copies.iter().map(|copy| copy.size).sum();
    let how = if trusts { "not read" } else { "compared with what the repository has" };
    let what = format!(
        "{} files ({bytes}) are cloned from frozen copies that are kept of this backup",
        copies.len()
    );
    (!copies.is_empty()).then(|| format!("{what}, and {how}: {}", names.join(", ")))
}

impl Cloned {
    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        let (files, bytes) = (self.files, self.bytes);
        let how = if self.compared {
            "were read and compared with what the repository has"
        } else {
            "were not read, so whether the disk still has what was stored is not known; without --trust-copies it is compared"
        };
        format!(
            "{files} of the files, {bytes}, are clones of frozen copies that were kept of this backup; they {how}"
        )
    }
}
