//! Where files are cut into blobs.
//!
//! Files of pages (databases) are cut at fixed places, so that a changed page changes one small blob. All
//! others are cut where their content says so, with the repository's own polynomial, as restic does it
//! (<https://restic.net/blog/2015-09-12/restic-foundation1-cdc/>): blobs of about a megabyte that restic would
//! make of the same bytes too.
//!
//! Crash story: pure functions.

use lanes::{Roller, Rolling, WINDOW};
use rustic_core::{
    RusticError,
    repofile::{Chunker, ConfigFile},
};

/// Files below this size are one blob, whatever they hold.
const WHOLE: u64 = 512 * 1024;

/// How many bytes of a file's beginning [`Cutting::of`] looks at.
pub(crate) const HEAD: usize = 64;

/// The parameters of a repository.
#[derive(Debug, Clone)]
pub(crate) struct Chunking {
    pub(super) polynomial: u64,
    /// A cut is where the hash has only zeros under it.
    pub(super) mask: u64,
    pub(super) min: usize,
    pub(super) max: usize,
    /// All files are cut at multiples of this size.
    pub(super) fixed: Option<u64>,
}

/// How one file is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cutting {
    /// At multiples of this many bytes.
    Fixed(u64),
    /// Where the content says so.
    Content,
}

impl Chunking {
    /// Those of a repository.
    ///
    /// # Errors
    /// If its polynomial is none.
    pub(crate) fn of(config: &ConfigFile) -> Result<Self, Box<RusticError>> {
        let fixed = (config.chunker() == Chunker::FixedSize).then(|| config.chunk_size() as u64);
        Ok(Self {
            polynomial: config.poly()?,
            mask: (config.chunk_size() as u64).next_power_of_two() - 1,
            min: config.chunk_min_size().max(WINDOW),
            max: config.chunk_max_size().max(config.chunk_min_size()).max(WINDOW),
            fixed,
        })
    }

    /// Finds where contents are cut; one for each thread.
    pub(crate) fn roller(&self) -> Roller {
        let Self { polynomial, mask, min, max, .. } = *self;
        Roller::new(&Rolling { polynomial, mask, min, max })
    }

    /// Files up to this size are read and stored as one blob.
    pub(crate) fn whole(&self) -> u64 {
        self.fixed.map_or(WHOLE, |size| size.min(WHOLE)).min(self.min as u64)
    }

    /// The largest blob that is cut.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// How a file of this size is cut that begins with these bytes ([`HEAD`] of them, if it has so many).
    pub(crate) fn cutting(&self, head: &[u8], size: u64) -> Cutting {
        match self.fixed {
            Some(length) => Cutting::Fixed(length),
            None if is_paged(head, size) => Cutting::Fixed(page_blob(size)),
            None => Cutting::Content,
        }
    }
}

/// The size of the blobs of a file of pages: two pages of InnoDB, since a night's changes are scattered and every page that is
/// stored with a changed one costs its bytes again; more in large files, so that what the index and the list of its blobs
/// cost (about 80 bytes a blob) stays below three thousandths of them.
fn page_blob(size: u64) -> u64 {
    const GIB: u64 = 1 << 30;
    const KIB: u64 = 1 << 10;
    match size {
        s if s < 16 * GIB => 32 * KIB,
        s if s < 64 * GIB => 64 * KIB,
        s if s < 512 * GIB => 128 * KIB,
        s if s < 1024 * GIB => 256 * KIB,
        s if s < 4096 * GIB => 512 * KIB,
        _ => 1024 * KIB,
    }
}

/// Whether a file holds pages of a database, by its first bytes.
fn is_paged(head: &[u8], size: u64) -> bool {
    head.starts_with(b"SQLite format 3\0") || is_innodb(head, size) || is_postgres(head, size)
}

fn be32(head: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*head.get(at..)?.first_chunk()?))
}

fn le16(head: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16::from_le_bytes(*head.get(at..)?.first_chunk()?)))
}

/// A tablespace of InnoDB: page 0 is of type `FIL_PAGE_TYPE_FSP_HDR` (8) and names its space twice, in the page
/// header and in the space header, which has the flags with the page size (MariaDB: `fil0fil.h`, `fsp0types.h`).
fn is_innodb(head: &[u8], size: u64) -> bool {
    let fields = (be32(head, 4), be32(head, 24), be32(head, 34), be32(head, 38), be32(head, 54));
    let (Some(number), Some(kind), Some(space), Some(again), Some(flags)) = fields else { return false };
    let full_crc32 = flags & (1 << 4) != 0;
    let shift = if full_crc32 { flags & 15 } else { (flags >> 6) & 15 };
    let compressed = if full_crc32 { 0 } else { (flags >> 1) & 15 };
    let page = match (shift, compressed) {
        (0, 0) => 16 * 1024,
        (shift, 0) => 512_u64 << shift,
        (_, compressed) => 512_u64 << compressed,
    };
    let is_page = (1024..=64 * 1024).contains(&page);
    number == 0 && kind >> 16 == 8 && space == again && is_page && size.is_multiple_of(page)
}

/// A relation of PostgreSQL: "Database Page Layout" in its manual. Page size and layout version 4 stand in one
/// field, and the offsets of the free space are in order.
fn is_postgres(head: &[u8], size: u64) -> bool {
    let fields = (le16(head, 10), le16(head, 12), le16(head, 14), le16(head, 16), le16(head, 18));
    let (Some(flags), Some(lower), Some(upper), Some(special), Some(layout)) = fields else { return false };
    let (page, version) = (layout & 0xff00, layout & 0xff);
    let in_order = 24 <= lower && lower <= upper && upper <= special && special <= page;
    let is_page = page.is_power_of_two() && (1024..=32 * 1024).contains(&page);
    version == 4 && is_page && flags < 8 && in_order && size.is_multiple_of(u64::from(page))
}

#[cfg(test)]
mod tests {
    use super::{Chunking, Cutting};

    fn chunking() -> Chunking {
        // restic's example polynomial.
        let (min, max) = (512 * 1024, 8 * 1024 * 1024);
        Chunking { polynomial: 0x003d_a335_8b4d_c173, mask: (1 << 20) - 1, min, max, fixed: None }
    }

    #[test]
    fn pages_are_known_by_their_first_bytes() {
        let cutting = |head: &[u8], size| chunking().cutting(head, size);
        let paged = Cutting::Fixed(32 * 1024);
        let mut sqlite = b"SQLite format 3\0".to_vec();
        sqlite.resize(64, 0);
        assert_eq!(cutting(&sqlite, 1 << 20), paged);
        assert_eq!(cutting(&sqlite, 100 << 30), Cutting::Fixed(128 * 1024));
        let mut innodb = [0; 64];
        innodb[25] = 8;
        innodb[37] = 9;
        innodb[41] = 9;
        innodb[57] = 0x15;
        assert_eq!(cutting(&innodb, 1 << 20), paged);
        assert_eq!(cutting(&innodb, (1 << 20) + 1), Cutting::Content);
        innodb[41] = 8;
        assert_eq!(cutting(&innodb, 1 << 20), Cutting::Content);
        let mut postgres = [0; 64];
        postgres[10..20].copy_from_slice(&[0, 0, 28, 0, 0, 31, 0, 32, 4, 32]);
        assert_eq!(cutting(&postgres, 1 << 20), paged);
        postgres[12] = 20;
        assert_eq!(cutting(&postgres, 1 << 20), Cutting::Content);
        assert_eq!(cutting(&[0; 64], 1 << 20), Cutting::Content);
        assert_eq!(cutting(b"short", 1 << 20), Cutting::Content);
    }
}
