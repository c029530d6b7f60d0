//! Reading TOML tables key by key, so that every error knows its line and no key is overlooked.
//!
//! A [`Section`] remembers which keys were asked for; [`Section::finish`] reports all others. Errors are
//! collected on the [`Page`]: reading goes on after each.
//!
//! Crash story: plain values, no effects.

use std::{
    cell::{Cell, RefCell},
    path::Path,
};

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{InventoryError, InventoryText};

/// Where keys belong, for those written in the wrong section.
const HOMES: [(&str, &str); 13] = [
    ("server", "at the top of the main file"),
    ("vm", "at the top of the main file"),
    ("partition", "at the top of the main file"),
    ("password_file", "at the top of the main file"),
    ("relpath", "under [[application]]"),
    ("description", "under [[application]]"),
    ("exclude", "under [[application.directory]]"),
    ("engine", "under [[application.database]]"),
    ("unit", "under [application.process]"),
    ("pid_file", "under [application.process]"),
    ("stop", "under [application.hooks]"),
    ("start", "under [application.hooks]"),
    ("schedule", "under [defaults] or [[application]]"),
];

/// One file while it is read.
pub(super) struct Page<'t> {
    text: &'t InventoryText,
    errors: RefCell<Vec<InventoryError>>,
}

/// A value and its line.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<T> {
    pub value: T,
    pub line: usize,
}

impl<'t> Page<'t> {
    pub fn new(text: &'t InventoryText) -> Self {
        Self { text, errors: RefCell::default() }
    }

    pub fn file(&self) -> &'t Path {
        &self.text.file
    }

    /// The tables of the file, or nothing after reporting why it is no TOML.
    pub fn table(&self) -> Option<DeTable<'t>> {
        match DeTable::parse(&self.text.text) {
            Ok(table) => Some(table.into_inner()),
            Err(error) => {
                let line = error.span().map_or(1, |span| self.line(span.start));
                let what = error.message().lines().collect::<Vec<_>>().join(", ");
                self.report(line, format!("not valid TOML: {what}"), "correct it; see https://toml.io");
                None
            }
        }
    }

    pub fn report(&self, line: usize, what: impl Into<String>, remedy: impl Into<String>) {
        let (what, remedy) = (what.into(), remedy.into());
        self.errors.borrow_mut().push(InventoryError { file: self.text.file.clone(), line, what, remedy });
    }

    pub fn into_errors(self) -> Vec<InventoryError> {
        self.errors.into_inner()
    }

    fn line(&self, offset: usize) -> usize {
        let before = self.text.text.as_bytes().get(..offset).unwrap_or_default();
        1 + before.iter().filter(|b| **b == b'\n').count()
    }
}

/// One table of a file.
pub(super) struct Section<'p, 't> {
    page: &'p Page<'t>,
    /// As people see it: `[defaults]`, `[[application]]`, or `the main file`.
    name: String,
    line: usize,
    table: &'p DeTable<'t>,
    asked: RefCell<Vec<&'static str>>,
    failed: Cell<bool>,
}

impl<'p, 't> Section<'p, 't> {
    pub fn new(page: &'p Page<'t>, name: impl Into<String>, line: usize, table: &'p DeTable<'t>) -> Self {
        let (name, asked, failed) = (name.into(), RefCell::default(), Cell::new(false));
        Self { page, name, line, table, asked, failed }
    }

    pub fn page(&self) -> &'p Page<'t> {
        self.page
    }

    pub fn line(&self) -> usize {
        self.line
    }

