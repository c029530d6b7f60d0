//! `demo`: a small guestbook under load; cuts of it by the very path that `backup` takes, restored elsewhere
//! and checked row by row; and beside it, on the same load, a copy as ordinary practice makes it.
//!
//! Crash story: everything lies in one temporary directory, removed at the end and on INT and TERM; writers
//! end with the pipe of whoever started them, so that even a `kill -9` leaves no process behind.

mod checker;
mod guestbook;
mod load;
mod naive;
mod report;
mod rounds;
mod world;
mod writer;

pub use self::rounds::play as run;

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use self::guestbook::{Guestbook, GuestbookError};

/// The helper role of the application: guestbook, number of writers, the seed.
pub const APPLICATION: &str = "guestbook";
/// The helper role of one writer: guestbook, its number, the seed.
pub const WRITER: &str = "guestbook-writer";
/// The helper role of the naive copy: guestbook, target.
pub const NAIVE: &str = "guestbook-naive";

/// Plays a helper role of the demo, if it is one.
#[must_use]
pub fn play(role: &str, arguments: &[OsString]) -> Option<ExitCode> {
    let played = match (role, arguments) {
        (APPLICATION, [root, writers, seed]) => {
            load::run_application(&Guestbook::at(root), small(writers), parse(seed))
        }
        (WRITER, [root, number, seed]) => writer::run(&Guestbook::at(root), small(number), parse(seed)),
        (NAIVE, [from, to]) => naive::copy(&Guestbook::at(from), &Guestbook::at(to)),
        _ => return None,
    };
    Some(match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    })
}

fn parse(number: &OsString) -> u64 {
    number.to_string_lossy().parse().unwrap_or(0)
}

fn small(number: &OsString) -> u32 {
    u32::try_from(parse(number)).unwrap_or(0)
}

/// Tells whoever started us that the guestbook is full.
fn say_full() -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(b"true\n")?;
    output.flush()
}

fn fail(error: &GuestbookError) -> ExitCode {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    crate::output::stderr(&format!("{error}: {cause}"));
    ExitCode::FAILURE
}
