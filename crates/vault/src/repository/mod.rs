//! Repositories in the restic format: the one façade over rustic_core, whose types never leave this crate, and over
//! [`crate::archiver`], which writes backups.
//!
//! [`Repository`] implements the ports [`model::port::Store`] and [`model::port::Shelf`]. What is stored, and
//! how it can be read without us: `docs/format/repository.md`.
//!
//! Crash story: a backup is listed by the last write of all, its snapshot; everything before that is bytes
//! that no backup names, freed by a later [`model::port::Shelf::reclaim`]. Who may run beside us is said by
//! restic's locks: see [`mod@lock`].

pub(crate) mod backend;
mod blobs;
mod carry;
mod check;
mod compare;
pub(crate) mod crypt;
mod disk;
pub(crate) mod error;
#[cfg(test)]
mod faults;
pub(crate) mod feed;
mod gentle;
mod keys;
mod lock;
mod logs;
pub(crate) mod meter;
pub(crate) mod node;
mod open;
mod original;
mod password;
#[cfg(test)]
mod readers;
mod record;
mod restore;
mod session;
mod shelf;
mod snapshot;
pub(crate) mod source;
mod store;
mod tree;
mod walk;

pub use check::{CheckReport, Depth};
pub use error::{LibraryError, RepositoryError, StorageError};
pub use keys::KeyInfo;
pub use lock::{Holder, Who};
pub use logs::{Archive, LogOwner, StoreOutcome, StoredLogs, Unreadable};
pub use open::{Opening, Repository, index_cache, keep_index_caches};
pub use password::{Confirmation, Password, PasswordError};
