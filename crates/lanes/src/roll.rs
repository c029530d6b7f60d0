//! Finds where the content of a file says that it is cut.
//!
//! The hash is Rabin's, of the last 64 bytes, as restic's chunker takes it
//! (<https://restic.net/blog/2015-09-12/restic-foundation1-cdc/>); its tables come from `rustic_cdc`. Since a hash needs only the
//! bytes that it is of, several stretches are hashed side by side: each step waits for the one before of its own stretch, and
//! the processor fills that time with the others.
//!
//! Crash story: pure functions.

use rustic_cdc::{Polynom, Rabin64};

/// Bytes that the rolling hash looks at.
pub const WINDOW: usize = 64;

/// Stretches that are hashed side by side.
const LANES: usize = 4;

/// Bytes of a stretch.
const STRETCH: usize = 4096;

/// Where cuts are.
#[derive(Debug, Clone, Copy)]
pub struct Rolling {
    /// Rabin's polynomial.
    pub polynomial: u64,
    /// A cut is where the hash has only zeros under it.
    pub mask: u64,
    /// The least bytes before a cut, at least [`WINDOW`].
    pub min: usize,
    /// The most bytes before a cut, at least `min`.
    pub max: usize,
}

/// Finds cuts; one for each thread.
pub struct Roller {
    tables: Tables,
    min: usize,
    max: usize,
}

/// What a step of the hash looks up.
struct Tables {
    /// What a byte leaves behind when it leaves the window.
    out: [u64; 256],
    /// What brings the hash back below the polynomial's degree.
    modulo: [u64; 256],
    shift: u32,
    mask: u64,
}

impl Tables {
    #[inline]
    fn step(&self, hash: u64, leaves: u8, enters: u8) -> u64 {
        self.push(hash ^ self.out[usize::from(leaves)], enters)
    }

    #[inline]
    fn push(&self, hash: u64, enters: u8) -> u64 {
        ((hash << 8) | u64::from(enters)) ^ self.modulo[(hash >> self.shift) as u8 as usize]
    }

    #[inline]
    fn is_cut(&self, hash: u64) -> bool {
        hash & self.mask == 0
    }

    /// The hash of the window that ends here.
    fn at(&self, bytes: &[u8], end: usize) -> u64 {
        bytes[end - WINDOW..end].iter().fold(0, |hash, byte| self.push(hash, *byte))
    }

    /// The first cut behind `from` and not behind `to`.
    fn find(&self, bytes: &[u8], mut hash: u64, from: usize, to: usize) -> Option<usize> {
        let leave = &bytes[from - WINDOW..to - WINDOW];
        for (number, (leaves, enters)) in leave.iter().zip(&bytes[from..to]).enumerate() {
            hash = self.step(hash, *leaves, *enters);
            if self.is_cut(hash) {
                return Some(from + number + 1);
            }
        }
        None
    }

    /// The first cut in the stretches that begin behind `from`.
    ///
    /// # Panics
    /// If there are not so many bytes.
    fn find_in_lanes(&self, bytes: &[u8], from: usize) -> Option<usize> {
        let starts: [usize; LANES] = std::array::from_fn(|lane| from + lane * STRETCH);
        let stretch = |at: usize| bytes[at..].first_chunk::<STRETCH>().expect("there are so many bytes");
        let (enters, leaves) = (starts.map(stretch), starts.map(|start| stretch(start - WINDOW)));
        let mut hashes = starts.map(|start| self.at(bytes, start));
        for number in 0..STRETCH {
            for lane in 0..LANES {
                hashes[lane] = self.step(hashes[lane], leaves[lane][number], enters[lane][number]);
            }
            if let Some(lane) = hashes.iter().position(|hash| self.is_cut(*hash)) {
                // The stretches before it may have one further on.
                let before = (0..lane).find_map(|lane| {
                    let at = starts[lane] + number + 1;
                    self.find(bytes, hashes[lane], at, starts[lane] + STRETCH)
                });
                return before.or(Some(starts[lane] + number + 1));
            }
        }
        None
    }
}

impl Roller {
    /// One for these parameters.
    #[must_use]
    pub fn new(rolling: &Rolling) -> Self {
        let polynomial = rolling.polynomial;
        let tables = Tables {
            out: Rabin64::calculate_out_table(WINDOW, &polynomial),
            modulo: Rabin64::calculate_mod_table(&polynomial),
            shift: (polynomial.degree() - 8).unsigned_abs(),
            mask: rolling.mask,
        };
        Self { tables, min: rolling.min, max: rolling.max }
    }

    /// Where the blob that begins these bytes ends; nothing if that is not in them. `last` says that the file
    /// ends with them.
    #[must_use]
    pub fn cut(&self, bytes: &[u8], last: bool) -> Option<usize> {
        let rest = (last && !bytes.is_empty()).then_some(bytes.len());
        if bytes.len() < self.min {
            return rest;
        }
        let end = bytes.len().min(self.max);
        self.find(&bytes[..end]).or(if end == self.max { Some(end) } else { rest })
    }

