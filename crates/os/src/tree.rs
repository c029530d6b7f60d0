//! Directory trees as they are: every name with all its attributes, without opening a single file.
//!
//! What is stored how: regular files, directories, symbolic links, fifos and devices as such; hard links keep
//! inode and number of links; a socket is not stored (its program makes it anew) and is noted; names are bytes.
//! Whatever is mounted below a root is walked too, except filesystems that the kernel makes up, which are
//! noted; a bind mount of a directory above itself is noted and not followed.
//!
//! Three ways to look: a [`Count`] counts names without looking at them, a [`Walk`] hands out one name after the other, a [`Census`] keeps them and can be brought up to
//! date and compared with the tree at little more than one `statx` for each name. The module `rules` is common to both.
//!
//! Crash story: reads only. The tree may change under a walk: what vanishes meanwhile is said where it matters
//! ([`Vanished`]), directories are recognised by inode when they are opened, links are never followed.

mod census;
mod count;
mod meta;
mod resolve;
mod rules;
mod walk;

pub use census::{Census, Changes, Course, Pass, Spot, Stopped};
pub use count::Count;
pub use meta::{Found, changed_since, clock_of_stamps, read_entry_meta, stamp_of};
pub use resolve::{Resolved, ancestors, resolve};
pub use rules::Vanished;
pub use walk::Walk;

/// What an error of the system says, without its number.
#[must_use]
pub fn said(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (os error ") {
        Some((said, _)) => said.to_owned(),
        None => text,
    }
}
