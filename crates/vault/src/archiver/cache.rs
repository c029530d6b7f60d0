//! The index as a session left it, in one file of this machine and without JSON: the next session reads that, and of the
//! repository only what came after. Form: `docs/format/index-cache.md`.
//!
//! A help and nothing more. It is sealed with the repository's key, and used only while every index file that it stands for is
//! there and every pack that it names is there as long as it has to be; index files are still read and compared with their
//! names, so that one that was damaged is found on the day and not when it is needed. In any doubt everything is read
//! from the repository.
//!
//! Crash story: written under another name, which is locked meanwhile, and renamed. Nothing is synced: what a crash leaves of it
//! does not open with the key, and then there is no cache. Of two who write one at once the second leaves it to the first.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufWriter, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use os::durable::{FileLock, create_dirs};
use rand::RngCore;
use rustic_core::Id;

use super::{
    index::{Index, Spot},
    name::Name,
    pack::OVERHEAD,
};
use crate::repository::crypt::{SecretKey, Undecryptable};

/// How the file begins: what it is, and the version of its form.
const HEAD: [u8; 20] = *b"stillpoint index\x01\0\0\0";

/// So many blobs are sealed together.
const TOGETHER: usize = 16 * 1024;

/// What each sealed part begins with: which file it belongs to, and its number in it.
const MARK: usize = 16 + 4;

/// Bytes of a blob: its name, the number of its pack with the highest bit set for a tree, and its spot.
const BLOB: usize = 32 + 4 * 4;

/// Bytes of a pack: its name, and where the last blob that is known of it ends.
const PACK: usize = 32 + 8;

/// With fewer blobs than this a repository's own index is read as fast.
const WORTH: usize = 10_000;

/// It is written anew when one of so many blobs is not in it.
const FRESH: usize = 8;

/// Why a cache is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is of another version")]
    Version,
    #[error(transparent)]
    Sealed(#[from] Undecryptable),
    #[error("its parts do not belong together")]
    Mixed,
    #[error("index files that it stands for are gone")]
    Stale,
    #[error("packs that it names are not there whole")]
    Packs,
}

/// Where an index is kept between sessions.
#[derive(Debug, Clone)]
pub(crate) struct IndexCache {
    path: PathBuf,
}

/// What a session leaves for the next one: of every pack and every blob that index files name.
pub(super) struct Left<'i> {
    pub(super) files: &'i [Name],
    /// With the place where the last blob that is known of each ends, in bytes.
    pub(super) packs: Vec<(Name, u64)>,
    pub(super) count: usize,
    pub(super) blobs: &'i mut dyn Iterator<Item = (Name, u32, Spot)>,
}