    /// The first cut that leaves enough before it.
    fn find(&self, bytes: &[u8]) -> Option<usize> {
        let mut at = self.min;
        if self.tables.is_cut(self.tables.at(bytes, at)) {
            return Some(at);
        }
        while bytes.len() - at >= LANES * STRETCH {
            if let Some(cut) = self.tables.find_in_lanes(bytes, at) {
                return Some(cut);
            }
            at += LANES * STRETCH;
        }
        self.tables.find(bytes, self.tables.at(bytes, at), at, bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
    use rustic_cdc::{Rabin64, RollingHash64};

    use super::{Roller, Rolling, STRETCH, WINDOW};

    fn rolling() -> Rolling {
        // restic's example polynomial.
        let (min, max) = (512 * 1024, 8 * 1024 * 1024);
        Rolling { polynomial: 0x003d_a335_8b4d_c173, mask: (1 << 20) - 1, min, max }
    }

    /// One byte after the other, by the library.
    fn slowly(rolling: &Rolling, bytes: &[u8], last: bool) -> Option<usize> {
        let rest = (last && !bytes.is_empty()).then_some(bytes.len());
        if bytes.len() < rolling.min {
            return rest;
        }
        let mut rabin = Rabin64::new_with_polynom(6, &rolling.polynomial);
        // It takes one byte less than its window has.
        rabin.reset_and_prefill_window(&mut bytes[rolling.min - WINDOW..rolling.min].iter().copied());
        rabin.slide(bytes[rolling.min - 1]);
        let mut at = rolling.min;
        while rabin.hash & rolling.mask != 0 {
            if at == bytes.len().min(rolling.max) {
                return if at == rolling.max { Some(at) } else { rest };
            }
            rabin.slide(bytes[at]);
            at += 1;
        }
        Some(at)
    }

    #[test]
    fn cuts_are_those_of_the_library() {
        let mut random = StdRng::seed_from_u64(11);
        for round in 0..120 {
            let bits = random.random_range(6..20);
            let min = random.random_range(WINDOW..20_000);
            let max = min + random.random_range(0..200_000);
            let rolling = Rolling { mask: (1 << bits) - 1, min, max, ..rolling() };
            let mut bytes = vec![0; random.random_range(0..20 * STRETCH)];
            // Noise, zeros, or a short pattern that comes again.
            match round % 4 {
                0 => {}
                1 => {
                    let period = random.random_range(1..200);
                    bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % period) as u8);
                }
                _ => random.fill_bytes(&mut bytes),
            }
            let (roller, mut at) = (Roller::new(&rolling), 0);
            while at < bytes.len() {
                for last in [false, true] {
                    let expected = slowly(&rolling, &bytes[at..], last);
                    assert_eq!(
                        roller.cut(&bytes[at..], last),
                        expected,
                        "round {round}, {rolling:?} at {at}"
                    );
                }
                at += slowly(&rolling, &bytes[at..], true).unwrap();
            }
        }
    }

    /// The table of the chunker's own test: 32 MiB of Go's random bytes are not at hand, but what it says of any
    /// bytes is: all are in a blob, none is too large, and a byte put in front moves no later cut.
    #[test]
    fn cuts_move_with_the_content() {
        let mut bytes = vec![0; 12 << 20];
        StdRng::seed_from_u64(7).fill_bytes(&mut bytes);
        let ends = |bytes: &[u8]| {
            let (roller, mut at, mut ends) = (Roller::new(&rolling()), 0, Vec::new());
            while at < bytes.len() {
                at += roller.cut(&bytes[at..], true).unwrap();
                ends.push(at);
            }
            ends
        };
        let before = ends(&bytes);
        assert!(before.len() > 4 && before.len() < 24, "{before:?}");
        assert_eq!(before.last(), Some(&bytes.len()));
        bytes.insert(0, 1);
        let after: Vec<usize> = ends(&bytes).iter().map(|end| end - 1).collect();
        assert!(after.iter().filter(|end| before.contains(end)).count() + 2 >= before.len());
    }

    #[test]
    fn a_cut_does_not_depend_on_how_much_is_there() {
        let mut bytes = vec![0; 9 << 20];
        StdRng::seed_from_u64(3).fill_bytes(&mut bytes);
        let roller = Roller::new(&rolling());
        let whole = roller.cut(&bytes, true).unwrap();
        assert_eq!(roller.cut(&bytes[..whole], false), Some(whole));
        assert_eq!(roller.cut(&bytes[..whole - 1], false), None);
        assert_eq!(roller.cut(&bytes[..whole - 1], true), Some(whole - 1));
        assert_eq!(roller.cut(&[], true), None);
        let zeros = vec![0; 600 * 1024];
        assert_eq!(roller.cut(&zeros, true), Some(512 * 1024), "as restic cuts zeros");
    }
}
