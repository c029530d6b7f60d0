//! Key files: the master key of a repository, encrypted under a password.
//!
//! Form: "Keys, Encryption and MAC" in restic's `doc/design.rst`; our choice of parameters is in
//! `docs/format/password.md`. rustic_core would always take scrypt with N = 2^17, which costs 0.3 s at every
//! opening; a password of 175 random bits needs no stretching, so its key files take N = 2^10 (restic opens
//! them).
//!
//! Crash story: a key file is written whole and opened again before an old one is removed, so there is
//! always at least one that opens.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use rand::RngCore;
use rustic_core::{FileType, Id};
use serde::{Deserialize, Serialize};

use super::{
    backend::Backend,
    crypt::{SecretKey, name_of},
    error::{RepositoryError, StorageError},
    password::Password,
};

/// How expensive it is to try a password: the parameters of scrypt (RFC 7914).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    log_n: u8,
    r: u32,
    p: u32,
}

impl Cost {
    const NONE: Self = Self { log_n: 10, r: 8, p: 1 };
    const CHEAP: Self = Self { log_n: 14, r: 8, p: 1 };
    const DEAR: Self = Self { log_n: 17, r: 8, p: 1 };

    /// What this password needs in a key file.
    pub(crate) fn of(password: &Password) -> Self {
        if password.is_machine_made() { Self::NONE } else { Self::DEAR }
    }

    /// What its fingerprint is made with, in notes that name no costs.
    pub(crate) fn of_fingerprint(password: &Password) -> Self {
        if password.is_machine_made() { Self::CHEAP } else { Self::DEAR }
    }

    /// The parameters that stand in a key file, if they are valid and affordable (at most 1 GiB of memory).
    fn read(n: u64, r: u32, p: u32) -> Option<Self> {
        let log_n = u8::try_from(n.checked_ilog2()?).ok()?;
        let memory = n.checked_mul(u64::from(r))?.checked_mul(128)?;
        (n.is_power_of_two() && memory <= 1 << 30 && p <= 64).then_some(Self { log_n, r, p })
    }

    /// Stretches a password into key bytes.
    pub(crate) fn stretch(self, password: &[u8], salt: &[u8], out: &mut [u8]) -> Result<(), BadCost> {
        let params = scrypt::Params::new(self.log_n, self.r, self.p, 64).map_err(|_| BadCost)?;
        scrypt::scrypt(password, salt, &params, out).map_err(|_| BadCost)
    }
}

/// Parameters that scrypt refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key file's scrypt parameters are not valid")]
pub(crate) struct BadCost;

/// A key file as JSON.
#[derive(Serialize, Deserialize)]
struct KeyFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    kdf: String,
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
    salt: String,
    data: String,
}

/// One key of a repository, as `key` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its id: 64 hexadecimal digits.
    pub id: String,
    /// When it was made, if it says so.
    pub created: Option<Timestamp>,
    /// Who made it, as `user@host`, as far as it says so.
    pub by: String,
    /// Whether it is the one that this process opened the repository with.
    pub current: bool,
}

/// A new key file for this master key: its content.
pub(crate) fn seal(
    master: &SecretKey,
    password: &Password,
    now: Timestamp,
    who: (&str, &str),
) -> Result<Vec<u8>, BadCost> {
    let cost = Cost::of(password);
    let mut salt = [0; 64];
    rand::rng().fill_bytes(&mut salt);
    let data = stretched(cost, password, &salt)?.encrypt(master.to_json().as_bytes()).map_err(|_| BadCost)?;
    let file = KeyFile {
        created: Some(now),
        username: Some(who.0.to_owned()),
        hostname: Some(who.1.to_owned()),
        kdf: "scrypt".into(),
        n: 1 << cost.log_n,
        r: cost.r,
        p: cost.p,
        salt: STANDARD.encode(salt),
        data: STANDARD.encode(data),
    };
    serde_json::to_vec(&file).map_err(|_| BadCost)
}

