//! What people and programs read: text, or with `--json` one object on standard output.
//!
//! Commands build a [`Report`], a plain value; how it looks is decided here. Messages that are not the
//! result (warnings, hints) go to standard error.
//!
//! Crash story: writes to standard output and error only; a reader that went away ends nothing but the
//! output, and a result that cannot be written is a failure of the command.

pub mod backup;
pub mod backups;
pub mod coverage;
pub mod log;
pub mod logs;
pub mod plan;
pub mod recovery;
pub mod retention;
mod table;

use std::{
    fmt,
    io::{self, Write},
};

use model::{
    port::{Failure, FailureKind},
    problem::Problem,
};
use serde::Serialize;

pub use self::table::{Align, Table};
use crate::exit::Fault;

/// A command's result.
pub trait Report: Serialize {
    /// For people; ends without a line break.
    fn text(&self) -> String;
}

/// Where results and messages go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// One JSON object on standard output, JSON lines on standard error.
    pub json: bool,
    /// More detail on standard error.
    pub verbose: bool,
}

impl Output {
    /// Prints a command's result.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn result<R: Report>(&self, report: &R) -> Result<(), Failure> {
        let text = if self.json { as_json(report) } else { report.text() };
        stdout((text + "\n").as_bytes())
    }

    /// Prints a line for people that is part of the result; nothing with `--json`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn line(&self, text: impl fmt::Display) -> Result<(), Failure> {
        if self.json { Ok(()) } else { stdout(format!("{text}\n").as_bytes()) }
    }

    /// Says something that is not the result but that a person should know.
    pub fn note(&self, text: impl fmt::Display) {
        self.message("note", &text.to_string());
    }

    /// Warns.
    pub fn warn(&self, text: impl fmt::Display) {
        self.message("warning", &text.to_string());
    }

    /// Says something that only a curious person wants to know.
    pub fn detail(&self, text: impl fmt::Display) {
        if self.verbose {
            self.message("detail", &text.to_string());
        }
    }

    fn message(self, kind: &str, text: &str) {
        if self.json {
            stderr(&serde_json::json!({ "message": kind, "text": text }).to_string());
        } else {
            stderr(&format!("{kind}: {text}"));
        }
    }

    /// Says why the command failed: on standard error for people, as the one object with `--json`.
    pub fn fault(&self, fault: &Fault) {
        let object = || serde_json::json!({ "error": fault.report() }).to_string() + "\n";
        // If nothing can be written there, standard error is what is left.
        if self.json && stdout(object().as_bytes()).is_ok() {
            return;
        }
        let mut text = format!("stillpoint: {}", fault.report().in_full());
        if !fault.failure.remedy.is_empty() {
            text.push_str("\n  what to do: ");
            text.push_str(&fault.failure.remedy);
        }
        stderr(&text);
    }
}

fn as_json<R: Report>(report: &R) -> String {
    // Reports are structs of strings and numbers; only a map with keys that are no strings could fail.
    serde_json::to_string(report).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

/// Writes all of this to standard output.
///
/// # Errors
/// If it cannot be written. A reader that closed the pipe has seen enough, which is no error.
pub fn stdout(bytes: &[u8]) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let remedy = "see where standard output goes; what was done is done";
            Err(Failure::new(FailureKind::Other, "standard output cannot be written", remedy).because(error))
        }
        _ => Ok(()),
    }
}

/// One line on standard error.
pub fn stderr(text: &str) {
    // There is nobody left to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// So many of these: `1 backup`, `2 backups`.
#[must_use]
pub fn counted(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// Problems as indented lines, the worst first, at most `most` of them.
#[must_use]
pub fn problem_lines(problems: &[Problem], count: u64, most: usize) -> String {
    let mut sorted: Vec<&Problem> = problems.iter().collect();
    sorted.sort_by_key(|problem| std::cmp::Reverse(problem.effect));
    let mut text = String::new();
    for problem in sorted.iter().take(most) {
        let effect = match problem.effect {
            model::problem::Effect::Note => "note",
            model::problem::Effect::Weaker => "weaker",
            model::problem::Effect::Missing => "missing",
        };
        text.push_str(&format!("\n  {effect}: {problem}"));
    }
    let shown = sorted.len().min(most) as u64;
    if count > shown {
        text.push_str(&format!("\n  and {} more; --json gives what was recorded", count - shown));
    }
    text
}

#[cfg(test)]
mod tests {
    use model::problem::Problem;

    use super::problem_lines;

    #[test]
    fn the_worst_problems_come_first_and_long_lists_are_cut() {
        let problems = [
            Problem::note("/a", "is a socket"),
            Problem::missing("/b", "cannot be read", "let us read it"),
            Problem::weaker("/c", "changed", ""),
        ];
        let text = problem_lines(&problems, 7, 2);
        assert_eq!(
            text,
            "\n  missing: /b: cannot be read; let us read it\n  weaker: /c: changed\n  and 5 more; --json \
             gives what was recorded"
        );
    }
}
