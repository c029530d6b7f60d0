//! `thaw`: undo whatever a dead run left held, stopped or locked. For a person, for `ExecStopPost` of a unit
//! and for the boot.
//!
//! Crash story: see [`crate::wire::sweep`]. It opens no repository and needs no key: it must work when
//! little else does.

use serde::Serialize;

use super::Context;
use crate::{
    exit::{Exit, Outcome},
    output::{Report, problem_lines},
    wire::{
        inventory,
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
    let swept = sweep(&inventory.state())?;
    let exit = if swept.left.is_empty() { Exit::Done } else { Exit::Failed };
    context.output.result(&Thawed(swept))?;
    Ok(exit)
}

#[derive(Serialize)]
#[serde(transparent)]
struct Thawed(Swept);

impl Report for Thawed {
    fn text(&self) -> String {
        let Swept { undone, left } = &self.0;
        if undone.is_empty() && left.is_empty() {
            return "nothing was left by a dead run".to_owned();
        }
        let mut lines: Vec<String> = undone.iter().map(|one| format!("undone: {}", one.text())).collect();
        if !left.is_empty() {
            lines.push(format!("LEFT:{}", problem_lines(left, left.len() as u64, usize::MAX)));
        }
        lines.join("\n")
    }
}
