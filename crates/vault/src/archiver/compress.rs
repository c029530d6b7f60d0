//! How hard blobs are compressed.
//!
//! Pages of databases have a way of their own ([`compressor_for_pages`]): most gain nothing by zstd's higher levels, and those
//! of texts do. Now and then a blob of a file is compressed in both ways, and the next ones as that was better. What is
//! cut by its content (dumps, logs, other large files) has blobs of a megabyte, which gain much, and is compressed as restic
//! compresses it. What changed in a file since it was stored is compressed more quickly and a little less, since there is
//! little of it and somebody may be waiting. A blob is known by its content before it is compressed, so nothing but space and time depends on this.
//!
//! Crash story: works on memory only.

use std::{io, mem};

use zstd::{
    bulk::Compressor,
    zstd_safe::{self, CParameter, ParamSwitch},
};

use super::cores;

/// The level of a repository that names none: higher ones cost more than they save on most databases.
const QUICK: i32 = 1;

/// What gains by it is compressed with zstd's own default instead, as restic does all.
const THOROUGH: i32 = 3;

/// So many blobs go by what those showed that were compressed in both ways; at first fewer. Of a file that changed in a few
/// places none is tried.
const UNTRIED: usize = 64;
const UNTRIED_AT_FIRST: usize = 8;

/// Before any blob was tried, so many bytes are taken to be the same in both ways: the first page of a file and the last ones of
/// an index gain much and are like no others.
const TAKEN_FOR_GRANTED: usize = 128 << 10;

/// One of so many bytes must be saved at least, for the thorough way takes a third more time.
const WORTH: usize = 40;

/// So many places of pages are not looked at before the next one is.
const STEP: u32 = 2;

/// The same for what changed in a file: on tables of numbers and random texts a third faster again, for 3.5 hundredths more bytes.
const STEP_FOR_CHANGES: u32 = 7;

/// The levels of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Levels {
    pub(crate) quick: i32,
    thorough: i32,
}

impl Levels {
    /// Those for what a repository's config names; 0 leaves the choice to us.
    pub(crate) fn of(config: i32) -> Self {
        match config {
            0 => Self { quick: QUICK, thorough: THOROUGH },
            level => Self { quick: level, thorough: level },
        }
    }
}

/// How hard the next blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    Quick,
    Thorough,
    /// Pages of a database: as it was better for the blobs before.
    Judged(Judge),
}

/// What both ways made of the blobs of a file that were compressed in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judge {
    /// Bytes, those of longer ago less and less.
    as_pages: usize,
    thorough: usize,
    /// So many blobs are left that go by this.
    untried: usize,
    /// So many will go by what the next one shows.
    next: usize,
    /// They are what changed in a file of which the rest is stored already.
    of_changes: bool,
}

impl Effort {
    /// The same for what changed in a file of which the rest is stored already, or for what did not.
    pub(crate) fn for_changes(self, of_changes: bool) -> Self {
        match self {
            Self::Judged(judge) => Self::Judged(Judge { of_changes, ..judge }),
            other => other,
        }
    }
}

impl Default for Judge {
    fn default() -> Self {
        let (as_pages, thorough) = (TAKEN_FOR_GRANTED, TAKEN_FOR_GRANTED);
        Self { as_pages, thorough, untried: UNTRIED_AT_FIRST, next: 2 * UNTRIED_AT_FIRST, of_changes: false }
    }
}

impl Judge {
    fn is_due(&mut self) -> bool {
        let is_due = self.untried == 0;
        if is_due {
            self.untried = self.next;
            self.next = UNTRIED.min(self.next * 2);
        } else {
            self.untried -= 1;
        }
        is_due
    }

    fn note(&mut self, as_pages: usize, thorough: usize) {
        self.as_pages = self.as_pages / 2 + as_pages;
        self.thorough = self.thorough / 2 + thorough;
    }

    fn is_worth_it(&self) -> bool {
        self.thorough + self.as_pages / WORTH < self.as_pages
    }
}

