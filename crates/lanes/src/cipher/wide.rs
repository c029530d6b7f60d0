//! The cipher in the widest registers of today's processors: counter mode thirty-two blocks at a time, Poly1305 eight.
//!
//! The libraries use registers of half and a quarter of this width, which takes three times as long. AES: FIPS 197, the
//! key by 5.2; counter mode: NIST SP 800-38A, 6.5; Poly1305: RFC 8439, 2.5.1. The instructions: `VAESENC`, `AESKEYGENASSIST`,
//! `VPMADD52LUQ`, `VPMADD52HUQ` in Intel's and AMD's manuals.
//!
//! Nothing here depends on secrets in what it takes of time or memory: no branch, no table.
//!
//! Crash story: pure functions.

use std::{
    arch::x86_64::{
        __m128i, __m512i, _mm_aeskeygenassist_si128, _mm_set_epi64x, _mm_shuffle_epi32, _mm_slli_si128,
        _mm_xor_si128, _mm512_add_epi64, _mm512_aesenc_epi128, _mm512_aesenclast_epi128, _mm512_and_si512,
        _mm512_broadcast_i32x4, _mm512_madd52hi_epu64, _mm512_madd52lo_epu64, _mm512_or_si512,
        _mm512_reduce_add_epi64, _mm512_set_epi64, _mm512_set1_epi64, _mm512_setzero_si512,
        _mm512_shuffle_epi8, _mm512_slli_epi64, _mm512_srli_epi64, _mm512_unpackhi_epi64,
        _mm512_unpacklo_epi64, _mm512_xor_si512,
    },
    array,
    mem::transmute,
};

use super::BLOCK;

/// A register's bytes.
const WIDTH: usize = 64;

/// So many registers are encrypted side by side: fewer wait for each other.
const ABREAST: usize = 8;

/// Whether the processor has the instructions.
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512ifma")
}

/// Encrypts or decrypts in counter mode; only where [`is_there`]. Whether it was done: not if the lower half of the counter
/// would overflow, for which these bytes would have to be nearly as many as there are numbers.
pub(super) fn apply(key: &[u8; 32], counter: u128, bytes: &mut [u8]) -> bool {
    let blocks = bytes.len().next_multiple_of(ABREAST * WIDTH) / BLOCK;
    if (counter as u64).checked_add(blocks as u64).is_none() {
        return false;
    }
    // SAFETY: it is only called where `is_there` has found the instructions.
    unsafe { count(key, counter, bytes) };
    true
}

#[target_feature(enable = "aes,vaes,avx512f,avx512bw")]
fn count(key: &[u8; 32], counter: u128, bytes: &mut [u8]) {
    let keys = expand(key).map(|key| _mm512_broadcast_i32x4(key));
    let swap = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f));
    let (high, low) = ((counter >> 64) as i64, counter as i64);
    let four = _mm512_set_epi64(0, 4, 0, 4, 0, 4, 0, 4);
    let begin = _mm512_set_epi64(high, low, high, low, high, low, high, low);
    let mut counters = _mm512_add_epi64(begin, _mm512_set_epi64(0, 3, 0, 2, 0, 1, 0, 0));
    let mut stream = || {
        let mut blocks: [__m512i; ABREAST] = array::from_fn(|_| {
            let block = _mm512_shuffle_epi8(counters, swap);
            counters = _mm512_add_epi64(counters, four);
            _mm512_xor_si512(block, keys[0])
        });
        for key in &keys[1..14] {
            blocks = blocks.map(|block| _mm512_aesenc_epi128(block, *key));
        }
        blocks.map(|block| _mm512_aesenclast_epi128(block, keys[14]))
    };
    let (whole, rest) = bytes.as_chunks_mut::<{ ABREAST * WIDTH }>();
    for part in whole {
        for (bytes, block) in part.as_chunks_mut::<WIDTH>().0.iter_mut().zip(stream()) {
            *bytes = stored(_mm512_xor_si512(loaded(bytes), block));
        }
    }
    if !rest.is_empty() {
        let stream = stream().map(stored);
        rest.iter_mut().zip(stream.as_flattened()).for_each(|(byte, key)| *byte ^= key);
    }
}

fn loaded(bytes: &[u8; WIDTH]) -> __m512i {
    // SAFETY: a register is as large, and any bits are one.
    unsafe { transmute(*bytes) }
}

fn stored(register: __m512i) -> [u8; WIDTH] {
    // SAFETY: as above.
    unsafe { transmute(register) }
}

