//! The helper that puts a server's variable back for a run that is dead: the watchdog and `thaw` start it.
//!
//! It reads one [`Undo::ServerVariable`] as a line of JSON from standard input and answers with a line `Result<(), String>`:
//! `Ok` when the variable is back, or the server has been restarted or is gone. See [`os::undo::SERVER_VARIABLE_ROLE`].
//!
//! Crash story: undoing twice is harmless, see [`super::variable`].

use std::{
    ffi::OsString,
    io::{self, BufRead, Write},
    process::ExitCode,
};

use model::undo::Undo;

use super::variable;

/// The role of this helper.
pub const UNDO_ROLE: &str = os::undo::SERVER_VARIABLE_ROLE;

/// Plays the role to its end.
#[must_use]
pub fn undo_main(_arguments: &[OsString]) -> ExitCode {
    let done = undo_one();
    let told = serde_json::to_string(&done).is_ok_and(|line| writeln!(io::stdout(), "{line}").is_ok());
    if told { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn undo_one() -> Result<(), String> {
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| format!("cannot be told what to undo: {error}"))?;
    match serde_json::from_str(&line) {
        Ok(undo @ Undo::ServerVariable { .. }) => {
            variable::perform(&undo).map_err(|failure| failure.in_full())
        }
        Ok(_) | Err(_) => Err("was told something else than a server's variable".to_owned()),
    }
}
