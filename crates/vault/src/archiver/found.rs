//! Contents of stored files, looked up in the index: large ones by all cores.
//!
//! Crash story: memory only.

use std::{
    ops::Range,
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::{
    cores,
    digest::digest,
    index::{Index, Place},
    name::Name,
};

/// So many names are worth a thread of their own.
pub(crate) const MANY: usize = 4096;

/// A file's content as it stands in a tree.
#[derive(Clone, Copy)]
pub(crate) struct Content<'n> {
    pub(crate) names: &'n [Name],
    /// It is to be proven, so its digest and length are asked for.
    pub(crate) is_wanted: bool,
}

/// What the index has for a content.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The places of its blobs, if an index names all of them; and their bytes, if all of them are there.
    pub(crate) places: Option<(Vec<Place>, Option<u64>)>,
    /// Of a wanted one.
    digest: String,
    count: usize,
}

/// What is stored of a file, to be compared with what was recorded of it.
pub(crate) struct Stored {
    /// The digest of its content: SHA-256 over the names of its blobs.
    pub(crate) digest: String,
    /// How many blobs it has.
    pub(crate) count: usize,
    /// Their places and bytes, if all of them are there.
    pub(crate) content: Option<(Vec<Place>, u64)>,
}

impl From<Found> for Stored {
    fn from(found: Found) -> Self {
        let content = found.places.and_then(|(places, length)| Some((places, length?)));
        Self { digest: found.digest, count: found.count, content }
    }
}

impl Content<'_> {
    /// Looks it up.
    pub(crate) fn look_up(&self, index: &Index) -> Found {
        let digest = if self.is_wanted { digest(self.names) } else { String::new() };
        Found { places: index.locate(self.names), digest, count: self.names.len() }
    }
}

/// A part of the work on several contents, by their numbers.
enum Part {
    Digest(usize),
    Names(usize, Range<usize>),
}

enum Done {
    Digest(String),
    Names(Option<(Vec<Place>, Option<u64>)>),
}

/// Looks several contents up, by all cores.
pub(crate) fn look_up_all(index: &Index, contents: &[Content<'_>]) -> Vec<Found> {
    let mut parts: Vec<Part> = Vec::new();
    // Those that take longest are begun first.
    parts.extend((0..contents.len()).filter(|n| contents[*n].is_wanted).map(Part::Digest));
    for (n, content) in contents.iter().enumerate() {
        let length = content.names.len();
        parts.extend((0..length).step_by(MANY).map(|from| Part::Names(n, from..length.min(from + MANY))));
    }
    let work = |part: &Part| match part {
        Part::Digest(n) => (*n, Done::Digest(digest(contents[*n].names))),
        Part::Names(n, range) => (*n, Done::Names(index.locate(&contents[*n].names[range.clone()]))),
    };
    let mut found: Vec<Found> = contents.iter().map(Found::of_nothing).collect();
    for (n, done) in on_all_cores(&parts, work) {
        match done {
            Done::Digest(digest) => found[n].digest = digest,
            Done::Names(more) => found[n].add(more),
        }
    }
    found
}

impl Found {
    fn of_nothing(content: &Content<'_>) -> Self {
        let count = content.names.len();
        Self { places: Some((Vec::with_capacity(count), Some(0))), digest: String::new(), count }
    }

    fn add(&mut self, more: Option<(Vec<Place>, Option<u64>)>) {
        let so_far = self.places.take().zip(more);
        self.places = so_far.map(|((mut places, length), (more, more_length))| {
            places.extend_from_slice(&more);
            (places, length.zip(more_length).map(|(a, b)| a + b))
        });
    }
}

/// What becomes of each of these, in their order.
fn on_all_cores<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let share = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else { return done };
            done.push((number, work(item)));
        }
    };
    let mut all = thread::scope(|scope| {
        let helpers: Vec<_> = (1..cores().min(items.len())).map(|_| scope.spawn(share)).collect();
        let mut all = share();
        for helper in helpers {
            all.extend(helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        all
    });
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, done)| done).collect()
}

#[cfg(test)]
mod tests {
    use rustic_core::repofile::BlobType;

    use super::{Content, Index, MANY, Name, look_up_all};
    use crate::archiver::{Spot, Standing};

    /// Contents of any length, with parts that are not there and parts that no index names.
    #[test]
    fn in_parts_and_by_all_cores_it_is_the_same_as_at_once() {
        let names: Vec<Name> = (0..3 * MANY as u32).map(|n| Name::of(&n.to_le_bytes())).collect();
        let (here, gone, unknown) =
            (&names[..2 * MANY + 9], &names[2 * MANY + 9..3 * MANY - 1], names[3 * MANY - 1]);
        let index = Index::default();
        let blobs = |names: &[Name]| -> Vec<_> {
            names
                .iter()
                .map(|name| (BlobType::Data, *name, Spot { offset: 0, length: 40, raw: 100 }))
                .collect()
        };
        index.note_packs(&[(Name::of(b"here"), 40)]);
        index.add_pack(Name::of(b"here"), Standing::Indexed, &blobs(here));
        index.add_pack(Name::of(b"gone"), Standing::Indexed, &blobs(gone));
        let with_unknown = [&names[..MANY], &[unknown], here].concat();
        let lists: [&[Name]; 8] = [
            &[],
            &here[..1],
            &here[..MANY],
            &here[..MANY + 1],
            here,
            &names[..3 * MANY - 1],
            &with_unknown,
            &[unknown],
        ];
        let contents: Vec<_> =
            lists.iter().enumerate().map(|(n, names)| Content { names, is_wanted: n % 3 != 1 }).collect();
        let found = look_up_all(&index, &contents);
        let at_once: Vec<_> = contents.iter().map(|content| content.look_up(&index)).collect();
        assert_eq!(found, at_once);
        let whole = found[4].places.as_ref().unwrap();
        assert_eq!((index.names(&whole.0), whole.1), (here.to_vec(), Some(100 * here.len() as u64)));
        assert!(
            matches!(&found[5].places, Some((places, None)) if places.len() == 3 * MANY - 1),
            "a pack is gone"
        );
        assert!(found[6].places.is_none() && found[7].places.is_none(), "no index names it");
    }
}