    pub fn report(&self, line: usize, what: impl Into<String>, remedy: impl Into<String>) {
        self.failed.set(true);
        self.page.report(line, what, remedy);
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Says that a key is allowed here and looks it up.
    fn ask(&self, key: &'static str) -> Option<(usize, &'p DeValue<'t>)> {
        self.asked.borrow_mut().push(key);
        let (found, value) = self.table.get_key_value(key)?;
        Some((self.page.line(found.span().start), value.get_ref()))
    }

    fn mistyped(&self, line: usize, key: &str, wanted: &str, found: &DeValue<'_>) {
        self.report(line, format!("{key} is {}, not {wanted}", kind(found)), format!("make it {wanted}"));
    }

    pub fn text(&self, key: &'static str) -> Option<At<&'p str>> {
        let (line, value) = self.ask(key)?;
        match value {
            DeValue::String(text) => Some(At { value: text.as_ref(), line }),
            other => {
                self.mistyped(line, key, "a text in quotes", other);
                None
            }
        }
    }

    /// A text that has to be there; `example` is shown if it is not.
    pub fn required(&self, key: &'static str, example: &str) -> Option<At<&'p str>> {
        if !self.has(key) {
            self.asked.borrow_mut().push(key);
            let what = format!("{key} is missing in {}", self.name);
            self.report(self.line, what, format!("add {key} = {example}"));
            return None;
        }
        self.text(key)
    }

    pub fn count(&self, key: &'static str) -> Option<u32> {
        let (line, value) = self.ask(key)?;
        let number = match value {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        if number.is_none() {
            self.mistyped(line, key, "a whole number, 0 or greater", value);
        }
        number
    }

    pub fn flag(&self, key: &'static str) -> Option<bool> {
        let (line, value) = self.ask(key)?;
        match value {
            DeValue::Boolean(flag) => Some(*flag),
            other => {
                self.mistyped(line, key, "true or false", other);
                None
            }
        }
    }

    pub fn texts(&self, key: &'static str) -> Vec<At<&'p str>> {
        let Some((line, value)) = self.ask(key) else { return vec![] };
        let DeValue::Array(items) = value else {
            self.mistyped(line, key, "a list of texts in brackets", value);
            return vec![];
        };
        let mut texts = Vec::new();
        for item in items.iter() {
            let line = self.page.line(item.span().start);
            match item.get_ref() {
                DeValue::String(text) => texts.push(At { value: text.as_ref(), line }),
                other => self.mistyped(line, key, "a list of texts in quotes", other),
            }
        }
        texts
    }

    /// A table under `key`, named `name` in messages.
    pub fn section(&self, key: &'static str, name: &str) -> Option<Section<'p, 't>> {
        let (line, value) = self.ask(key)?;
        match value {
            DeValue::Table(table) => Some(Section::new(self.page, name, line, table)),
            other => {
                self.mistyped(line, key, &format!("a table {name}"), other);
                None
            }
        }
    }

    /// The tables of a list under `key`, each named `name` in messages.
    pub fn sections(&self, key: &'static str, name: &str) -> Vec<Section<'p, 't>> {
        let Some((line, value)) = self.ask(key) else { return vec![] };
        let DeValue::Array(items) = value else {
            self.mistyped(line, key, &format!("a list of tables; write {name}"), value);
            return vec![];
        };
        let mut sections = Vec::new();
        for item in items.iter() {
            let line = self.first_line(item);
            match item.get_ref() {
                DeValue::Table(table) => sections.push(Section::new(self.page, name, line, table)),
                other => self.mistyped(line, key, &format!("a list of tables; write {name}"), other),
            }
        }
        sections
    }

    fn first_line(&self, item: &Spanned<DeValue<'t>>) -> usize {
        self.page.line(item.span().start)
    }

    /// Reports every key that nobody asked for. Returns whether nothing was wrong in this section.
    pub fn finish(self) -> bool {
        let asked = self.asked.borrow();
        for key in self.table.keys() {
            if !asked.contains(&key.get_ref().as_ref()) {
                let line = self.page.line(key.span().start);
                let what = format!("unknown key {:?} in {}", key.get_ref(), self.name);
                self.failed.set(true);
                self.page.report(line, what, suggest(key.get_ref(), &asked));
            }
        }
        !self.failed.get()
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// What was meant by an unknown key: the nearest allowed one, or where it belongs.
fn suggest(key: &DeString<'_>, allowed: &[&'static str]) -> String {
    if let Some(near) = nearest(key, allowed.iter().copied()) {
        return format!("did you mean {near:?}?");
    }
    if let Some(near) = nearest(key, HOMES.iter().map(|(key, _)| *key)) {
        let (_, home) = HOMES.iter().find(|(key, _)| *key == near).unwrap_or(&HOMES[0]);
        return format!("{near:?} belongs {home}");
    }
    format!("allowed here: {}", allowed.join(", "))
}

/// The word that differs least from `key`, if it differs little.
fn nearest<'a>(key: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    words
        .map(|word| (distance(key, word), word))
        .filter(|(distance, word)| *distance <= 1.max(word.len() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// How many letters must be added, dropped or changed (Levenshtein's distance).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = changed.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn the_nearest_word_is_found_and_a_far_one_is_not() {
        assert_eq!(distance("pasword_file", "password_file"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        let words = ["name", "relpath", "keep"];
        assert_eq!(nearest("relpaht", words.into_iter()), Some("relpath"));
        assert_eq!(nearest("nmae", words.into_iter()), None);
        assert_eq!(nearest("nam", words.into_iter()), Some("name"));
        assert_eq!(nearest("colour", words.into_iter()), None);
    }
}
