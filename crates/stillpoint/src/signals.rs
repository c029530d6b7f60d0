//! INT and TERM: the first asks for a clean stop at the next safe point, the second ends at once.
//!
//! HUP does nothing: any restic program that meets our lock in a repository sends it to us, to see whether we
//! still live (restic's own programs take no notice of it either). A terminal that closes ends no command.
//!
//! Crash story: the second signal ends the program as `kill -9` would; watchdog and journal then undo what
//! is left.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

use crate::exit::{Fault, Outcome};

/// Whether somebody asked us to stop.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens to INT and TERM from now on, and to HUP without heeding it.
    ///
    /// # Errors
    /// If the kernel refuses a handler.
    pub fn listen() -> io::Result<Self> {
        let asked = Self::default();
        // A handler, not SIG_IGN, which hooks and the daemons that they start would inherit.
        flag::register(SIGHUP, Arc::default())?;
        for signal in [SIGINT, SIGTERM] {
            // Registered first, so that it acts only if the flag was set by an earlier signal.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&asked.0))?;
            flag::register(signal, Arc::clone(&asked.0))?;
        }
        Ok(asked)
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::SeqCst)
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
        raise(SIGHUP).unwrap();
        raise(SIGHUP).unwrap();
        assert!(!interrupt.is_asked(), "restic's question is taken for a wish to stop");
    }
}