/// Compresses, in all ways.
pub(crate) struct Compressors {
    levels: Levels,
    quick: Compressor<'static>,
    /// These are made when they are first needed.
    pages: Option<Compressor<'static>>,
    changes: Option<Compressor<'static>>,
    thorough: Option<Compressor<'static>>,
    by_all: Option<Compressor<'static>>,
    spare: Vec<u8>,
}

impl Compressors {
    /// For these levels.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn new(levels: Levels) -> io::Result<Self> {
        Ok(Self {
            levels,
            quick: Compressor::new(levels.quick)?,
            pages: None,
            changes: None,
            thorough: None,
            by_all: None,
            spare: Vec::new(),
        })
    }

    /// Compresses into `packed`, whose content is replaced.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn compress(
        &mut self,
        effort: &mut Effort,
        plain: &[u8],
        packed: &mut Vec<u8>,
    ) -> io::Result<()> {
        if self.levels.quick == self.levels.thorough {
            return squeeze(&mut self.quick, plain, packed);
        }
        match effort {
            Effort::Quick => squeeze(&mut self.quick, plain, packed),
            Effort::Thorough => squeeze(self.thorough()?, plain, packed),
            Effort::Judged(judge) => {
                if judge.is_due() {
                    self.try_both(judge, plain, packed)
                } else if judge.is_worth_it() {
                    squeeze(self.thorough()?, plain, packed)
                } else if judge.of_changes {
                    squeeze(self.changes()?, plain, packed)
                } else {
                    squeeze(self.pages()?, plain, packed)
                }
            }
        }
    }

    /// The same at the quick level by all cores, into one frame as any other: for what is so large that others wait for it.
    ///
    /// # Errors
    /// If there is no memory for it, or no thread.
    pub(crate) fn compress_by_all(&mut self, plain: &[u8], packed: &mut Vec<u8>) -> io::Result<()> {
        let by_all = match &mut self.by_all {
            Some(compressor) => compressor,
            none => none.insert(compressor_by_all(self.levels.quick)?),
        };
        squeeze(by_all, plain, packed)
    }

    /// The smaller one is kept.
    fn try_both(&mut self, judge: &mut Judge, plain: &[u8], packed: &mut Vec<u8>) -> io::Result<()> {
        squeeze(self.pages()?, plain, packed)?;
        let mut spare = mem::take(&mut self.spare);
        squeeze(self.thorough()?, plain, &mut spare)?;
        judge.note(packed.len(), spare.len());
        if spare.len() < packed.len() {
            mem::swap(packed, &mut spare);
        }
        self.spare = spare;
        Ok(())
    }

    fn pages(&mut self) -> io::Result<&mut Compressor<'static>> {
        match &mut self.pages {
            Some(compressor) => Ok(compressor),
            none => Ok(none.insert(compressor_for_pages(self.levels.quick, STEP)?)),
        }
    }

    fn changes(&mut self) -> io::Result<&mut Compressor<'static>> {
        match &mut self.changes {
            Some(compressor) => Ok(compressor),
            none => Ok(none.insert(compressor_for_pages(self.levels.quick, STEP_FOR_CHANGES)?)),
        }
    }

    fn thorough(&mut self) -> io::Result<&mut Compressor<'static>> {
        match &mut self.thorough {
            Some(compressor) => Ok(compressor),
            none => Ok(none.insert(Compressor::new(self.levels.thorough)?)),
        }
    }
}

/// The first level for pages: rows repeat each other in runs, or not at all, so matches shorter than 7 bytes are left alone, only
/// one of `step` + 1 places is looked at, and the table of what was seen stays in the processor's first cache. zstd takes such a
/// step for a sign that bytes are not worth an entropy code, which they are. On tables of numbers and random texts that
/// is two fifths faster with [`STEP`] than the level by itself, and smaller by a hundredth.
fn compressor_for_pages(level: i32, step: u32) -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(level)?;
    compressor.set_parameter(CParameter::MinMatch(7))?;
    compressor.set_parameter(CParameter::HashLog(12))?;
    compressor.set_parameter(CParameter::TargetLength(step))?;
    compressor.set_parameter(CParameter::LiteralCompressionMode(ParamSwitch::Enable))?;
    Ok(compressor)
}

