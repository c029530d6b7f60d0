//! Which parts of two thin volumes of one pool are the same: what `thin_delta` of thin-provisioning-tools tells.
//!
//! Two thin volumes that map the same place to the same block of their pool share what stands there: the pool writes a
//! change elsewhere as long as both have the block. `thin_delta` reads the pool's metadata, which have to stand still
//! for that: the kernel keeps a snapshot of them, one for each pool (Documentation/admin-guide/device-mapper/
//! thin-provisioning.rst, `reserve_metadata_snap`).
//!
//! Crash story: the journal has [`Undo::ReleasePoolMetadata`] before the snapshot is reserved and until it is released. It
//! outlives reboots, and blocks of metadata that it has cannot be freed, but it harms nobody. If another program
//! has reserved one, ours is not; and only what the pool holds for us is released.

use std::{ops::Range, path::Path, sync::Arc, time::Duration};

use model::{
    port::Journal,
    undo::{Ticket, Undo},
};
use serde::Deserialize;

use super::{LogicalVolume, LvmError, READING, dm_name, report, status::held_metadata};
use crate::tools::{Tool, ToolError};

/// How long reading the metadata of a large pool may take.
const COMPARING: Duration = Duration::from_mins(10);
/// How much may be told of differences, in bytes; more is not believed.
const MOST: usize = 256 << 20;

/// A pool's metadata as they were at one moment. Dropping it releases them.
struct Metadata {
    group: String,
    pool: String,
    root: Option<u64>,
    journal: Arc<dyn Journal>,
    ticket: Option<Ticket>,
}

impl Metadata {
    fn reserve(journal: &Arc<dyn Journal>, group: &str, pool: &str) -> Result<Self, LvmError> {
        let undo = |root| Undo::ReleasePoolMetadata { group: group.to_owned(), pool: pool.to_owned(), root };
        if held_metadata(group, pool)?.is_some() {
            return Err(LvmError::Busy(format!("{group}/{pool}")));
        }
        let ticket = journal.intend(undo(None), None).map_err(LvmError::Journal)?;
        if let Err(error) = message(group, pool, "reserve_metadata_snap") {
            journal.done(ticket);
            return Err(error.into());
        }
        let (group, pool) = (group.to_owned(), pool.to_owned());
        let mut held = Self { group, pool, root: None, journal: Arc::clone(journal), ticket: Some(ticket) };
        held.root = held_metadata(&held.group, &held.pool)?;
        journal.amend(ticket, undo(held.root), None).map_err(LvmError::Journal)?;
        Ok(held)
    }

    fn release(mut self) -> Result<(), LvmError> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), LvmError> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        release(&self.group, &self.pool, self.root)?;
        self.journal.done(ticket);
        Ok(())
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::warn!(pool = %self.pool, ?error, "a snapshot of its metadata is left, for `thaw`");
        }
    }
}

fn message(group: &str, pool: &str, text: &str) -> Result<(), ToolError> {
    let device = format!("{}-tpool", dm_name(group, pool));
    let tool = Tool::new("dmsetup", format!("sending {text} to {device}"), READING);
    tool.args(["message", &device, "0", text]).run().map(drop)
}

/// Releases a pool's snapshot of its metadata, if it is the one that begins at `root`, or `root` is not known; done if there
/// is none, or no such pool.
///
/// # Errors
/// If it is left.
pub fn release(group: &str, pool: &str, root: Option<u64>) -> Result<(), LvmError> {
    if report::look_for(group, pool)?.is_none() {
        return Ok(());
    }
    match held_metadata(group, pool)? {
        Some(held) if root.is_none_or(|root| root == held) => {
            Ok(message(group, pool, "release_metadata_snap")?)
        }
        _ => Ok(()),
    }
}

/// The byte ranges at which two thin volumes of one pool have the same blocks of it, ordered and apart. What was not yet
/// written to their devices is not in it: whoever asks has written everything.
///
/// # Errors
/// If they are not of one pool, another program has the pool's metadata, or what the programs say.
pub fn same_ranges(
    journal: &Arc<dyn Journal>,
    one: &LogicalVolume,
    other: &LogicalVolume,
) -> Result<Vec<Range<u64>>, LvmError> {
    let what = || format!("comparing {} and {}", one.full_name(), other.full_name());
    let pool = one.thin_pool().filter(|pool| other.thin_pool() == Some(pool) && one.group == other.group);
    let (Some(pool), Some(one_id), Some(other_id)) = (pool, one.thin_id, other.thin_id) else {
        return Err(LvmError::NotOurs(format!("{}: of another pool than {}", what(), other.full_name())));
    };
    let metadata = Metadata::reserve(journal, &one.group, pool)?;
    let device = Path::new("/dev/mapper").join(dm_name(&one.group, &format!("{pool}_tmeta")));
    let tool = Tool::new("thin_delta", what(), COMPARING).limit(MOST);
    let tool =
        tool.args(["--metadata-snap", "--snap1", &one_id.to_string(), "--snap2", &other_id.to_string()]);
    let tool = tool.args([device]);
    let told = tool.run();
    metadata.release()?;
    parse(&told?, (one_id, other_id)).ok_or_else(|| tool.not_understood().into())
}