/// The keys of the rounds.
#[target_feature(enable = "aes,avx512f")]
fn expand(key: &[u8; 32]) -> [__m128i; 15] {
    let half = |from: usize| {
        let words = key[from..from + BLOCK].as_chunks::<8>().0;
        _mm_set_epi64x(i64::from_le_bytes(words[1]), i64::from_le_bytes(words[0]))
    };
    let mut keys = [half(0); 15];
    keys[1] = half(BLOCK);
    // Each word is the sum of those before it.
    let sums = |of: __m128i| {
        let of = _mm_xor_si128(of, _mm_slli_si128::<4>(of));
        _mm_xor_si128(of, _mm_slli_si128::<8>(of))
    };
    macro_rules! round {
        ($at:literal, $constant:literal, $word:literal) => {
            let mixed = _mm_shuffle_epi32::<$word>(_mm_aeskeygenassist_si128::<$constant>(keys[$at - 1]));
            keys[$at] = _mm_xor_si128(sums(keys[$at - 2]), mixed);
        };
    }
    round!(2, 1, 0xff);
    round!(3, 0, 0xaa);
    round!(4, 2, 0xff);
    round!(5, 0, 0xaa);
    round!(6, 4, 0xff);
    round!(7, 0, 0xaa);
    round!(8, 8, 0xff);
    round!(9, 0, 0xaa);
    round!(10, 16, 0xff);
    round!(11, 0, 0xaa);
    round!(12, 32, 0xff);
    round!(13, 0, 0xaa);
    round!(14, 64, 0xff);
    keys
}

/// Numbers modulo 2¹³⁰ − 5 in digits of 44, 44 and 42 bits, which may be a little larger meanwhile.
type Number = [u64; 3];

const LOW: u64 = (1 << 44) - 1;
const HIGH: u64 = (1 << 42) - 1;

/// The bit behind a whole block, in the highest digit.
const BEHIND: u64 = 1 << 40;

/// So many blocks are taken at a time.
const LANES: usize = 8;

/// Poly1305 under a key for one message, `r` and what is added at the end; only where [`is_there`].
pub(super) fn tag(key: &[u8; 32], message: &[u8]) -> [u8; BLOCK] {
    let halves = key.as_chunks::<BLOCK>().0;
    let r = digits(u128::from_le_bytes(halves[0]) & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff);
    let (whole, rest) = message.as_chunks::<{ LANES * BLOCK }>();
    // SAFETY: it is only called where `is_there` has found the instructions.
    let mut sum = if whole.is_empty() { [0; 3] } else { unsafe { sum(whole, r) } };
    let (blocks, last) = rest.as_chunks::<BLOCK>();
    let mut take = |block: [u8; BLOCK], behind: u64| {
        let [a, b, c] = digits(u128::from_le_bytes(block));
        sum = multiply([sum[0] + a, sum[1] + b, sum[2] + (c | behind)], r);
    };
    blocks.iter().for_each(|block| take(*block, BEHIND));
    if !last.is_empty() {
        let mut block = [0; BLOCK];
        block[..last.len()].copy_from_slice(last);
        block[last.len()] = 1;
        take(block, 0);
    }
    reduced(sum).wrapping_add(u128::from_le_bytes(halves[1])).to_le_bytes()
}

fn digits(number: u128) -> Number {
    [number as u64 & LOW, (number >> 44) as u64 & LOW, (number >> 88) as u64]
}

fn multiply([a, b, c]: Number, r: Number) -> Number {
    let product = |x: u64, y: u64| u128::from(x) * u128::from(y);
    // 2¹³² is 20.
    let (s1, s2) = (r[1] * 20, r[2] * 20);
    let low = product(a, r[0]) + product(b, s2) + product(c, s1);
    let mid = product(a, r[1]) + product(b, r[0]) + product(c, s2) + (low >> 44);
    let high = product(a, r[2]) + product(b, r[1]) + product(c, r[0]) + (mid >> 44);
    carried([low as u64 & LOW, mid as u64 & LOW, high as u64 & HIGH], (high >> 42) as u64)
}

/// Adds what is more than 2¹³⁰, which is 5.
fn carried([a, b, c]: Number, above: u64) -> Number {
    let a = a + above * 5;
    [a & LOW, b + (a >> 44), c]
}

/// The one number below 2¹³⁰ − 5, but for its two highest bits.
fn reduced(sum: Number) -> u128 {
    let mut sum = sum;
    for _ in 0..2 {
        let b = sum[1] + (sum[0] >> 44);
        let c = sum[2] + (b >> 44);
        sum = carried([sum[0] & LOW, b & LOW, c & HIGH], c >> 42);
    }
    let number =
        |[a, b, c]: Number| u128::from(a).wrapping_add(u128::from(b) << 44).wrapping_add(u128::from(c) << 88);
    // If 5 more reach 2¹³⁰, then those are it.
    let a = sum[0] + 5;
    let b = sum[1] + (a >> 44);
    let c = sum[2] + (b >> 44);
    let is_more = u128::from(c >> 42).wrapping_neg();
    let less = number([a & LOW, b & LOW, c & HIGH]);
    (number(sum) & !is_more) | (less & is_more)
}

