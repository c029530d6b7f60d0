//! Names in a repository: the SHA-256 of what they name.
//!
//! Crash story: plain values, no effects.

use std::fmt;

use rustic_core::Id;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// The SHA-256 of a blob (before compression and encryption) or of a file (as it is stored).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(pub(crate) [u8; 32]);

impl Name {
    /// The name of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The names of several contents, in their order: faster than one after the other.
    pub(crate) fn of_all(contents: &[&[u8]]) -> Vec<Self> {
        lanes::hashes(contents).into_iter().map(Self).collect()
    }

    /// The same as rustic_core knows it.
    pub(crate) fn id(&self) -> Id {
        Id::new(self.0)
    }

    /// The name behind an id of rustic_core.
    pub(crate) fn from_id(id: &Id) -> Self {
        let mut name = Self::default();
        // An id's hexadecimal form always has 64 digits.
        let _whole = hex::decode_to_slice(id.to_hex().as_str(), &mut name.0);
        name
    }

    /// The name that stands as these hexadecimal digits; nothing if one is none.
    pub(crate) fn from_digits(digits: &[u8; 64]) -> Option<Self> {
        lanes::from_digits(digits).map(Self)
    }

    /// Its first bytes as a number: evenly spread, for tables.
    pub(crate) fn spread(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(first)
    }

    /// Its first digits, for messages.
    pub(crate) fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(std::str::from_utf8(&lanes::digits(&self.0)).unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Digits need not be looked at twice, as text first.
        deserializer.deserialize_bytes(Digits)
    }
}

struct Digits;

impl de::Visitor<'_> for Digits {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("64 hexadecimal digits")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
        self.visit_bytes(text.as_bytes())
    }

    fn visit_bytes<E: de::Error>(self, text: &[u8]) -> Result<Name, E> {
        let digits: &[u8; 64] = text.try_into().map_err(|_| E::invalid_length(text.len(), &self))?;
        Name::from_digits(digits).ok_or_else(|| E::invalid_value(de::Unexpected::Bytes(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn names_survive_json_and_the_librarys_ids() {
        let name = Name::of(b"abc");
        let json = serde_json::to_string(&name).unwrap();
        assert!(json.starts_with("\"ba7816bf8f01cfea"), "{json}");
        assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), name);
        assert_eq!(Name::from_id(&name.id()), name);
        assert_eq!(serde_json::from_str::<Name>(&json.to_uppercase()).unwrap(), name);
        assert!(serde_json::from_str::<Name>("\"ba78\"").is_err());
        for wrong in ["g", "\u{fc}", "/", ":", "@"] {
            let text = json.replacen("ba", &format!("b{wrong}"), 1);
            assert!(serde_json::from_str::<Name>(&text).is_err(), "{text}");
        }
    }
}
