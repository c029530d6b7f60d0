//! What an index file says, as flat lists.
//!
//! Index files of restic and of ours have one shape, without spaces and with the fields in one order, and a repository of a
//! terabyte of pages has gigabytes of them: a reader for just that makes no values in between. At the first byte that is
//! otherwise it gives up, and serde reads the whole file.
//!
//! Crash story: memory only.

use rustic_core::repofile::BlobType;

use super::{
    index::Spot,
    indexer::{IndexContent, PackRecord},
    name::Name,
};

/// The least that a blob takes in the shape that is read here, in bytes.
const LEAST: usize = 112;

/// What an index file says. Used again for the next one, it has its room already.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexRecords {
    /// Each pack, and where its blobs end in the list.
    packs: Vec<(Name, usize)>,
    blobs: Vec<(BlobType, Name, Spot)>,
}

impl IndexRecords {
    /// Reads a file's JSON, in the place of what was there. Packs that are marked for deletion (by rustic) have no blobs: they are
    /// not to be built on, and no orphans either.
    ///
    /// # Errors
    /// If it is no index.
    pub(crate) fn read(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
        self.clear();
        self.blobs.reserve(json.len() / LEAST);
        if self.read_usual(json).is_some() {
            return Ok(());
        }
        self.clear();
        let content: IndexContent = serde_json::from_slice(json)?;
        content.packs.iter().for_each(|record| self.add(record.id, record));
        content.packs_to_delete.iter().for_each(|record| self.packs.push((record.id, self.blobs.len())));
        Ok(())
    }

    /// How many blobs there are.
    pub(crate) fn len(&self) -> usize {
        self.blobs.len()
    }

    /// The packs with their blobs.
    pub(crate) fn packs(&self) -> impl Iterator<Item = (Name, &[(BlobType, Name, Spot)])> {
        self.packs.iter().scan(0, |from, (name, end)| {
            let blobs = self.blobs.get(std::mem::replace(from, *end)..*end)?;
            Some((*name, blobs))
        })
    }

    fn clear(&mut self) {
        self.packs.clear();
        self.blobs.clear();
    }

    fn add(&mut self, pack: Name, record: &PackRecord) {
        self.blobs.extend(record.blobs());
        self.packs.push((pack, self.blobs.len()));
    }

    /// Reads the usual shape; nothing if it is any other, whatever was read by then.
    pub(crate) fn read_usual(&mut self, json: &[u8]) -> Option<()> {
        let mut usual = Usual { rest: json };
        usual.expect(b"{\"packs\":[")?;
        loop {
            usual.expect(b"{\"id\":\"")?;
            let pack = usual.name()?;
            usual.expect(b"\",\"blobs\":[")?;
            loop {
                self.blobs.push(usual.blob()?);
                if !usual.goes_on()? {
                    break;
                }
            }
            usual.expect(b"}")?;
            self.packs.push((pack, self.blobs.len()));
            if !usual.goes_on()? {
                break;
            }
        }
        (usual.rest == b"}").then_some(())
    }
}

/// What is left to be read.
struct Usual<'a> {
    rest: &'a [u8],
}

impl Usual<'_> {
    #[inline]
    fn expect(&mut self, literal: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(literal)?;
        Some(())
    }

    /// Whether a list goes on.
    #[inline]
    fn goes_on(&mut self) -> Option<bool> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        match first {
            b',' => Some(true),
            b']' => Some(false),
            _ => None,
        }
    }

    #[inline]
    fn name(&mut self) -> Option<Name> {
        let (digits, rest) = self.rest.split_first_chunk::<64>()?;
        self.rest = rest;
        Name::from_digits(digits)
    }

    /// A number as JSON has it: without zeros before it.
    #[inline]
    fn number(&mut self) -> Option<u32> {
        let mut number = 0_u32;
        let mut length = 0;
        while let Some(digit) =
            self.rest.get(length).map(|digit| digit.wrapping_sub(b'0')).filter(|d| *d < 10)
        {
            number = number.checked_mul(10)?.checked_add(u32::from(digit))?;
            length += 1;
        }
        if length == 0 || (length > 1 && self.rest[0] == b'0') {
            return None;
        }
        self.rest = &self.rest[length..];
        Some(number)
    }

    #[inline]
    fn blob(&mut self) -> Option<(BlobType, Name, Spot)> {
        self.expect(b"{\"id\":\"")?;
        let name = self.name()?;
        self.expect(b"\",\"type\":\"")?;
        let tpe = if self.expect(b"data").is_some() {
            BlobType::Data
        } else {
            self.expect(b"tree")?;
            BlobType::Tree
        };
        self.expect(b"\",\"offset\":")?;
        let offset = self.number()?;
        self.expect(b",\"length\":")?;
        let length = self.number()?;
        let mut raw = 0;
        if self.expect(b",\"uncompressed_length\":").is_some() && self.expect(b"null").is_none() {
            raw = self.number()?;
        }
        self.expect(b"}")?;
        Some((tpe, name, Spot { offset, length, raw }))
    }
}

