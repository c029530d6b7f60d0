//! Paths in JSON and in messages: any bytes, one line, reversible.
//!
//! A path that is UTF-8 without control characters and backslashes stands as it is. Every other byte is
//! written `\xHH`, a backslash `\\`. Use with `#[serde(with = "crate::pathtext")]`.
//!
//! Crash story: pure functions, no effects.

use std::{
    ffi::OsString,
    fmt::Write,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// The path as one line of text.
#[must_use]
pub fn show(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => {
                    let mut buffer = [0; 4];
                    escape(c.encode_utf8(&mut buffer).as_bytes(), &mut text);
                }
                c => text.push(c),
            }
        }
        escape(chunk.invalid(), &mut text);
    }
    text
}

fn escape(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
}

/// The path that [`show`] wrote, or `None` if the text has an escape of another form.
#[must_use]
pub fn parse(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'\\' {
            bytes.push(first);
            rest = tail;
        } else if let Some(after) = tail.strip_prefix(b"\\") {
            bytes.push(b'\\');
            rest = after;
        } else {
            let hex = tail.strip_prefix(b"x")?.get(..2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = &tail[3..];
        }
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

/// Serde: the path as [`show`] writes it.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&show(path))
}

/// Serde: the path that [`show`] wrote.
///
/// # Errors
/// Those of the deserializer, and a text that is no path.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not an escaped path")))
}

/// The same for an optional path.
pub mod option {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Serde: the path as text, or nothing.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        match path {
            Some(path) => serializer.serialize_some(&super::show(path)),
            None => serializer.serialize_none(),
        }
    }

    /// Serde: the path, if there is one.
    ///
    /// # Errors
    /// Those of the deserializer, and a text that is no path.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| {
                super::parse(&text)
                    .ok_or_else(|| D::Error::custom(format!("{text:?} is not an escaped path")))
            })
            .transpose()
    }
}

/// The same for several paths.
pub mod list {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Serde: the paths as a list of texts.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().map(|path| super::show(path)))
    }

    /// Serde: the paths.
    ///
    /// # Errors
    /// Those of the deserializer, and a text that is no path.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| {
                super::parse(text).ok_or_else(|| D::Error::custom(format!("{text:?} is not an escaped path")))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::{parse, show};

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let path = Path::new(OsStr::from_bytes(&bytes));
            let text = show(path);
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert_eq!(parse(&text).unwrap(), path);
        }
    }

    #[test]
    fn plain_paths_stay_plain() {
        assert_eq!(show(Path::new("/srv/größe/ä b")), "/srv/größe/ä b");
        assert_eq!(show(Path::new("a\nb\\c")), "a\\x0ab\\\\c");
        assert_eq!(parse("\\q"), None);
        assert_eq!(parse("\\x4"), None);
    }
}
