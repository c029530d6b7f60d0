//! The watchdog's own life.
//!
//! Crash story: see the module above. It holds nothing itself and works in `/`, so it keeps no filesystem
//! busy. Start hooks run on threads of their own, so that one that takes minutes delays no other deadline.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Write},
    process::ExitCode,
    ptr,
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use jiff::Timestamp;
use model::{
    port::Clock,
    undo::{Ticket, Undo},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{Reply, Say, Undone, board::Board};
use crate::{
    clock::{SystemClock, left},
    command::helper::line_of,
    undo,
};

/// How often the ends of running start hooks are looked for.
const LOOK: Duration = Duration::from_millis(100);

/// The watchdog: reads what the run says on standard input until its end, then undoes what is open. The
/// first of `args`, if any, is the file to which it appends what it does.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    let mut keeper = match prepare(args) {
        Ok(keeper) => keeper,
        Err(error) => {
            say(&Reply::Refused { why: error.to_string() });
            return ExitCode::FAILURE;
        }
    };
    say(&Reply::Ready);
    keeper.listen();
    if keeper.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn prepare(args: &[OsString]) -> io::Result<Keeper> {
    rustix::process::setsid()?;
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        take_no_notice_of(signal)?;
    }
    let log = args.first().map(|path| OpenOptions::new().append(true).create(true).open(path)).transpose()?;
    rustix::process::chdir("/")?;
    let (ended, ends) = channel();
    Ok(Keeper { board: Board::default(), log, starting: Vec::new(), ended, ends })
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// By a handler that does nothing: an ignored signal would stay ignored in the start hook's daemons, which
/// then could not be stopped; handlers end at exec.
fn take_no_notice_of(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: sigaction is plain data, for which zeros are valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: action lives through the call; its handler touches nothing.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Tells the run. If it is gone, nobody needs to know: its journal is what counts.
fn say(reply: &Reply) {
    if let Ok(line) = line_of(reply) {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
    }
}

struct Keeper {
    board: Board,
    log: Option<File>,
    /// Start hooks that run, each on its thread.
    starting: Vec<JoinHandle<()>>,
    ended: Sender<Undone>,
    ends: Receiver<Undone>,
}

impl Keeper {
    /// Until the end of the pipe, or until dismissed.
    fn listen(&mut self) {
        let mut heard = Vec::new();
        loop {
            match self.wait_for_input() {
                Ok(false) => {}
                Ok(true) => {
                    let mut chunk = [0; 4096];
                    match rustix::io::read(io::stdin(), &mut chunk) {
                        Ok(0) => return,
                        Ok(count) => heard.extend_from_slice(&chunk[..count]),
                        Err(Errno::INTR | Errno::AGAIN) => {}
                        Err(_) => return,
                    }
                }
                Err(error) => {
                    self.note(&format!("cannot wait for the run: {error}"));
                    return;
                }
            }
            // What is due comes first: the run may be saying something endless.
            self.undo_due();
            while let Some(end) = heard.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = heard.drain(..=end).collect();
                if self.hear(&line) {
                    return;
                }
            }
        }
    }

    fn wait_for_input(&self) -> io::Result<bool> {
        let deadline = self.board.next_deadline().map(left);
        let look = (!self.starting.is_empty()).then_some(LOOK);
        let timeout = deadline.into_iter().chain(look).min().map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        let stdin = io::stdin();
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], timeout.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it was dismissed.
    fn hear(&mut self, line: &[u8]) -> bool {
        let said = serde_json::from_slice(line).map_err(|error| error.to_string());
        let noted = said.and_then(|said| match said {
            Say::Intend { ticket, undo, until } => self.board.intend(ticket, undo, until).map(|()| false),
            Say::Amend { ticket, undo, until } => self.board.amend(ticket, undo, until).map(|()| false),
            Say::Done { ticket } => {
                self.board.done(ticket);
                Ok(false)
            }
            Say::Dismiss => match self.board.urgent().len() {
                0 => Ok(true),
                open => Err(format!("{open} of the holds are open; they are undone now")),
            },
        });
        match noted {
            Ok(dismissed) => {
                say(&Reply::Noted);
                dismissed
            }
            Err(why) => {
                say(&Reply::Refused { why });
                false
            }
        }
    }

    fn undo_due(&mut self) {
        for (ticket, undo) in self.board.take_due(SystemClock.moment()) {
            self.note(&format!("deadline of ticket {}: {undo:?}", ticket.0));
            if let Undo::Start { .. } = undo {
                let ended = self.ended.clone();
                self.starting.push(thread::spawn(move || {
                    // The receiver lives as long as the watchdog.
                    let _ = ended.send(perform(ticket, &undo).0);
                }));
            } else {
                self.report(perform(ticket, &undo).0);
            }
        }
        while let Ok(undone) = self.ends.try_recv() {
            self.report(undone);
        }
        self.starting.retain(|thread| !thread.is_finished());
    }

    fn report(&mut self, undone: Undone) {
        self.note_undone(&undone);
        say(&Reply::Undone(undone));
    }

    /// Undoes what is open: the run is gone. Whether all could be undone.
    fn finish(&mut self) -> bool {
        let (starts, holds): (Vec<_>, Vec<_>) =
            self.board.urgent().into_iter().partition(|(_, undo)| matches!(undo, Undo::Start { .. }));
        let mut all = true;
        let mut is_mixed = false;
        for (ticket, undo) in holds {
            let (undone, mixed) = self.finish_one(ticket, &undo);
            is_mixed |= mixed;
            all &= undone;
        }
        for thread in self.starting.drain(..) {
            all &= thread.join().is_ok();
        }
        if is_mixed {
            // Started on files partly old and partly new, it could spoil both: `thaw` starts it.
            self.note("the platform stays stopped, since what was there before a restore is not back");
            return false;
        }
        for (ticket, undo) in starts {
            all &= self.finish_one(ticket, &undo).0;
        }
        all
    }

    /// Whether it is undone, and whether files are left partly old and partly new.
    fn finish_one(&mut self, ticket: Ticket, undo: &Undo) -> (bool, bool) {
        self.note(&format!("the run is gone, ticket {}: {undo:?}", ticket.0));
        let (undone, is_mixed) = perform(ticket, undo);
        self.note_undone(&undone);
        (undone.error.is_none(), is_mixed)
    }

    fn note_undone(&mut self, undone: &Undone) {
        let how = undone.error.as_deref().unwrap_or("undone");
        self.note(&format!("ticket {}: {how}", undone.ticket.0));
    }

    fn note(&mut self, text: &str) {
        if let Some(log) = &mut self.log {
            let seconds = Timestamp::now().strftime("%FT%TZ");
            // The log is for people; a full disk must not keep anybody held.
            let _ = writeln!(log, "{seconds} {text}");
        }
    }
}

/// Whether files are left partly old and partly new is the second of the two.
fn perform(ticket: Ticket, undo: &Undo) -> (Undone, bool) {
    let failed = undo::perform(undo).err();
    let is_mixed = failed.as_ref().is_some_and(undo::UndoError::is_mixed);
    let error = failed.map(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    });
    (Undone { ticket, error }, is_mixed)
}