/// The master key in this key file, if the password opens it.
fn unseal(file: &KeyFile, password: &Password) -> Option<SecretKey> {
    let cost = Cost::read(file.n, file.r, file.p).filter(|_| file.kdf == "scrypt")?;
    let (salt, data) = (STANDARD.decode(&file.salt).ok()?, STANDARD.decode(&file.data).ok()?);
    let json = stretched(cost, password, &salt).ok()?.decrypt(&data).ok()?;
    SecretKey::from_json(&json)
}

fn stretched(cost: Cost, password: &Password, salt: &[u8]) -> Result<SecretKey, BadCost> {
    let mut bytes = [0; 64];
    cost.stretch(password.reveal().as_bytes(), salt, &mut bytes)?;
    Ok(SecretKey::from_bytes(bytes))
}

/// Finds the key file that the password opens, cheap ones first.
pub(crate) fn open(backend: &Backend, password: &Password) -> Result<(Id, SecretKey), RepositoryError> {
    let (mut files, damaged) = read_all(backend)?;
    if let Some(known) = files.iter().find_map(|(id, _)| Some((*id, password.has_opened(id)?))) {
        return Ok(known);
    }
    files.sort_by_key(|(_, file)| file.n);
    if let Some(found) = files.iter().find_map(|(id, file)| Some((*id, unseal(file, password)?))) {
        password.note_opened(found.0, found.1.clone());
        return Ok(found);
    }
    match damaged.into_iter().next() {
        Some(error) => Err(error.into()),
        None if files.is_empty() => {
            let what = "it holds no key, and without one nothing can be decrypted".into();
            Err(StorageError::Damaged { path: backend.dir().join(FileType::Key.dirname()), what }.into())
        }
        None => Err(RepositoryError::WrongPassword { dir: backend.dir().into() }),
    }
}

/// All keys, oldest first.
pub(crate) fn list(backend: &Backend, current: &Id) -> Result<Vec<KeyInfo>, RepositoryError> {
    let (files, damaged) = read_all(backend)?;
    if let Some(error) = damaged.into_iter().next() {
        return Err(error.into());
    }
    let mut keys: Vec<_> = files
        .into_iter()
        .map(|(id, file)| KeyInfo {
            id: id.to_hex().to_string(),
            created: file.created,
            by: format!("{}@{}", file.username.unwrap_or_default(), file.hostname.unwrap_or_default()),
            current: id == *current,
        })
        .collect();
    keys.sort_by(|a, b| a.created.cmp(&b.created).then(a.id.cmp(&b.id)));
    Ok(keys)
}

/// Writes a key file and opens it again before it is relied on.
pub(crate) fn add(
    backend: &Backend,
    master: &SecretKey,
    password: &Password,
    now: Timestamp,
    who: (&str, &str),
) -> Result<Id, RepositoryError> {
    let dir = backend.dir().join("keys");
    let damaged = |what: String| StorageError::Damaged { path: dir.clone(), what };
    let content = seal(master, password, now, who).map_err(|e| damaged(e.to_string()))?;
    let path = dir.join(name_of(&content));
    backend.disk().put(&path, &content).map_err(|source| StorageError::write(&path, source))?;
    let id: Id = name_of(&content).parse().map_err(|_| damaged("a hash that is no id".into()))?;
    let file = read_one(backend, &id)?;
    match unseal(&file, password) {
        Some(again) if again.to_json() == master.to_json() => Ok(id),
        _ => Err(damaged(format!("key {} was written but does not open", &id.to_hex()[..8])).into()),
    }
}

type Readable = (Vec<(Id, KeyFile)>, Vec<StorageError>);

fn read_all(backend: &Backend) -> Result<Readable, StorageError> {
    let (mut files, mut damaged) = (Vec::new(), Vec::new());
    for (id, _) in backend.files(FileType::Key)? {
        match read_one(backend, &id) {
            Ok(file) => files.push((id, file)),
            Err(error) => damaged.push(error),
        }
    }
    Ok((files, damaged))
}

fn read_one(backend: &Backend, id: &Id) -> Result<KeyFile, StorageError> {
    let content = backend.read(FileType::Key, id)?;
    serde_json::from_slice(&content)
        .map_err(|e| StorageError::Damaged { path: backend.path(FileType::Key, id), what: e.to_string() })
}
