//! SHA-256 of several contents at once.
//!
//! A processor with instructions for SHA-256 waits for half of the time: each needs the result of the one before. Three
//! contents side by side fill these gaps, and take half of the time of one after the other. Where
//! there are no such instructions, or only one content, it is the library that does it.
//!
//! The function: FIPS 180-4. The instructions: `SHA256RNDS2`, `SHA256MSG1`, `SHA256MSG2` in Intel's and AMD's manuals.
//!
//! Crash story: pure functions.

use sha2::{Digest, Sha256};

/// The hashes of these contents, in their order.
#[must_use]
pub fn hashes(contents: &[&[u8]]) -> Vec<[u8; 32]> {
    #[cfg(target_arch = "x86_64")]
    if contents.len() > 1 && x86::is_there() {
        return x86::hashes(contents);
    }
    contents.iter().map(|content| Sha256::digest(content).into()).collect()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        arch::x86_64::{
            __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
            _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
            _mm_shuffle_epi32,
        },
        array,
    };

    /// How many contents are hashed side by side: two leave gaps, four do not fit into the registers (measured: 1.8 GB/s for
    /// one, 3.3, 3.6, 3.2).
    const LANES: usize = 3;

    /// Bytes that one round of the function takes.
    const BLOCK: usize = 64;

    type Block = [u8; BLOCK];

    /// FIPS 180-4, 5.3.3.
    const BEGIN: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];

    /// FIPS 180-4, 4.2.2.
    const K: [[[u32; 4]; 4]; 4] = [
        [
            [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
            [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
            [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
            [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        ],
        [
            [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
            [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
            [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
            [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        ],
        [
            [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
            [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
            [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
            [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        ],
        [
            [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
            [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
            [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
            [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
        ],
    ];

    /// Whether the processor has the instructions.
    pub(super) fn is_there() -> bool {
        is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1")
    }

    /// A content that is being hashed.
    struct Lane<'a> {
        number: usize,
        state: [u32; 8],
        whole: &'a [Block],
        /// What is left over, padded to whole blocks; those that are to come.
        rest: [Block; 2],
        rest_from: usize,
    }

    impl<'a> Lane<'a> {
        fn new(number: usize, content: &'a [u8]) -> Self {
            let (whole, over) = content.as_chunks::<BLOCK>();
            let mut rest = [[0; BLOCK]; 2];
            // A one after it, and its length in bits in the last 8 bytes: one block, if there is room for that.
            let rest_from = usize::from(over.len() < BLOCK - 8);
            let padded = rest[rest_from..].as_flattened_mut();
            padded[..over.len()].copy_from_slice(over);
            padded[over.len()] = 0x80;
            rest[1][BLOCK - 8..].copy_from_slice(&(content.len() as u64 * 8).to_be_bytes());
            Self { number, state: BEGIN, whole, rest, rest_from }
        }

        fn next(&self) -> &[Block] {
            if self.whole.is_empty() { &self.rest[self.rest_from..] } else { self.whole }
        }

        fn advance(&mut self, blocks: usize) {
            if self.whole.is_empty() { self.rest_from += blocks } else { self.whole = &self.whole[blocks..] }
        }

        fn is_done(&self) -> bool {
            self.rest_from == 2
        }
    }

    /// As [`super::hashes`]; only where [`is_there`].
    pub(super) fn hashes(contents: &[&[u8]]) -> Vec<[u8; 32]> {
        let mut found = vec![[0; 32]; contents.len()];
        let mut waiting = contents.iter().enumerate().map(|(number, content)| Lane::new(number, content));
        let mut lanes: Vec<Lane<'_>> = waiting.by_ref().take(LANES).collect();
        loop {
            match lanes.as_mut_slice() {
                [] => return found,
                [a] => advance([a]),
                [a, b] => advance([a, b]),
                [a, b, c, ..] => advance([a, b, c]),
            }
            let mut at = 0;
            while let Some(lane) = lanes.get_mut(at) {
                if !lane.is_done() {
                    at += 1;
                    continue;
                }
                for (word, bytes) in lane.state.iter().zip(found[lane.number].as_chunks_mut::<4>().0) {
                    *bytes = word.to_be_bytes();
                }
                match waiting.next() {
                    Some(next) => *lane = next,
                    None => drop(lanes.swap_remove(at)),
                }
            }
        }
    }

    /// Does as many blocks as all of these lanes have.
    fn advance<const N: usize>(lanes: [&mut Lane<'_>; N]) {
        let blocks = lanes.iter().map(|lane| lane.next().len()).min().unwrap_or(0);
        let mut states: [_; N] = array::from_fn(|n| lanes[n].state);
        let next: [_; N] = array::from_fn(|n| &lanes[n].next()[..blocks]);
        // SAFETY: `hashes` is only called where `is_there` has found the instructions.
        unsafe { compress(&mut states, next, blocks) };
        for (lane, state) in lanes.into_iter().zip(states) {
            lane.state = state;
            lane.advance(blocks);
        }
    }

    /// FIPS 180-4, 6.2.2, for so many blocks of each content.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn compress<const N: usize>(states: &mut [[u32; 8]; N], contents: [&[Block]; N], blocks: usize) {
        // The instructions want the state as words A, B, E, F and C, D, G, H, and the block as big-endian words.
        let four = |words: [u32; 4]| {
            let [a, b, c, d] = words.map(u32::cast_signed);
            _mm_set_epi32(a, b, c, d)
        };
        let mut abef: [__m128i; N] = array::from_fn(|n| {
            let [a, b, _, _, e, f, _, _] = states[n];
            four([a, b, e, f])
        });
        let mut cdgh: [__m128i; N] = array::from_fn(|n| {
            let [_, _, c, d, _, _, g, h] = states[n];
            four([c, d, g, h])
        });
        let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        for block in 0..blocks {
            let before = (abef, cdgh);
            let mut w = [[swap; 4]; N];
            for (w, content) in w.iter_mut().zip(contents) {
                for (quarter, bytes) in w.iter_mut().zip(content[block].as_chunks::<16>().0) {
                    let bytes = i128::from_le_bytes(*bytes);
                    *quarter = _mm_shuffle_epi8(_mm_set_epi64x((bytes >> 64) as i64, bytes as i64), swap);
                }
            }
            // Four steps of each, and the words for those sixteen steps later. A macro, for the numbers have to be known when
            // it is compiled: the words stay in registers then.
            macro_rules! steps {
                ($k:expr, $now:literal, $one:literal, $two:literal, $three:literal, $goes_on:literal) => {
                    let [a, b, c, d] = $k;
                    let k = four([d, c, b, a]);
                    for n in 0..N {
                        let sum = _mm_add_epi32(w[n][$now], k);
                        cdgh[n] = _mm_sha256rnds2_epu32(cdgh[n], abef[n], sum);
                        abef[n] = _mm_sha256rnds2_epu32(abef[n], cdgh[n], _mm_shuffle_epi32::<0x0e>(sum));
                    }
                    if $goes_on {
                        for w in &mut w {
                            let part = _mm_sha256msg1_epu32(w[$now], w[$one]);
                            let part = _mm_add_epi32(part, _mm_alignr_epi8::<4>(w[$three], w[$two]));
                            w[$now] = _mm_sha256msg2_epu32(part, w[$three]);
                        }
                    }
                };
            }
            for k in &K[..3] {
                steps!(k[0], 0, 1, 2, 3, true);
                steps!(k[1], 1, 2, 3, 0, true);
                steps!(k[2], 2, 3, 0, 1, true);
                steps!(k[3], 3, 0, 1, 2, true);
            }
            steps!(K[3][0], 0, 1, 2, 3, false);
            steps!(K[3][1], 1, 2, 3, 0, false);
            steps!(K[3][2], 2, 3, 0, 1, false);
            steps!(K[3][3], 3, 0, 1, 2, false);
            for n in 0..N {
                abef[n] = _mm_add_epi32(abef[n], before.0[n]);
                cdgh[n] = _mm_add_epi32(cdgh[n], before.1[n]);
            }
        }
        let words = |of: __m128i| {
            let (a, b) = (_mm_extract_epi32::<3>(of), _mm_extract_epi32::<2>(of));
            [a, b, _mm_extract_epi32::<1>(of), _mm_extract_epi32::<0>(of)].map(i32::cast_unsigned)
        };
        for n in 0..N {
            let ([a, b, e, f], [c, d, g, h]) = (words(abef[n]), words(cdgh[n]));
            states[n] = [a, b, c, d, e, f, g, h];
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
    use sha2::{Digest, Sha256};

    use super::hashes;

    /// The library is the oracle.
    #[test]
    fn they_are_the_librarys() {
        let mut random = StdRng::seed_from_u64(5);
        let mut bytes = vec![0; 4000];
        random.fill_bytes(&mut bytes);
        for run in 0..2000 {
            let mut part = |_| {
                // At the bounds of blocks, too.
                let length =
                    if run % 2 == 0 { random.random_range(0..200) } else { random.random_range(0..2000) };
                let from = random.random_range(0..2000);
                &bytes[from..from + length]
            };
            let contents: Vec<&[u8]> = (0..run % 9).map(&mut part).collect();
            let expected: Vec<[u8; 32]> = contents.iter().map(|of| Sha256::digest(of).into()).collect();
            assert_eq!(hashes(&contents), expected, "run {run}");
        }
    }
}
