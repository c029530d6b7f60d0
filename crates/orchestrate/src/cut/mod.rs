//! The cut: the one instant at which all sources of an application stand still.
//!
//! [`host`] takes it on one machine. Its parts: [`prepare`] does everything that can be done while nobody is
//! held; [`held`] owns what is held, lets it go in reverse order on every path and measures it; [`evidence`]
//! decides what was shown; [`patience`] says how often and after what pauses it is tried again.
//!
//! Crash story: whatever is held or pinned is owned by guards. A panic drops them, holds before pins. A
//! process that dies is cleaned up after by the kernel, the watchdog, `thaw` and the next run, from the
//! journal that the drivers wrote before they made anything. Two cuts of one application must not run beside
//! each other; the program takes a lock for that.

pub mod crew;
pub mod evidence;
pub mod held;
pub mod host;
pub mod patience;
pub mod prepare;
