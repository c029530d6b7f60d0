//! The cipher of the restic format: AES-256 in counter mode with Poly1305-AES, see "Keys, Encryption and MAC" in restic's
//! `doc/design.rst`.
//!
//! It is put together here from the libraries' AES and Poly1305, since the crate that does so gives Poly1305 one block after
//! the other, which takes a third longer than many.
//!
//! Crash story: pure functions.

use aes::{
    Aes128, Aes256,
    cipher::{BlockEncrypt, KeyInit, KeyIvInit, StreamCipher},
};
use ctr::Ctr128BE;
use poly1305::{Poly1305, universal_hash::UniversalHash};

/// Bytes of a block of AES, and of Poly1305.
const BLOCK: usize = 16;

/// Encrypts or decrypts, which is the same, where it is. The key is that for encryption, then `k`, then `r` of the one for
/// authentication.
pub fn apply(key: &[u8; 64], nonce: &[u8; BLOCK], bytes: &mut [u8]) {
    Ctr128BE::<Aes256>::new(key[..32].into(), nonce.into()).apply_keystream(bytes);
}

/// Poly1305-AES of what is encrypted: with `r`, and the nonce encrypted under `k`. Whoever compares it takes the same time
/// wherever it differs.
#[must_use]
pub fn tag(key: &[u8; 64], nonce: &[u8; BLOCK], encrypted: &[u8]) -> [u8; BLOCK] {
    let mut once_key = poly1305::Key::default();
    once_key[..BLOCK].copy_from_slice(&key[48..]);
    let mut once = (*nonce).into();
    Aes128::new(key[32..48].into()).encrypt_block(&mut once);
    once_key[BLOCK..].copy_from_slice(&once);
    let mut mac = Poly1305::new(&once_key);
    let (whole, rest) = encrypted.split_at(encrypted.len() / BLOCK * BLOCK);
    mac.update_padded(whole);
    mac.compute_unpadded(rest).into()
}
