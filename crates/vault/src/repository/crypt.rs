//! The cryptography of the restic format, for the files that we read and write without rustic_core: key
//! files and locks.
//!
//! AES-256 in counter mode with Poly1305-AES, `nonce (16) | ciphertext | tag (16)`: see "Keys, Encryption and
//! MAC" in restic's `doc/design.rst`, and [`lanes::cipher`].
//!
//! Crash story: plain values, no effects.

use std::io::Read as _;

use lanes::cipher;
use rand::RngCore;
use rustic_core::repofile::MasterKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const NONCE: usize = 16;
const TAG: usize = 16;

/// What could not be decrypted: a wrong key or changed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not decrypt with this key, or its bytes were changed")]
pub(crate) struct Undecryptable;

/// A key for encryption (32 bytes) and authentication (16 and 16 bytes).
#[derive(Clone)]
pub(crate) struct SecretKey(Box<[u8; 64]>);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// The form in which a master key stands encrypted in a key file.
#[derive(Serialize, Deserialize)]
struct Written {
    mac: WrittenMac,
    encrypt: String,
}

#[derive(Serialize, Deserialize)]
struct WrittenMac {
    k: String,
    r: String,
}

impl SecretKey {
    /// A new one from the system's randomness.
    pub(crate) fn random() -> Self {
        let mut bytes = Box::new([0; 64]);
        rand::rng().fill_bytes(&mut bytes[..]);
        Self(bytes)
    }

    /// The key made of these bytes: encryption key, then `k`, then `r` of the authentication key.
    pub(crate) fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(Box::new(bytes))
    }

    /// Encrypts under a random nonce.
    pub(crate) fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, Undecryptable> {
        let mut sealed = Vec::with_capacity(NONCE + plain.len() + TAG);
        self.seal_into(plain, &mut sealed)?;
        Ok(sealed)
    }

    /// Encrypts under a random nonce, to the end of `out`.
    pub(crate) fn seal_into(&self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Undecryptable> {
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        out.extend_from_slice(&nonce);
        let from = out.len();
        out.extend_from_slice(plain);
        cipher::apply(&self.0, &nonce, &mut out[from..]);
        let tag = cipher::tag(&self.0, &nonce, &out[from..]);
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Decrypts and authenticates.
    pub(crate) fn decrypt(&self, sealed: &[u8]) -> Result<Vec<u8>, Undecryptable> {
        let mut sealed = sealed.to_vec();
        Ok(self.decrypt_in_place(&mut sealed)?.to_vec())
    }

    /// Authenticates, and decrypts where it is; the content within it.
    pub(crate) fn decrypt_in_place<'s>(&self, sealed: &'s mut [u8]) -> Result<&'s [u8], Undecryptable> {
        let (nonce, body) = sealed.split_first_chunk_mut::<NONCE>().ok_or(Undecryptable)?;
        let (body, tag) = body.split_last_chunk_mut::<TAG>().ok_or(Undecryptable)?;
        if !bool::from(cipher::tag(&self.0, nonce, body).ct_eq(tag)) {
            return Err(Undecryptable);
        }
        cipher::apply(&self.0, nonce, body);
        Ok(body)
    }

    /// Decrypts an unpacked file (lock, index, snapshot): JSON as it is, or the byte 2 and JSON compressed
    /// with zstd (format 2).
    pub(crate) fn decrypt_file(&self, sealed: &[u8]) -> Result<Vec<u8>, Undecryptable> {
        let mut plain = Vec::new();
        Ok(self.open_file(&mut sealed.to_vec(), &mut plain)?.to_vec())
    }

    /// The same for files that are many and large: it is decrypted where it is, and unpacked into the second buffer if it is
    /// packed.
    pub(crate) fn open_file<'b>(
        &self,
        sealed: &'b mut [u8],
        room: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], Undecryptable> {
        let plain = self.decrypt_in_place(sealed)?;
        let Some((2, packed)) = plain.split_first() else { return Ok(plain) };
        unpack_into(packed, room).ok_or(Undecryptable)?;
        Ok(room)
    }

    /// The JSON that stands encrypted in a key file.
    pub(crate) fn to_json(&self) -> String {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let [encrypt, k, r] = [&self.0[..32], &self.0[32..48], &self.0[48..]].map(|b| STANDARD.encode(b));
        serde_json::json!({ "mac": { "k": k, "r": r }, "encrypt": encrypt }).to_string()
    }

    /// The key that [`Self::to_json`] wrote, or restic.
    pub(crate) fn from_json(json: &[u8]) -> Option<Self> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let written: Written = serde_json::from_slice(json).ok()?;
        let parts = [&written.encrypt, &written.mac.k, &written.mac.r].map(|text| STANDARD.decode(text));
        let bytes = parts.into_iter().collect::<Result<Vec<_>, _>>().ok()?.concat();
        Some(Self(Box::new(bytes.try_into().ok()?)))
    }

    /// The same key as rustic_core wants it.
    pub(crate) fn master(&self) -> Option<MasterKey> {
        serde_json::from_str(&self.to_json()).ok()
    }
}

