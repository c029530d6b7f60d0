//! The helper that puts back what a dead run changed in a server: the watchdog and `thaw` start it.
//!
//! It reads one [`Undo::ServerVariable`] or [`Undo::ServerExchange`] as a line of JSON from standard input and answers with a
//! line `Result<(), String>`: `Ok` when the variable is back, or the server has been restarted or is gone; when the
//! databases are as they were, or as they were restored. See [`os::undo::SERVER_ROLE`].
//!
//! Crash story: undoing twice is harmless, see [`super::variable`] and [`super::dump::undo_exchange`].

use std::{
    ffi::OsString,
    io::{self, BufRead, Write},
    process::ExitCode,
};

use model::undo::Undo;

use super::{dump, variable};

/// The role of this helper.
pub const UNDO_ROLE: &str = os::undo::SERVER_ROLE;

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
        Ok(undo @ Undo::ServerExchange { .. }) => {
            dump::undo_exchange(&undo).map_err(|failure| failure.in_full())
        }
        Ok(_) | Err(_) => Err("was told something else than what is done to servers".to_owned()),
    }
}