#[cfg(test)]
mod tests {
    use super::{BlobType, IndexContent, IndexRecords, Name, PackRecord, Spot};

    fn content(packs: u32) -> IndexContent {
        let pack = |pack: u32| {
            let blobs = (0..=pack % 3).map(|n| {
                let tpe = if (pack + n).is_multiple_of(2) { BlobType::Data } else { BlobType::Tree };
                let raw = [0, 1, u32::MAX][n as usize];
                let spot = Spot { offset: pack * 99_991, length: u32::MAX - pack, raw };
                (tpe, Name::of(&[pack.to_le_bytes(), n.to_le_bytes()].concat()), spot)
            });
            PackRecord::new(Name::of(&pack.to_le_bytes()), blobs)
        };
        IndexContent { packs: (0..packs).map(pack).collect(), ..IndexContent::default() }
    }

    #[test]
    fn what_we_write_is_of_the_usual_shape() {
        let content = content(20);
        let json = serde_json::to_string(&content).unwrap();
        let mut records = IndexRecords::default();
        // What was there before is gone.
        records.read(json.as_bytes()).unwrap();
        records.read(json.as_bytes()).unwrap();
        let found: Vec<_> = records.packs().map(|(name, blobs)| (name, blobs.to_vec())).collect();
        let written: Vec<_> = content.packs.iter().map(|pack| (pack.id, pack.blobs())).collect();
        assert_eq!(found, written);
        assert_eq!(IndexRecords::default().read_usual(json.as_bytes()), Some(()));
        // What rustic writes where there is nothing to say.
        let (bare, null) = ("\"length\":4294967295}", "\"length\":4294967295,\"uncompressed_length\":null}");
        assert!(json.contains(bare));
        let mut again = IndexRecords::default();
        assert_eq!(again.read_usual(json.replace(bare, null).as_bytes()), Some(()));
        assert_eq!(again, records);
    }

    #[test]
    fn any_other_shape_is_read_all_the_same_or_refused() {
        let json = serde_json::to_string(&content(3)).unwrap();
        let mut usual = IndexRecords::default();
        usual.read(json.as_bytes()).unwrap();
        for (from, to, is_right) in [
            ("{\"packs\"", "{\"supersedes\":[],\"packs\"", true),
            ("\"offset\":0", "\"offset\": 0", true),
            ("\"offset\":0", "\"offset\":00", false),
            ("\"offset\":0", "\"offset\":0.0", false),
            ("\"offset\":0", "\"offset\":-0", false),
            ("\"offset\":0", "\"offset\":4294967296", false),
            ("\"offset\":0", "\"offset\":", false),
            ("\"type\":\"data\"", "\"type\":\"date\"", false),
        ] {
            let other = json.replacen(from, to, 1);
            assert_ne!(other, json, "{from}");
            let mut records = IndexRecords::default();
            assert_eq!(records.read(other.as_bytes()).is_ok(), is_right, "{to}");
            assert!(!is_right || records == usual, "{to}");
        }
        for other in [format!("{json} "), format!("\n{json}")] {
            let mut records = IndexRecords::default();
            records.read(other.as_bytes()).unwrap();
            assert_eq!(records, usual);
        }
        let mut records = IndexRecords::default();
        assert!(records.read(format!("{json}}}").as_bytes()).is_err());
        assert!(records.read(&json.as_bytes()[..json.len() - 1]).is_err());
    }

    #[test]
    fn packs_that_are_to_be_deleted_have_no_blobs() {
        let [first, second] = ["ab", "cd"].map(|digits| digits.repeat(32));
        let blob = format!(r#"[{{"id":"{first}","type":"data","offset":0,"length":40}}]"#);
        let json = format!(
            r#"{{"packs":[{{"id":"{first}","blobs":{blob}}}],"packs_to_delete":[{{"id":"{second}","blobs":{blob}}}]}}"#
        );
        let mut records = IndexRecords::default();
        records.read(json.as_bytes()).unwrap();
        let found: Vec<_> = records.packs().map(|(name, blobs)| (name, blobs.len())).collect();
        assert_eq!(found, [(Name([0xab; 32]), 1), (Name([0xcd; 32]), 0)]);
    }
}