/// Unpacks in the place of what was there, if it is not out of all proportion: JSON full of hashes is never packed so small.
fn unpack_into(packed: &[u8], room: &mut Vec<u8>) -> Option<()> {
    const SMALL: u64 = 16 << 20;
    const RATIO: u64 = 256;
    let most = SMALL.max(packed.len() as u64 * RATIO);
    room.clear();
    if let Ok(Some(size)) = zstd::zstd_safe::get_frame_content_size(packed)
        && size <= most
    {
        room.reserve(size as usize);
        if zstd::bulk::Decompressor::new().ok()?.decompress_to_buffer(packed, room).is_ok() {
            return (room.len() as u64 <= most).then_some(());
        }
        room.clear();
    }
    zstd::stream::read::Decoder::new(packed).ok()?.take(most + 1).read_to_end(room).ok()?;
    (room.len() as u64 <= most).then_some(())
}

/// The name of a file with this content: its SHA-256 in hexadecimal digits.
pub(crate) fn name_of(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

#[cfg(test)]
mod tests {
    use super::{SecretKey, Undecryptable};

    #[test]
    fn what_is_encrypted_comes_back_and_changed_bytes_do_not() {
        let key = SecretKey::random();
        let mut sealed = key.encrypt(b"{\"a\":1}").unwrap();
        assert_eq!(key.decrypt_file(&sealed).unwrap(), b"{\"a\":1}");
        let mut more = b"before".to_vec();
        key.seal_into(b"plain", &mut more).unwrap();
        assert_eq!(key.decrypt(&more[6..]).unwrap(), b"plain");
        assert_eq!(SecretKey::random().decrypt(&sealed), Err(Undecryptable));
        assert_eq!(key.decrypt_in_place(&mut sealed.clone()), Ok(&b"{\"a\":1}"[..]));
        sealed[20] ^= 1;
        assert_eq!(key.decrypt(&sealed), Err(Undecryptable));
        assert_eq!(key.decrypt_in_place(&mut sealed.clone()), Err(Undecryptable));
        assert_eq!(key.decrypt_in_place(&mut sealed[..31]), Err(Undecryptable));
        assert_eq!(key.decrypt(&sealed[..9]), Err(Undecryptable));
    }

    /// The crate that rustic has for it is the oracle.
    #[test]
    fn it_is_what_rustic_takes() {
        use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, aead::Aead};
        let key = SecretKey::random();
        let library = Aes256CtrPoly1305Aes::new((&*key.0).into());
        for length in (0..200).chain([4096, 70_001]) {
            let plain: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
            let sealed = key.encrypt(&plain).unwrap();
            assert_eq!(library.decrypt(sealed[..16].into(), &sealed[16..]).unwrap(), plain);
            assert_eq!(key.decrypt(&sealed).unwrap(), plain);
        }
    }

    #[test]
    fn compressed_files_are_unpacked() {
        let key = SecretKey::random();
        let packed = [vec![2], zstd::stream::encode_all(&b"{}"[..], 0).unwrap()].concat();
        assert_eq!(key.decrypt_file(&key.encrypt(&packed).unwrap()).unwrap(), b"{}");
    }

    #[test]
    fn a_master_key_survives_its_json() {
        let key = SecretKey::random();
        let again = SecretKey::from_json(key.to_json().as_bytes()).unwrap();
        assert_eq!(again.0, key.0);
        assert!(SecretKey::from_json(b"{\"mac\":{\"k\":\"\",\"r\":\"\"},\"encrypt\":\"\"}").is_none());
        assert!(key.master().is_some());
    }
}