/// A number in each lane.
type Numbers = [__m512i; 3];

/// The sum over whole blocks, of which every eighth goes into the same lane, each times the power of `r` for its place.
#[target_feature(enable = "avx512f,avx512ifma")]
fn sum(message: &[[u8; LANES * BLOCK]], r: Number) -> Number {
    let mut powers = [r; LANES + 1];
    for power in 2..powers.len() {
        powers[power] = multiply(powers[power - 1], r);
    }
    let every = powers[LANES].map(|digit| _mm512_set1_epi64(digit as i64));
    let mut sums = [_mm512_setzero_si512(); 3];
    for (number, blocks) in message.iter().enumerate() {
        if number > 0 {
            sums = multiply_each(sums, every);
        }
        let blocks = split(blocks);
        sums = array::from_fn(|digit| _mm512_add_epi64(sums[digit], blocks[digit]));
    }
    // As `split` has laid them: of the last eight the first is eight places before the end.
    let of_lanes: Numbers = array::from_fn(|digit| {
        let power = |power: usize| powers[power][digit] as i64;
        let (a, b, c, d) = (power(8), power(4), power(7), power(3));
        _mm512_set_epi64(power(1), power(5), power(2), power(6), d, c, b, a)
    });
    let [a, b, c] = multiply_each(sums, of_lanes).map(|of| _mm512_reduce_add_epi64(of) as u64);
    let b = b + (a >> 44);
    let c = c + (b >> 44);
    carried([a & LOW, b & LOW, c & HIGH], c >> 42)
}

/// The digits of eight blocks, in the order 0, 4, 1, 5, 2, 6, 3, 7.
#[target_feature(enable = "avx512f")]
fn split(blocks: &[u8; LANES * BLOCK]) -> Numbers {
    let halves = blocks.as_chunks::<WIDTH>().0;
    let (first, second) = (loaded(&halves[0]), loaded(&halves[1]));
    let (low, high) = (_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
    let digit = _mm512_set1_epi64(LOW as i64);
    let middle = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
    let behind = _mm512_set1_epi64(BEHIND as i64);
    [
        _mm512_and_si512(low, digit),
        _mm512_and_si512(middle, digit),
        _mm512_or_si512(_mm512_srli_epi64::<24>(high), behind),
    ]
}

/// As [`multiply`], in each lane. Digits of at most 47 bits become such as are at most a little larger than their 44 and 42.
#[target_feature(enable = "avx512f,avx512ifma")]
fn multiply_each([a, b, c]: Numbers, r: Numbers) -> Numbers {
    let five = |of| _mm512_add_epi64(of, _mm512_slli_epi64::<2>(of));
    let twenty = |of| _mm512_slli_epi64::<2>(five(of));
    let (s1, s2) = (twenty(r[1]), twenty(r[2]));
    // Products have a lower part of 52 bits, and a higher one.
    let sum = |factors: [(__m512i, __m512i); 3]| {
        factors.into_iter().fold((_mm512_setzero_si512(), _mm512_setzero_si512()), |(low, high), (x, y)| {
            (_mm512_madd52lo_epu64(low, x, y), _mm512_madd52hi_epu64(high, x, y))
        })
    };
    let (low, low_above) = sum([(a, r[0]), (b, s2), (c, s1)]);
    let (mid, mid_above) = sum([(a, r[1]), (b, r[0]), (c, s2)]);
    let (high, high_above) = sum([(a, r[2]), (b, r[1]), (c, r[0])]);
    let digit = _mm512_set1_epi64(LOW as i64);
    let above = |low, high| _mm512_add_epi64(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<8>(high));
    let mid = _mm512_add_epi64(mid, above(low, low_above));
    let high = _mm512_add_epi64(high, above(mid, mid_above));
    let over = _mm512_add_epi64(_mm512_srli_epi64::<42>(high), _mm512_slli_epi64::<10>(high_above));
    let low = _mm512_add_epi64(_mm512_and_si512(low, digit), five(over));
    [
        _mm512_and_si512(low, digit),
        _mm512_add_epi64(_mm512_and_si512(mid, digit), _mm512_srli_epi64::<44>(low)),
        _mm512_and_si512(high, _mm512_set1_epi64(HIGH as i64)),
    ]
}
