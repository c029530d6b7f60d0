//! The password of a repository, and the note that a person has put it somewhere safe.
//!
//! Forms: `docs/format/password.md`. Crash story: both files are written whole under a temporary name and
//! renamed; before the rename nothing is there, after it everything. Two writers at once: the password file
//! is only ever created, never replaced by [`Password::write_new`], so one of them is told that it exists.

use std::{
    fmt, fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use model::pathtext;
use os::durable;
use rand::RngCore;
use rustic_core::Id;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{crypt::SecretKey, keys};

/// Crockford's base 32: no I, L, O, U, so that nothing typed from paper is ambiguous.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const GROUP: usize = 5;
const RANDOM_DIGITS: usize = 35;
const ALL_DIGITS: usize = 40;

/// A repository's password. Never shown by `Debug`. It and its clones keep in memory which keys it has opened, so that
/// it is stretched once for each.
#[derive(Clone)]
pub struct Password {
    text: String,
    opened: Arc<Mutex<Vec<(Id, SecretKey)>>>,
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Password {}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// Why a password cannot be used, read or written.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The file cannot be read.
    #[error("the password file {} cannot be read", pathtext::show(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("{} cannot be written", pathtext::show(path))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read the file.
    #[error(
        "the password file {} can be read by others (mode {mode:04o}); run `chmod 600` on it",
        pathtext::show(path)
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to another user, who could replace it.
    #[error(
        "the password file {} belongs to user {owner}; it must belong to root or to the user who runs this",
        pathtext::show(path)
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// No password in it.
    #[error("the password is empty or has more than one line")]
    Shape,
    /// It looks like one of ours, but its check digits are wrong.
    #[error("the key has a typing error: its check digits do not fit")]
    Mistyped,
}

impl Password {
    fn of(text: String) -> Self {
        Self { text, opened: Arc::default() }
    }

    /// The master key in the key file of this id, if this password has opened it before.
    pub(crate) fn has_opened(&self, file: &Id) -> Option<SecretKey> {
        self.opened().iter().find(|(id, _)| id == file).map(|(_, key)| key.clone())
    }

    /// Takes note of what a key file holds; its id is the hash of its content.
    pub(crate) fn note_opened(&self, file: Id, key: SecretKey) {
        self.opened().push((file, key));
    }

    fn opened(&self) -> MutexGuard<'_, Vec<(Id, SecretKey)>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new one of 175 random bits: 8 groups of 5 digits, the last group being check digits.
    #[must_use]
    pub fn generate() -> Self {
        let mut random = [0; RANDOM_DIGITS];
        rand::rng().fill_bytes(&mut random);
        let mut digits: Vec<u8> = random.iter().map(|b| ALPHABET[usize::from(b % 32)]).collect();
        digits.extend(check_digits(&digits));
        Self::of(grouped(&digits))
    }

    /// Takes what a person chose or typed. A key of ours may be typed in small letters, without dashes, and
    /// with O for 0 or I and L for 1.
    ///
    /// # Errors
    /// [`PasswordError::Shape`] if it is empty or has several lines, [`PasswordError::Mistyped`] if it has
    /// the form of a key of ours and wrong check digits.
    pub fn new(text: &str) -> Result<Self, PasswordError> {
        let text = text.trim();
        if text.is_empty() || text.contains(['\n', '\r', '\0']) {
            return Err(PasswordError::Shape);
        }
        match digits_of(text) {
            Some(digits) if is_checked(&digits) => Ok(Self::of(grouped(&digits))),
            Some(_) if has_groups(text) => Err(PasswordError::Mistyped),
            _ => Ok(Self::of(text.to_owned())),
        }
    }

    /// Reads a password file: one line, readable by its owner only.
    ///
    /// # Errors
    /// If it cannot be read, others can read it, it belongs to a stranger, or holds no single line.
    pub fn read(path: &Path) -> Result<Self, PasswordError> {
        let failed = |source| PasswordError::Read { path: path.into(), source };
        let file = fs::File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let mode = meta.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(PasswordError::Exposed { path: path.into(), mode });
        }
        let owner = meta.uid();
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(PasswordError::Foreign { path: path.into(), owner });
        }
        Self::new(&io::read_to_string(file).map_err(failed)?)
    }

    /// Creates a password file that only its owner can read (0600).
    ///
    /// # Errors
    /// If it exists already or cannot be written.
    pub fn write_new(&self, path: &Path) -> Result<(), PasswordError> {
        durable::write_new(path, format!("{}\n", self.text).as_bytes(), 0o600)
            .map_err(|source| PasswordError::Write { path: path.into(), source })
    }

    /// Puts this password into a password file in place of another.
    ///
    /// # Errors
    /// If it cannot be written; the old one stands then.
    pub fn replace(&self, path: &Path) -> Result<(), PasswordError> {
        durable::replace(path, format!("{}\n", self.text).as_bytes(), 0o600)
            .map_err(|source| PasswordError::Write { path: path.into(), source })
    }

    /// The text: for the recovery sheet, for `key show`, and nothing else.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Whether [`Self::generate`] made it, so that guessing it is hopeless however fast it can be tried.
    #[must_use]
    pub fn is_machine_made(&self) -> bool {
        digits_of(&self.text).is_some_and(|digits| is_checked(&digits))
    }
}

fn is_checked(digits: &[u8]) -> bool {
    let (random, check) = digits.split_at(RANDOM_DIGITS);
    check == check_digits(random)
}

