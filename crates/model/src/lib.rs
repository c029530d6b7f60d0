//! Nouns and arithmetic of Stillpoint.
//!
//! This crate touches nothing: no I/O, no clock, no threads, no randomness. What it needs of the world it
//! is given as values ([`plan::Facts`], a [`time::Moment`], random bytes), and what it wants done it
//! describes as values ([`plan::CutPlan`], [`undo::Undo`]) or asks for through the traits of [`port`].
//!
//! Crash story: nothing here can be interrupted half-way, because nothing here has effects.

pub mod aligned;
pub mod coverage;
pub mod cut;
pub mod decide;
pub mod entries;
pub mod entry;
pub mod extents;
pub mod follow;
pub mod gtid;
pub mod history;
pub mod history_log;
pub mod id;
pub mod inventory;
pub mod known;
pub mod logs;
pub mod logs_retention;
pub mod logs_store;
pub mod pace;
pub mod pathtext;
pub mod plan;
pub mod port;
pub mod port_logs;
pub mod port_restore;
pub mod port_shelf;
pub mod problem;
pub mod record;
pub mod recovery;
pub mod reference;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod server;
pub mod size;
pub mod time;
pub mod undo;
pub mod verdict;