/// One that divides its work among as many threads as there are cores.
fn compressor_by_all(level: i32) -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(level)?;
    compressor.set_parameter(CParameter::NbWorkers(u32::try_from(cores()).unwrap_or(1)))?;
    Ok(compressor)
}

fn squeeze(compressor: &mut Compressor<'_>, plain: &[u8], packed: &mut Vec<u8>) -> io::Result<()> {
    packed.clear();
    packed.reserve(zstd_safe::compress_bound(plain.len()));
    compressor.compress_to_buffer(plain, packed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Compressors, Effort, Judge, Levels, UNTRIED};

    /// A text: this crate's own.
    fn words(blob: usize) -> Vec<u8> {
        let text = [
            include_str!("work.rs"),
            include_str!("large.rs"),
            include_str!("carry.rs"),
            include_str!("index.rs"),
        ];
        text.concat().bytes().cycle().skip(blob * 500).take(32 << 10).collect()
    }

    fn noise(blob: u32) -> Vec<u8> {
        let mut state = u64::from(blob) + 1;
        let bytes = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        bytes.take(32 << 10).collect()
    }

    fn all(levels: Levels, effort: Effort, blobs: &[Vec<u8>]) -> usize {
        let (mut effort, mut packed, mut sum) = (effort, Vec::new(), 0);
        let mut compressors = Compressors::new(levels).unwrap();
        for blob in blobs {
            compressors.compress(&mut effort, blob, &mut packed).unwrap();
            let again = zstd::bulk::decompress(&packed, blob.len()).unwrap();
            assert!(again == *blob, "it comes back as it was");
            sum += packed.len();
        }
        sum
    }

    #[test]
    fn what_gains_is_compressed_harder_and_what_does_not_is_not() {
        let ours = Levels::of(0);
        let judged = Effort::Judged(Judge::default());
        let texts: Vec<_> = (0..400).map(words).collect();
        let (quick, thorough) = (all(ours, Effort::Quick, &texts), all(ours, Effort::Thorough, &texts));
        assert!(thorough * 100 < quick * 97, "these texts gain: {thorough} of {quick}");
        let found = all(ours, judged, &texts);
        assert!((found - thorough) * 3 < quick - thorough, "{found}, not {thorough} to {quick}");
        let mut judge = Effort::Judged(Judge::default());
        let (mut compressors, mut packed) = (Compressors::new(ours).unwrap(), Vec::new());
        for blob in (0..20).map(noise) {
            compressors.compress(&mut judge, &blob, &mut packed).unwrap();
        }
        assert!(matches!(judge, Effort::Judged(judge) if !judge.is_worth_it()), "{judge:?}");
        // One that is like no others says nothing of them.
        let mut judge = Effort::Judged(Judge { untried: 0, ..Judge::default() });
        compressors.compress(&mut judge, &texts[0], &mut packed).unwrap();
        assert!(matches!(judge, Effort::Judged(judge) if !judge.is_worth_it()), "{judge:?}");
        // A file that turns into texts is found out after some tries.
        let mixed: Vec<_> = (0..UNTRIED as u32).map(noise).chain((0..16 * UNTRIED).map(words)).collect();
        let [quick, thorough] = [Effort::Quick, Effort::Thorough].map(|effort| all(ours, effort, &mixed));
        let found_out = all(ours, judged, &mixed);
        assert!((found_out - thorough) * 2 < quick - thorough, "{found_out}, not {thorough} to {quick}");
    }

    #[test]
    fn a_level_that_the_repository_names_is_used_for_all() {
        let texts: Vec<_> = (0..5).map(words).collect();
        let one = all(Levels::of(1), Effort::Quick, &texts);
        assert_eq!(all(Levels::of(1), Effort::Thorough, &texts), one);
        assert_eq!(all(Levels::of(1), Effort::Judged(Judge::default()), &texts), one);
    }
}