/// Whether the text stands in groups as our keys do; 40 hexadecimal digits in a row are somebody's own.
fn has_groups(text: &str) -> bool {
    text.split([' ', '-']).filter(|group| group.len() == GROUP).count() == ALL_DIGITS / GROUP
}

/// The 40 digits of a key of ours, if the text has the form of one.
fn digits_of(text: &str) -> Option<Vec<u8>> {
    let mut digits = Vec::with_capacity(ALL_DIGITS);
    for byte in text.bytes().filter(|b| !b" -".contains(b)) {
        let digit = match byte.to_ascii_uppercase() {
            b'O' => b'0',
            b'I' | b'L' => b'1',
            other => other,
        };
        ALPHABET.contains(&digit).then(|| digits.push(digit))?;
    }
    (digits.len() == ALL_DIGITS).then_some(digits)
}

fn check_digits(digits: &[u8]) -> Vec<u8> {
    let hash = Sha256::digest(digits);
    hash[..ALL_DIGITS - RANDOM_DIGITS].iter().map(|b| ALPHABET[usize::from(b % 32)]).collect()
}

fn grouped(digits: &[u8]) -> String {
    let groups: Vec<_> = digits.chunks(GROUP).map(String::from_utf8_lossy).collect();
    groups.join("-")
}

/// The note that a person has confirmed that this password is kept elsewhere too. It holds no secret: a
/// password is compared through scrypt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// Format version, 1.
    pub version: u32,
    /// When it was confirmed.
    pub confirmed_at: Timestamp,
    salt: String,
    fingerprint: String,
}

impl Confirmation {
    /// Where the note for a password file stands: beside it, with `.confirmed` appended.
    #[must_use]
    pub fn path_for(password_file: &Path) -> PathBuf {
        let mut name = password_file.as_os_str().to_owned();
        name.push(".confirmed");
        PathBuf::from(name)
    }

    /// Writes the note, in place of an older one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(path: &Path, password: &Password, now: Timestamp) -> Result<(), PasswordError> {
        let failed = |source| PasswordError::Write { path: path.into(), source };
        let mut salt = [0; 16];
        rand::rng().fill_bytes(&mut salt);
        let note = Self {
            version: 1,
            confirmed_at: now,
            salt: hex::encode(salt),
            fingerprint: fingerprint(password, &salt).ok_or_else(|| failed(io::ErrorKind::Other.into()))?,
        };
        let text = serde_json::to_string(&note).map_err(|e| failed(e.into()))? + "\n";
        durable::replace(path, text.as_bytes(), 0o600).map_err(failed)
    }

    /// When this very password was confirmed; nothing if it never was, or the note is of another password.
    ///
    /// # Errors
    /// If a note is there and cannot be read.
    pub fn read(path: &Path, password: &Password) -> Result<Option<Timestamp>, PasswordError> {
        let failed = |source| PasswordError::Read { path: path.into(), source };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let note: Self = serde_json::from_slice(&text).map_err(|e| failed(e.into()))?;
        let salt =
            hex::decode(&note.salt).map_err(|e| failed(io::Error::new(io::ErrorKind::InvalidData, e)))?;
        let same = fingerprint(password, &salt).is_some_and(|f| f == note.fingerprint);
        Ok(same.then_some(note.confirmed_at))
    }
}

fn fingerprint(password: &Password, salt: &[u8]) -> Option<String> {
    let mut bytes = [0; 32];
    let cost = keys::Cost::of_fingerprint(password);
    cost.stretch(password.reveal().as_bytes(), salt, &mut bytes).ok()?;
    Some(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::{Confirmation, Password, PasswordError};

    #[test]
    fn a_generated_key_survives_the_paper() {
        let key = Password::generate();
        assert_eq!(key.reveal().len(), 47);
        assert!(key.is_machine_made());
        let typed = key.reveal().to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
        assert_eq!(Password::new(&typed).unwrap(), key);
        let mut wrong = key.reveal().to_owned();
        let other = if wrong.starts_with('7') { "8" } else { "7" };
        wrong.replace_range(0..1, other);
        assert!(matches!(Password::new(&wrong), Err(PasswordError::Mistyped)));
        assert!(!format!("{key:?}").contains(key.reveal()));
    }

    #[test]
    fn a_persons_password_stays_as_it_is() {
        let password = Password::new(" correct horse\n").unwrap();
        assert_eq!(password.reveal(), "correct horse");
        assert!(!password.is_machine_made());
        let hex = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(Password::new(hex).unwrap().reveal(), hex);
        assert!(matches!(Password::new("a\nb"), Err(PasswordError::Shape)));
        assert!(matches!(Password::new("  "), Err(PasswordError::Shape)));
    }

    #[test]
    fn a_password_file_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let key = Password::generate();
        key.write_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Password::read(&path).unwrap(), key);
        assert!(matches!(Password::generate().write_new(&path), Err(PasswordError::Write { .. })));
        assert_eq!(Password::read(&path).unwrap(), key);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Password::read(&path), Err(PasswordError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn a_confirmation_holds_for_one_password_only() {
        let dir = tempfile::tempdir().unwrap();
        let note = Confirmation::path_for(&dir.path().join("password"));
        let (key, other) = (Password::generate(), Password::generate());
        assert_eq!(Confirmation::read(&note, &key).unwrap(), None);
        let now = "2026-11-20T03:15:00Z".parse().unwrap();
        Confirmation::write(&note, &key, now).unwrap();
        assert_eq!(Confirmation::read(&note, &key).unwrap(), Some(now));
        assert_eq!(Confirmation::read(&note, &other).unwrap(), None);
    }
}
