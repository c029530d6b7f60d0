//! INT and TERM: while a run is under way the first asks for a clean stop at the next safe point, and the
//! second ends the program at once. Before a run has begun nothing can be held, and the first ends it.
//!
//! HUP does nothing: any restic program that meets our lock in a repository sends it to us, to see whether we
//! still live (restic's own programs take no notice of it either). A terminal that closes ends no command.
//!
//! Crash story: the second signal ends the program as `kill -9` would; watchdog and journal then undo what
//! is left.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

use crate::exit::{Fault, Outcome};

/// How often it is looked whether somebody asked, while a person is waited for.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Whether somebody asked us to stop.
#[derive(Debug, Clone)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    /// Nothing is begun that would have to be ended.
    idle: Arc<AtomicBool>,
    /// When it was first noticed that somebody asked.
    noticed: Arc<OnceLock<Instant>>,
    /// So long after that it counts.
    grace: Duration,
}

impl Interrupt {
    /// Listens to INT and TERM from now on, and to HUP without heeding it.
    ///
    /// # Errors
    /// If the kernel refuses a handler.
    pub fn listen() -> io::Result<Self> {
        let interrupt = Self {
            asked: Arc::default(),
            idle: Arc::new(AtomicBool::new(true)),
            noticed: Arc::default(),
            grace: Duration::ZERO,
        };
        // A handler, not SIG_IGN, which hooks and the daemons that they start would inherit.
        flag::register(SIGHUP, Arc::default())?;
        for signal in [SIGINT, SIGTERM] {
            // Registered first, so that it acts only if the flag was set by an earlier signal.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&interrupt.asked))?;
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&interrupt.idle))?;
            flag::register(signal, Arc::clone(&interrupt.asked))?;
        }
        Ok(interrupt)
    }

    /// From now on something may be begun that has to be ended: the first signal is a wish.
    pub fn defer(&self) {
        self.idle.store(false, Ordering::SeqCst);
    }

    /// Waits until there is something to read, without being deaf meanwhile: a read itself would go on after
    /// a signal.
    ///
    /// # Errors
    /// If somebody asked us to stop.
    pub fn wait_for(&self, input: impl AsFd) -> Outcome<()> {
        loop {
            self.check()?;
            let mut polled = [PollFd::new(&input, PollFlags::IN)];
            match poll(&mut polled, Some(&LOOK)) {
                Ok(0) | Err(Errno::INTR) => {}
                // What cannot be waited for is the reader's to complain of.
                Ok(_) | Err(_) => return self.check(),
            }
        }
    }

    /// The same wish, which counts only so long after it was first noticed: for what is done to end cleanly.
    #[must_use]
    pub fn after(&self, grace: Duration) -> Self {
        Self { grace, ..self.clone() }
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst) && self.noticed.get_or_init(Instant::now).elapsed() >= self.grace
    }

    /// A fault after somebody asked us to stop is said to be just that; what failed for it is its cause.
    #[must_use]
    pub fn explains(&self, fault: Fault) -> Fault {
        let alone = fault.failure.what == Fault::interrupted().failure.what;
        if self.is_asked() && !alone { Fault::interrupted().because(fault.failure) } else { fault }
    }

    /// Ends the command here if somebody asked.
    ///
    /// # Errors
    /// If somebody asked.
    pub fn check(&self) -> Outcome<()> {
        if self.is_asked() { Err(Fault::interrupted()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use signal_hook::{consts::SIGHUP, low_level::raise};

    use super::Interrupt;

    #[test]
    fn whoever_asks_whether_we_live_stops_nothing() {
        let interrupt = Interrupt::listen().unwrap();
        interrupt.defer();
        raise(SIGHUP).unwrap();
        raise(SIGHUP).unwrap();
        assert!(!interrupt.is_asked(), "restic's question is taken for a wish to stop");
    }
}
