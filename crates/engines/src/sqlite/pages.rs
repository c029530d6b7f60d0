//! Bringing an unlocked copy up to date block by block: how a database with a rollback journal is pinned where
//! nothing can be cloned.
//!
//! Times are not trusted: every block of both files is read and compared. Under the lock both come from the
//! page cache if they fit into it, at some GB a second.
//!
//! Crash story: a copy that is not finished is of no use and goes with its staging directory; the live file is
//! only read.

use std::{fs::File, io, os::unix::fs::FileExt};

use model::size::Bytes;

/// So much is compared at once.
const BLOCK: usize = 256 * 1024;

/// What came of bringing a copy up to date.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Updated {
    /// What differed and was copied.
    pub changed: Bytes,
    /// What was not compared, because it was told to stop.
    pub left: Bytes,
}

/// Makes `copy` equal to `live`, as long as `goes_on` says so; it is asked before every block. A live file that
/// shrinks meanwhile is copied as far as it goes.
///
/// # Errors
/// If either cannot be read or the copy cannot be written.
pub(super) fn update(live: &File, copy: &File, mut goes_on: impl FnMut() -> bool) -> io::Result<Updated> {
    let size = live.metadata()?.len();
    let mut updated = Updated::default();
    let mut theirs = vec![0; BLOCK];
    let mut ours = vec![0; BLOCK];
    let mut at = 0;
    while at < size {
        if !goes_on() {
            updated.left = Bytes(size - at);
            return Ok(updated);
        }
        let wanted = usize::try_from(size - at).unwrap_or(BLOCK).min(BLOCK);
        let read = fill(live, &mut theirs[..wanted], at)?;
        if read == 0 {
            break;
        }
        let known = fill(copy, &mut ours[..read], at)?;
        if theirs[..read] != ours[..known] {
            copy.write_all_at(&theirs[..read], at)?;
            updated.changed = updated.changed + Bytes(read as u64);
        }
        at += read as u64;
    }
    copy.set_len(at)?;
    Ok(updated)
}

fn fill(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::{fs, fs::File, os::unix::fs::FileExt};

    use model::size::Bytes;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::{BLOCK, update};

    #[test]
    fn copies_follow_growing_shrinking_and_scattered_writes() {
        let seed = 20_261_120;
        let mut random = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(dir.path().join(name))
                .unwrap()
        };
        let (live, copy) = (open("live"), open("copy"));
        for round in 0..40 {
            live.set_len(random.random_range(0..5 * BLOCK as u64)).unwrap();
            for _ in 0..random.random_range(0..4) {
                let at = random.random_range(0..5 * BLOCK as u64);
                live.write_all_at(&[random.random(); 700], at).unwrap();
            }
            assert_eq!(update(&live, &copy, || true).unwrap().left, Bytes(0));
            let (live, copy) = (fs::read(dir.path().join("live")), fs::read(dir.path().join("copy")));
            assert!(live.unwrap() == copy.unwrap(), "seed {seed}, round {round}");
            assert_eq!(update(&open("live"), &open("copy"), || true).unwrap().changed, Bytes(0));
        }
    }

    #[test]
    fn what_is_left_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("live"), vec![1; 3 * BLOCK + 5]).unwrap();
        let live = File::open(dir.path().join("live")).unwrap();
        let copy = File::create_new(dir.path().join("copy")).unwrap();
        drop(copy);
        let copy = File::options().read(true).write(true).open(dir.path().join("copy")).unwrap();
        let mut asked = 0;
        let updated = update(&live, &copy, || {
            asked += 1;
            asked <= 2
        });
        assert_eq!(updated.unwrap().left, Bytes(BLOCK as u64 + 5));
    }
}