impl IndexCache {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Fills an index, which knows which packs there are and nothing else, and says which index files need not be read. After
    /// an error the index is not to be used. The index files that there are: `listed`.
    ///
    /// # Errors
    /// If there is no cache, or it is in doubt.
    pub(super) fn fill(
        &self,
        key: &SecretKey,
        listed: &[(Id, u64)],
        index: &Index,
    ) -> Result<HashSet<Name>, Unusable> {
        let mut options = File::options();
        let mut file =
            options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&self.path)?;
        let length = file.metadata()?.len();
        let mut head = [0; HEAD.len() + 4];
        file.read_exact(&mut head)?;
        let (head, beginning) = head.split_last_chunk::<4>().ok_or(Unusable::Mixed)?;
        if head != HEAD {
            return Err(Unusable::Version);
        }
        let beginning = u32::from_le_bytes(*beginning);
        if u64::from(beginning) > length {
            return Err(Unusable::Mixed);
        }
        let mut room = Vec::new();
        let mut rest = read_part(&mut file, key, beginning as usize, &mut room)?;
        let [id, _] = mark(&mut rest)?;
        let [files, packs, count] = [number(&mut rest)?, number(&mut rest)?, number(&mut rest)?];
        let there: HashSet<Name> = listed.iter().map(|(id, _)| Name::from_id(id)).collect();
        let files = (0..files).map(|_| take(&mut rest).map(Name)).collect::<Result<HashSet<_>, _>>()?;
        if !files.is_subset(&there) {
            return Err(Unusable::Stale);
        }
        let pack = |_| Ok((Name(take(&mut rest)?), u64::from_le_bytes(take(&mut rest)?)));
        let packs = (0..packs).map(pack).collect::<Result<Vec<_>, Unusable>>()?;
        if count as u64 * BLOB as u64 > length {
            return Err(Unusable::Mixed);
        }
        let numbers = index.adopt_packs(&packs).ok_or(Unusable::Packs)?;
        let mut left = count as usize;
        index.expect(left);
        for part in 1_u32.. {
            let together = left.min(TOGETHER);
            if together == 0 {
                break;
            }
            let mut rest = read_part(&mut file, key, MARK + together * BLOB + OVERHEAD, &mut room)?;
            if mark(&mut rest)? != [id, u128::from(part)] || rest.len() != together * BLOB {
                return Err(Unusable::Mixed);
            }
            index.adopt(&numbers, rest.chunks_exact(BLOB).map_while(blob)).ok_or(Unusable::Mixed)?;
            left -= together;
        }
        index.adopted(files.iter().copied());
        Ok(files)
    }

    /// Writes down what the index has, if there is enough in it that is not in the cache. A cache that cannot be written is
    /// done without.
    pub(super) fn save(&self, key: &SecretKey, index: &Index) {
        let saved = index.leave(|left, fresh| {
            let is_worth_it = left.count >= WORTH && fresh >= left.count / FRESH;
            if is_worth_it { self.write(key, left) } else { Ok(()) }
        });
        if let Some(Err(error)) = saved {
            tracing::debug!("{} is not written: {error}", self.path.display());
        }
    }

    fn write(&self, key: &SecretKey, left: Left<'_>) -> io::Result<()> {
        let dir = self.path.parent().ok_or(io::ErrorKind::NotFound)?;
        create_dirs(dir, 0o700)?;
        let unfinished = self.path.with_extension("new");
        let Some(lock) = FileLock::try_exclusive(&unfinished)? else { return Ok(()) };
        let written = || -> io::Result<()> {
            lock.file().set_len(0)?;
            let mut out = BufWriter::new(lock.file());
            write_to(&mut out, key, left)?;
            out.flush()?;
            fs::rename(&unfinished, &self.path)
        };
        written().inspect_err(|_| {
            // Where there is no room for it, half of it is not to stay either.
            let _ = fs::remove_file(&unfinished);
        })
    }
}

fn write_to(out: &mut impl io::Write, key: &SecretKey, left: Left<'_>) -> io::Result<()> {
    let Left { files, packs, count, blobs } = left;
    let too_many = |_| io::Error::other("there are too many");
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    let mut plain = [&id[..], &0_u32.to_le_bytes()].concat();
    for number in [files.len(), packs.len(), count] {
        plain.extend(u32::try_from(number).map_err(too_many)?.to_le_bytes());
    }
    files.iter().for_each(|name| plain.extend(name.0));
    plain.reserve(packs.len() * PACK);
    for (name, end) in packs {
        plain.extend(name.0);
        plain.extend(end.to_le_bytes());
    }
    let mut sealed = Vec::new();
    key.seal_into(&plain, &mut sealed).map_err(io::Error::other)?;
    out.write_all(&HEAD)?;
    out.write_all(&u32::try_from(sealed.len()).map_err(too_many)?.to_le_bytes())?;
    out.write_all(&sealed)?;
    let mut written = 0;
    for part in 1_u32.. {
        plain.clear();
        plain.extend(id);
        plain.extend(part.to_le_bytes());
        for (name, pack, spot) in blobs.take(TOGETHER) {
            plain.extend(name.0);
            [pack, spot.offset, spot.length, spot.raw].iter().for_each(|n| plain.extend(n.to_le_bytes()));
            written += 1;
        }
        if plain.len() == MARK {
            break;
        }
        sealed.clear();
        key.seal_into(&plain, &mut sealed).map_err(io::Error::other)?;
        out.write_all(&sealed)?;
    }
    if written == count { Ok(()) } else { Err(io::Error::other("the index changed meanwhile")) }
}

