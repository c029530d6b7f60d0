//! Undoing what a run held or pinned, from the values that it journalled.
//!
//! Crash story: every undo may be repeated, cut short, or done by two at once (watchdog and `thaw`): it names
//! its object precisely and is done when that object is gone. A process is named by id *and* start time and
//! signalled through a pidfd; paths are only touched if they bear the marks of what we make.
