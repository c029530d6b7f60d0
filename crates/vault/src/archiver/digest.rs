//! What a reference's record says of contents and maps: `docs/format/reference.md`.
//!
//! Crash story: pure functions, no effects.

use model::extents::Map;
use sha2::{Digest, Sha256};

use super::name::Name;

/// The digest of a content: SHA-256 over the names of its blobs.
pub(crate) fn digest(names: &[Name]) -> String {
    let mut hash = Sha256::new();
    names.iter().for_each(|name| hash.update(name.0));
    hex::encode(hash.finalize())
}

/// The digest of a map: SHA-256 over where each extent begins in the file, how long it is, and where it begins on the device
/// (all ones if that says nothing), 8 bytes each with the lowest first.
pub(super) fn digest_of_map(map: &Map) -> String {
    let mut hash = Sha256::new();
    for extent in map.iter() {
        hash.update(extent.logical.to_le_bytes());
        hash.update(extent.length.to_le_bytes());
        hash.update(extent.physical.unwrap_or(u64::MAX).to_le_bytes());
    }
    hex::encode(hash.finalize())
}
