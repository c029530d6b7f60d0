//! One row of an answer: values as bytes, by place or by name.
//!
//! Crash story: plain values, no effects.

use mysql::Value;

/// One row. A missing column is like NULL: versions differ in what they show.
#[derive(Debug, Clone, Default)]
pub struct Row {
    names: Vec<String>,
    values: Vec<Option<Vec<u8>>>,
}

impl Row {
    pub(super) fn of(row: mysql::Row) -> Self {
        let names = row.columns_ref().iter().map(|column| column.name_str().into_owned()).collect();
        Self { names, values: row.unwrap().into_iter().map(bytes).collect() }
    }

    /// The bytes of the value at this place; `None` for NULL.
    #[must_use]
    pub fn bytes(&self, place: usize) -> Option<&[u8]> {
        self.values.get(place)?.as_deref()
    }

    /// How many values it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The value at this place as text; `None` for NULL.
    #[must_use]
    pub fn given(&self, place: usize) -> Option<String> {
        Some(String::from_utf8_lossy(self.bytes(place)?).into_owned())
    }

    /// The value at this place as text, empty for NULL.
    #[must_use]
    pub fn text(&self, place: usize) -> String {
        self.given(place).unwrap_or_default()
    }

    /// The value at this place, a number; `None` for NULL and for other texts.
    #[must_use]
    pub fn number(&self, place: usize) -> Option<u64> {
        self.given(place)?.parse().ok()
    }

    /// Where the column with this name is, in whatever case it is written.
    #[must_use]
    pub fn place(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known.eq_ignore_ascii_case(name))
    }

    /// The value of the column with the first of these names that there is.
    #[must_use]
    pub fn named(&self, names: &[&str]) -> Option<String> {
        self.given(names.iter().find_map(|name| self.place(name))?)
    }
}

/// The text protocol sends texts only.
fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::NULL => None,
        Value::Bytes(bytes) => Some(bytes),
        other => Some(other.as_sql(true).trim_matches('\'').as_bytes().to_vec()),
    }
}