#[derive(Deserialize)]
struct Superblock {
    /// In sectors of 512 bytes.
    #[serde(rename = "@data_block_size")]
    block: u64,
    diff: Diff,
}

#[derive(Deserialize)]
struct Diff {
    #[serde(rename = "@left")]
    left: u32,
    #[serde(rename = "@right")]
    right: u32,
    #[serde(rename = "$value", default)]
    parts: Vec<Part>,
}

/// In blocks of the pool.
#[derive(Deserialize)]
struct Blocks {
    #[serde(rename = "@begin")]
    begin: u64,
    #[serde(rename = "@length")]
    length: u64,
}

/// What neither of them has is not told.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Same(Blocks),
    Different(Blocks),
    LeftOnly(Blocks),
    RightOnly(Blocks),
}

/// What `thin_delta` writes, as of version 0.9; nothing if anything about it is strange.
fn parse(text: &str, (left, right): (u32, u32)) -> Option<Vec<Range<u64>>> {
    let Superblock { block, diff } = quick_xml::de::from_str(text).ok()?;
    if (diff.left, diff.right) != (left, right) || block == 0 {
        return None;
    }
    let unit = block.checked_mul(512)?;
    let (mut same, mut behind) = (Vec::<Range<u64>>::new(), 0);
    for part in diff.parts {
        let (Part::Same(blocks) | Part::Different(blocks) | Part::LeftOnly(blocks) | Part::RightOnly(blocks)) =
            &part;
        let from = blocks.begin.checked_mul(unit)?;
        let to = blocks.begin.checked_add(blocks.length)?.checked_mul(unit)?;
        if from < behind || to <= from {
            return None;
        }
        behind = to;
        if let Part::Same(_) = part {
            match same.last_mut() {
                Some(last) if last.end == from => last.end = to,
                _ => same.push(from..to),
            }
        }
    }
    Some(same)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::parse;

    /// As thin_delta 0.9 writes it.
    const TOLD: &str = r#"<superblock uuid="" time="3" transaction="5" data_block_size="128" nr_data_blocks="0">
  <diff left="3" right="4">
    <different begin="0" length="2"/>
    <same begin="2" length="99"/>
    <left_only begin="101" length="2"/>
    <same begin="103" length="1"/>
    <same begin="104" length="1"/>
    <right_only begin="2400" length="33"/>
  </diff>
</superblock>
"#;
    const BLOCK: u64 = 64 << 10;

    #[test]
    fn what_is_the_same_is_understood() {
        let same = vec![2 * BLOCK..101 * BLOCK, 103 * BLOCK..105 * BLOCK];
        assert_eq!(parse(TOLD, (3, 4)), Some(same));
        let none = TOLD.replace("same", "different");
        assert_eq!(parse(&none, (3, 4)), Some(vec![]));
    }

    #[test]
    fn whatever_is_strange_is_not_believed() {
        for (what, instead) in [
            ("\"3\" right", "\"5\" right"),
            ("data_block_size=\"128\"", "data_block_size=\"0\""),
            ("data_block_size=\"128\"", ""),
            ("begin=\"103\"", "begin=\"102\""),
            ("begin=\"104\" length=\"1\"", "begin=\"104\" length=\"0\""),
            ("begin=\"104\"", "begin=\"18446744073709551615\""),
            ("length=\"33\"", "length=\"-33\""),
            ("right_only", "unknown"),
            ("</diff>", ""),
            ("</superblock>", ""),
        ] {
            assert!(TOLD.contains(what), "{what}");
            assert_eq!(parse(&TOLD.replace(what, instead), (3, 4)), None, "{what}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}", at in 0..TOLD.len(), byte in any::<u8>()) {
            parse(&text, (3, 4));
            let mut told = TOLD.as_bytes().to_vec();
            told[at] = byte;
            if let Some(same) = String::from_utf8(told).ok().and_then(|told| parse(&told, (3, 4))) {
                prop_assert!(same.windows(2).all(|pair| pair[0].end <= pair[1].start));
            }
            prop_assert!(at + 2 >= TOLD.len() || parse(&TOLD[..at], (3, 4)).is_none());
        }

        #[test]
        fn every_block_is_judged_as_it_was_told(parts in prop::collection::vec((0_u64..3, 1_u64..9, 0_usize..4), 0..20)) {
            let mut text = "<superblock data_block_size=\"8\"><diff left=\"0\" right=\"1\">".to_owned();
            let (mut at, mut expected) = (0, Vec::new());
            for (gap, length, kind) in parts {
                let name = ["same", "different", "left_only", "right_only"][kind];
                at += gap;
                text.push_str(&format!("<{name} begin=\"{at}\" length=\"{length}\"/>"));
                if kind == 0 {
                    expected.extend(at..at + length);
                }
                at += length;
            }
            text.push_str("</diff></superblock>");
            let same = parse(&text, (0, 1)).unwrap();
            let blocks: Vec<u64> = same.iter().flat_map(|range| range.start / 4096..range.end / 4096).collect();
            prop_assert_eq!(blocks, expected);
        }
    }
}
