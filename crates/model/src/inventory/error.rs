//! What is wrong with an inventory, where, and what to do.
//!
//! Crash story: plain values, no effects.

use std::{error::Error, fmt, path::PathBuf};

use serde::Serialize;

use crate::pathtext;

/// One thing wrong with an inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InventoryError {
    /// The file.
    #[serde(with = "pathtext")]
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What to do about it; never empty.
    pub remedy: String,
}

impl fmt::Display for InventoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; {}", pathtext::show(&self.file), self.line, self.what, self.remedy)
    }
}

impl Error for InventoryError {}

/// All that was found wrong with an inventory, one line each, ordered by file and line; never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct InventoryErrors(pub Vec<InventoryError>);

impl fmt::Display for InventoryErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl Error for InventoryErrors {}