/// Reads a sealed part of so many bytes.
fn read_part<'r>(
    file: &mut File,
    key: &SecretKey,
    length: usize,
    room: &'r mut Vec<u8>,
) -> Result<&'r [u8], Unusable> {
    room.resize(length, 0);
    file.read_exact(room)?;
    Ok(key.decrypt_in_place(room)?)
}

/// Which file a part belongs to, and its number.
fn mark(rest: &mut &[u8]) -> Result<[u128; 2], Unusable> {
    Ok([u128::from_le_bytes(take(rest)?), u128::from(number(rest)?)])
}

fn number(rest: &mut &[u8]) -> Result<u32, Unusable> {
    take(rest).map(u32::from_le_bytes)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Unusable> {
    let (first, others) = rest.split_first_chunk::<N>().ok_or(Unusable::Mixed)?;
    *rest = others;
    Ok(*first)
}

fn blob(mut rest: &[u8]) -> Option<(Name, u32, Spot)> {
    let name = Name(take(&mut rest).ok()?);
    let mut next = || number(&mut rest).ok();
    Some((name, next()?, Spot { offset: next()?, length: next()?, raw: next()? }))
}

/// Where the index of an application's repository is kept: `{state}/index/{relpath}.cache`, with `/` written `%`.
pub(crate) fn path_of(state: &Path, relpath: &str) -> PathBuf {
    state.join("index").join(format!("{}.cache", relpath.replace('/', "%")))
}

/// Removes what is kept of repositories that nobody wants any more: all but these.
///
/// # Errors
/// What the filesystem says.
pub(crate) fn keep_only(state: &Path, wanted: &HashSet<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(state.join("index")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let is_ours = path.extension().is_some_and(|ending| ending == "cache" || ending == "new");
        if is_ours && !wanted.contains(&path.with_extension("cache")) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustic_core::repofile::BlobType::{self, Data, Tree};
    use tempfile::TempDir;

    use super::{
        super::index::{Claim, Standing},
        BLOB, FileLock, HEAD, HashSet, Id, Index, IndexCache, Name, OVERHEAD, Path, PathBuf, SecretKey, Spot,
        TOGETHER, Unusable, WORTH, fs, keep_only, path_of,
    };

    const LENGTH: u32 = 40;

    fn name(number: u32) -> Name {
        Name::of(&number.to_le_bytes())
    }

    fn key() -> SecretKey {
        SecretKey::from_bytes(std::array::from_fn(|n| n as u8))
    }

    /// Blobs of a pack, every seventh a tree, some compressed.
    fn blobs(pack: u32, count: u32) -> Vec<(BlobType, Name, Spot)> {
        let blob = |n: u32| {
            let tpe = if n.is_multiple_of(7) { Tree } else { Data };
            (tpe, name(pack * 1_000_000 + n), Spot { offset: n * LENGTH, length: LENGTH, raw: n % 3 * 100 })
        };
        (0..count).map(blob).collect()
    }

    /// An index of packs with so many blobs, as index files name them, one each.
    struct Scene {
        dir: TempDir,
        packs: Vec<(Name, u64)>,
        files: Vec<(Id, u64)>,
        all: Vec<(BlobType, Name, Spot)>,
        index: Index,
    }

    impl Scene {
        fn of(counts: &[u32]) -> Self {
            let index = Index::default();
            let pack = |n: usize| Name::of(format!("pack {n}").as_bytes());
            let packs: Vec<_> =
                counts.iter().enumerate().map(|(n, count)| (pack(n), u64::from(count * LENGTH))).collect();
            index.note_packs(&packs);
            let mut all = Vec::new();
            for (n, (name, _)) in packs.iter().enumerate() {
                let blobs = blobs(n as u32, counts[n]);
                index.add_pack(*name, Standing::Indexed, &blobs);
                index.note_file(self::name(n as u32));
                all.extend(blobs);
            }
            let files = (0..counts.len() as u32).map(|n| (name(n).id(), 1)).collect();
            Self { dir: tempfile::tempdir().unwrap(), packs, files, all, index }
        }

        fn path(&self) -> PathBuf {
            path_of(self.dir.path(), "bench/shop")
        }

        fn saved(self) -> Self {
            IndexCache::at(self.path()).save(&key(), &self.index);
            self
        }

        fn fill_with(&self, key: &SecretKey, packs: &[(Name, u64)]) -> Result<Index, Unusable> {
            let index = Index::default();
            index.note_packs(packs);
            let known = IndexCache::at(self.path()).fill(key, &self.files, &index)?;
            let expected: HashSet<Name> = self.files.iter().map(|(id, _)| Name::from_id(id)).collect();
            assert!(known.is_subset(&expected));
            Ok(index)
        }

        fn fill(&self) -> Result<Index, Unusable> {
            self.fill_with(&key(), &self.packs)
        }

        fn assert_is_in(&self, index: &Index) {
            for (tpe, name, spot) in &self.all {
                assert_eq!(index.spot(*tpe, name), self.index.spot(*tpe, name));
                assert_eq!(index.spot(*tpe, name).map(|found| found.1), Some(*spot));
                let other = if *tpe == Data { Tree } else { Data };
                assert_eq!(index.spot(other, name), None);
            }
        }
    }

    #[test]
    fn what_was_left_is_taken_over_whole() {
        let scene = Scene::of(&[3, 0, 2 * TOGETHER as u32, 1]).saved();
        let index = scene.fill().unwrap();
        scene.assert_is_in(&index);
        assert_eq!(index.orphans(), []);
        let new = name(u32::MAX);
        assert_eq!(index.claim(Data, &new), Claim::Mine(scene.all.len() as u32));
        assert_eq!(index.claim(Data, &scene.all[1].1), Claim::Known(1), "it has its place");
    }

    #[test]
    fn what_no_index_names_is_not_left() {
        let scene = Scene::of(&[WORTH as u32]);
        let (orphan, pending) = (Name::of(b"orphan"), name(u32::MAX));
        let packs = [scene.packs.clone(), vec![(orphan, 40)]].concat();
        scene.index.note_packs(&packs);
        scene.index.add_pack(
            orphan,
            Standing::Orphan,
            &[(Data, Name::of(b"its"), Spot { offset: 0, length: 40, raw: 0 })],
        );
        assert_eq!(scene.index.claim(Data, &pending), Claim::Mine(WORTH as u32 + 1));
        let scene = scene.saved();
        let index = scene.fill_with(&key(), &packs).unwrap();
        scene.assert_is_in(&index);
        assert_eq!(index.orphans(), [(orphan, 40)]);
        assert_eq!(index.claim(Data, &pending), Claim::Mine(WORTH as u32));
    }

    #[test]
    fn nothing_is_taken_from_one_that_is_damaged_or_anothers() {
        let scene = Scene::of(&[2 * TOGETHER as u32 + 5]).saved();
        let whole = fs::read(scene.path()).unwrap();
        let with = |bytes: &[u8]| {
            fs::write(scene.path(), bytes).unwrap();
            scene.fill().err()
        };
        assert!(with(&whole).is_none());
        for at in (0..whole.len()).step_by(9973).chain([20, 23, 24, whole.len() - 1]) {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            assert!(with(&bytes).is_some(), "byte {at}");
            assert!(with(&whole[..at]).is_some(), "cut off at {at}");
        }
        // The other parts are all of one length but the last.
        let part = 20 + TOGETHER * BLOB + OVERHEAD;
        let first = whole.len() - 2 * part - (20 + 5 * BLOB + OVERHEAD);
        let swapped = [
            &whole[..first],
            &whole[first + part..][..part],
            &whole[first..][..part],
            &whole[first + 2 * part..],
        ];
        assert!(matches!(with(&swapped.concat()), Some(Unusable::Mixed)));
        let other = Scene::of(&[2 * TOGETHER as u32 + 5]).saved();
        let foreign = fs::read(other.path()).unwrap();
        assert!(matches!(
            with(&[&whole[..first], &foreign[first..]].concat()),
            Some(Unusable::Mixed | Unusable::Sealed(_))
        ));
        fs::write(scene.path(), &whole).unwrap();
        assert!(matches!(scene.fill_with(&SecretKey::random(), &scene.packs), Err(Unusable::Sealed(_))));
        fs::remove_file(scene.path()).unwrap();
        assert!(matches!(scene.fill(), Err(Unusable::Io(_))));
    }

    #[test]
    fn it_is_of_no_use_once_an_index_file_or_a_pack_is_not_there_whole() {
        let mut scene = Scene::of(&[WORTH as u32, 10]).saved();
        let with = |packs: &[(Name, u64)]| scene.fill_with(&key(), packs).err();
        assert!(matches!(with(&scene.packs[..1]), Some(Unusable::Packs)));
        let shorter = [scene.packs[0], (scene.packs[1].0, scene.packs[1].1 - 1)];
        assert!(matches!(with(&shorter), Some(Unusable::Packs)));
        let longer = [scene.packs[0], (scene.packs[1].0, scene.packs[1].1 + 1)];
        assert!(with(&longer).is_none());
        scene.files.pop();
        assert!(matches!(scene.fill(), Err(Unusable::Stale)));
    }

    #[test]
    fn it_is_written_when_there_is_enough_that_is_new() {
        let small = Scene::of(&[WORTH as u32 - 1]).saved();
        assert!(!small.path().exists());
        let scene = Scene::of(&[WORTH as u32]).saved();
        let first = fs::read(scene.path()).unwrap();
        let again = |more: u32| {
            let index = scene.fill().unwrap();
            let pack = Name::of(b"more");
            index.settle(pack, u64::from(more * LENGTH), &[]);
            index.add_pack(pack, Standing::Indexed, &blobs(9, more));
            IndexCache::at(scene.path()).save(&key(), &index);
            fs::read(scene.path()).unwrap() != first
        };
        assert!(!again(WORTH as u32 / 8 - 1));
        // Somebody else is at it.
        let unfinished = scene.path().with_extension("new");
        let lock = FileLock::try_exclusive(&unfinished).unwrap().unwrap();
        assert!(!again(WORTH as u32));
        drop(lock);
        assert!(again(WORTH as u32));
        assert!(!unfinished.exists());
    }

    #[test]
    fn nothing_stays_of_one_that_cannot_be_written() {
        let scene = Scene::of(&[WORTH as u32]);
        fs::create_dir_all(scene.path()).unwrap();
        let scene = scene.saved();
        assert!(scene.path().is_dir() && !scene.path().with_extension("new").exists());
        assert!(scene.fill().is_err());
    }

    #[test]
    fn an_index_that_lacks_something_is_not_left() {
        let scene = Scene::of(&[WORTH as u32, 10]);
        scene.index.note_packs(&scene.packs[..1]);
        assert!(!scene.saved().path().exists());
    }

    #[test]
    fn only_what_is_wanted_stays() {
        let dir = tempfile::tempdir().unwrap();
        keep_only(dir.path(), &HashSet::new()).unwrap();
        let [wanted, gone] = ["a/b", "c"].map(|relpath| path_of(dir.path(), relpath));
        assert_eq!(wanted, dir.path().join("index/a%b.cache"));
        fs::create_dir(dir.path().join("index")).unwrap();
        let others = [gone.with_extension("new"), dir.path().join("index/else")];
        for path in [&wanted, &gone].into_iter().chain(&others) {
            fs::write(path, "").unwrap();
        }
        keep_only(dir.path(), &HashSet::from([wanted.clone()])).unwrap();
        assert_eq!(
            [&wanted, &gone, &others[0], &others[1]].map(|path| path.exists()),
            [true, false, false, true]
        );
    }

    /// As the first version wrote it.
    #[test]
    fn the_sample_is_read() {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/index.cache");
        let scene = Scene::of(&[3, 1]);
        fs::create_dir(scene.dir.path().join("index")).unwrap();
        fs::copy(sample, scene.path()).unwrap();
        assert_eq!(fs::read(scene.path()).unwrap()[..20], HEAD);
        scene.assert_is_in(&scene.fill().unwrap());
    }
}
