//! The composition root: the one place where drivers are built from plan values and handed to
//! orchestration.
//!
//! Crash story: each module tells its own.

pub mod backup;
pub mod drivers;
pub mod history;
pub mod inventory;
pub mod lock;
pub mod log;
pub mod log_keep;
pub mod log_sqlite;
pub mod log_store;
pub mod logbook;
pub mod open;
pub mod password;
pub mod recover;
pub mod reference;
pub mod restore;
pub mod run;
pub mod served;
pub mod stoppable;
pub mod sweep;
