//! The cipher of the restic format: AES-256 in counter mode with Poly1305-AES, see "Keys, Encryption and MAC" in restic's
//! `doc/design.rst`.
//!
//! It is put together here from the libraries' AES and Poly1305, since the crate that does so gives Poly1305 one block after
//! the other, which takes a third longer than many. Where the processor has wider registers than the libraries use, it is
//! done in them (`wide.rs`).
//!
//! Crash story: pure functions.

#[cfg(target_arch = "x86_64")]
mod wide;

use aes::{
    Aes128, Aes256,
    cipher::{BlockEncrypt, KeyInit, KeyIvInit, StreamCipher},
};
use ctr::Ctr128BE;
use poly1305::{Poly1305, universal_hash::UniversalHash};

/// Bytes of a block of AES, and of Poly1305.
const BLOCK: usize = 16;

/// Fewer bytes are left to the libraries, which need less to begin.
const WIDE: usize = 1024;

/// Encrypts or decrypts, which is the same, where it is. The key is that for encryption, then `k`, then `r` of the one for
/// authentication.
pub fn apply(key: &[u8; 64], nonce: &[u8; BLOCK], bytes: &mut [u8]) {
    let Some(key) = key.first_chunk::<32>() else { return };
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= WIDE && wide::is_there() && wide::apply(key, u128::from_be_bytes(*nonce), bytes) {
        return;
    }
    apply_by_library(key, nonce, bytes);
}

fn apply_by_library(key: &[u8; 32], nonce: &[u8; BLOCK], bytes: &mut [u8]) {
    Ctr128BE::<Aes256>::new(key.into(), nonce.into()).apply_keystream(bytes);
}

/// Poly1305-AES of what is encrypted: with `r`, and the nonce encrypted under `k`. Whoever compares it takes the same time
/// wherever it differs.
#[must_use]
pub fn tag(key: &[u8; 64], nonce: &[u8; BLOCK], encrypted: &[u8]) -> [u8; BLOCK] {
    let mut once = (*nonce).into();
    Aes128::new(key[32..48].into()).encrypt_block(&mut once);
    let mut once_key = [0; 32];
    once_key[..BLOCK].copy_from_slice(&key[48..]);
    once_key[BLOCK..].copy_from_slice(&once);
    #[cfg(target_arch = "x86_64")]
    if encrypted.len() >= WIDE && wide::is_there() {
        return wide::tag(&once_key, encrypted);
    }
    tag_by_library(&once_key, encrypted)
}

fn tag_by_library(key: &[u8; 32], encrypted: &[u8]) -> [u8; BLOCK] {
    let mut mac = Poly1305::new(key.into());
    let (whole, rest) = encrypted.split_at(encrypted.len() / BLOCK * BLOCK);
    mac.update_padded(whole);
    mac.compute_unpadded(rest).into()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

    use super::{BLOCK, WIDE, apply, apply_by_library, tag, tag_by_library};

    const RUNS: usize = 20_000;

    /// Numbers near their bounds are where carries are lost.
    fn some<const N: usize>(random: &mut StdRng) -> [u8; N] {
        some_bytes(random, N).try_into().unwrap()
    }

    fn some_bytes(random: &mut StdRng, length: usize) -> Vec<u8> {
        let mut bytes = vec![if random.random() { 0xff } else { 0 }; length];
        match random.random_range(0..4) {
            0 | 1 => random.fill_bytes(&mut bytes),
            2 if length > 0 => bytes[random.random_range(0..length)] = random.random(),
            _ => {}
        }
        bytes
    }

    /// Every length in turn, and longer ones.
    fn length(random: &mut StdRng, run: usize) -> usize {
        if run.is_multiple_of(2) { run / 2 % (3 * WIDE) } else { random.random_range(0..9000) }
    }

    /// The libraries are the oracle, up to the last numbers that a counter has.
    #[test]
    fn it_is_the_librarys() {
        let mut random = StdRng::seed_from_u64(7);
        for run in 0..RUNS {
            let (key, nonce) = (some::<64>(&mut random), some::<BLOCK>(&mut random));
            let length = length(&mut random, run);
            let plain = some_bytes(&mut random, length);
            let (mut ours, mut theirs) = (plain.clone(), plain);
            apply(&key, &nonce, &mut ours);
            apply_by_library(key.first_chunk().unwrap(), &nonce, &mut theirs);
            assert!(ours == theirs, "run {run}: {length} bytes");
            // What is added at the end is the tag of nothing.
            let once = [&key[48..], &tag(&key, &nonce, &[])].concat();
            let expected = tag_by_library(once.first_chunk().unwrap(), &theirs);
            assert_eq!(tag(&key, &nonce, &ours), expected, "run {run}: {length} bytes");
        }
    }

    /// The same for lengths that are left to the libraries.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn what_is_wide_is_the_librarys_in_every_length() {
        use super::wide;
        if !wide::is_there() {
            // The test above has then compared all that there is.
            return;
        }
        let mut random = StdRng::seed_from_u64(8);
        for run in 0..RUNS {
            let (key, nonce) = (some::<32>(&mut random), some::<BLOCK>(&mut random));
            let length = length(&mut random, run);
            let plain = some_bytes(&mut random, length);
            let expected = tag_by_library(&key, &plain);
            assert_eq!(wide::tag(&key, &plain), expected, "run {run}: {length} bytes");
            let (mut ours, mut theirs) = (plain.clone(), plain);
            apply_by_library(&key, &nonce, &mut theirs);
            let is_done = wide::apply(&key, u128::from_be_bytes(nonce), &mut ours);
            let overflows = u128::from_be_bytes(nonce) as u64 >= u64::MAX - 1000;
            assert!(ours == theirs || !is_done && overflows, "run {run}: {length} bytes");
        }
    }
}
