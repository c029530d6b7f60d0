//! What goes wrong, and when: faults at statements.

use std::time::Duration;

use super::wire::SqlError;

/// What happens to a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The connection breaks before the statement is done.
    BreakBefore,
    /// The statement is done, then the connection breaks without an answer.
    BreakAfter,
    /// The statement is done so much later.
    Delay(Duration),
    /// The statement is done, the answer comes so much later.
    DelayAnswer(Duration),
    /// The statement is not done but answered by this error.
    Error(SqlError),
    /// The whole server ends before the statement is done.
    ServerEnds,
}

/// Something that happens to the n-th statement that contains a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// In capital letters; every statement has the empty text.
    pub(super) text: String,
    /// How many fitting statements pass first.
    pub(super) after: u32,
    /// What happens.
    pub(super) what: What,
}

impl Fault {
    /// At the next statement that contains this text, whatever the case of its letters.
    #[must_use]
    pub fn at(text: &str, what: What) -> Self {
        Self { text: text.to_uppercase(), after: 0, what }
    }

    /// After so many of them have passed.
    #[must_use]
    pub fn after(self, passed: u32) -> Self {
        Self { after: passed, ..self }
    }
}

/// What happens to this statement, taken off the list.
pub(super) fn due(faults: &mut Vec<Fault>, sql: &str) -> Option<What> {
    let sql = sql.to_uppercase();
    let mut hit = None;
    for (index, fault) in faults.iter_mut().enumerate() {
        if !sql.contains(&fault.text) {
            continue;
        }
        if fault.after == 0 && hit.is_none() {
            hit = Some(index);
        } else {
            fault.after = fault.after.saturating_sub(1);
        }
    }
    hit.map(|index| faults.remove(index).what)
}
