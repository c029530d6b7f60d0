//! `thaw`: undo whatever a dead run left held, stopped or locked. For a person, for `ExecStopPost` of a unit
//! and for the boot.
//!
//! Crash story: see [`crate::wire::sweep`]. It opens no repository and needs no key: it must work when
//! little else does.

use model::id::Relpath;
use serde::Serialize;

use super::Context;
use crate::{
    exit::{Exit, Outcome},
    output::{Report, problem_lines},
    wire::{
        inventory,
        reference::{self, Dropped},
        sweep::{Swept, sweep},
    },
};

/// Thaws.
///
/// # Errors
/// If inventory or journals cannot be read.
pub fn run(context: &Context) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    context.interrupt.defer();
    let mut swept = sweep(&inventory.state())?;
    let Dropped { removed, left } = reference::drop_unwanted(&inventory, None);
    swept.left.extend(left);
    let exit = if swept.left.is_empty() { Exit::Done } else { Exit::Failed };
    context.output.result(&Thawed { swept, references: removed })?;
    Ok(exit)
}

#[derive(Serialize)]
struct Thawed {
    #[serde(flatten)]
    swept: Swept,
    /// Whose frozen copies were removed, since nobody wants them any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    references: Vec<Relpath>,
}

impl Report for Thawed {
    fn text(&self) -> String {
        let Swept { undone, left } = &self.swept;
        if undone.is_empty() && left.is_empty() && self.references.is_empty() {
            return "nothing was left by a dead run".to_owned();
        }
        let mut lines: Vec<String> = undone.iter().map(|one| format!("undone: {}", one.text())).collect();
        let removed = |relpath: &Relpath| format!("removed the frozen copies kept for {relpath}");
        lines.extend(self.references.iter().map(removed));
        if !left.is_empty() {
            lines.push(format!("LEFT:{}", problem_lines(left, left.len() as u64, usize::MAX)));
        }
        lines.join("\n")
    }
}
