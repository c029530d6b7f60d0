//! This program in one of its helper roles: `stillpoint __helper ROLE ARGUMENTS…`.
//!
//! Crash story: a helper ends when the pipe from whoever started it ends; what it holds ends with it, or is
//! what it was started to undo.

use std::{env, ffi::OsString, process::ExitCode};

use engines::{server, sqlite};
use os::{command::helper_role, undo::SERVER_ROLE, watchdog};

use crate::demo;

/// Role and arguments, if this process is to be a helper.
#[must_use]
pub fn role_of_arguments() -> Option<(String, Vec<OsString>)> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let (role, rest) = helper_role(&arguments)?;
    Some((role.to_string_lossy().into_owned(), rest.to_vec()))
}

/// Plays the role to its end.
#[must_use]
pub fn run(role: &str, arguments: &[OsString]) -> ExitCode {
    match role {
        watchdog::ROLE => return watchdog::main(arguments),
        sqlite::LOCK_ROLE | sqlite::READER_ROLE | sqlite::LOG_ROLE => {
            return sqlite::helper_main(role, arguments);
        }
        SERVER_ROLE => return server::undo_main(arguments),
        _ => {}
    }
    if let Some(code) = demo::play(role, arguments) {
        return code;
    }
    crate::output::stderr(&format!("stillpoint: there is no helper role {role:?}"));
    ExitCode::from(2)
}
