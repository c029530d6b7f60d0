//! The target machine's side of a restore: looks at what is there, writes beside it, compares, swaps.
//!
//! Crash story: everything is written in directories named `.stillpoint-restore-…` beside what it will
//! replace, each in the journal before it is made. Before the first rename of a swap all renames are in the
//! journal as one undo; its last line, once all are done and on disk, is the point of no return. Whoever finds
//! the journal of a dead run brings the old state back before it, and removes the old state after it. Other
//! programs may run beside us: names are changed without ever replacing one, and what they change below a
//! root while it is written beside is replaced with the rest of it.

use std::{path::PathBuf, sync::Arc};

use model::{
    port::{Failure, Journal},
    port_restore::{Beside, Site, Swapped},
    reference::ReferenceFile,
    restore::{Listing, Opened, Place, RestorePlan, SiteFacts},
};

use crate::process;

mod attributes;
mod beside;
mod direct;
mod flush;
mod old;
mod reached;
mod survey;
mod swap;
mod verify;
mod write;

pub use swap::{SwapError, swap_back};

/// This machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalSite;

impl Site for LocalSite {
    fn survey(&self, places: &[Place], listing: &Listing, watched: &[PathBuf]) -> Result<SiteFacts, Failure> {
        Ok(SiteFacts {
            privileged: rustix::process::geteuid().is_root(),
            places: survey::look(places, listing)?,
            open: self.open_by(watched)?,
            copies: Vec::new(),
        })
    }

    fn copies(&self, copies: &[ReferenceFile]) -> Vec<Option<u64>> {
        copies.iter().map(|copy| write::open_copy(copy).map(|(_, device)| device)).collect()
    }

    fn open_by(&self, paths: &[PathBuf]) -> Result<Vec<Opened>, Failure> {
        let found = process::open_by(paths);
        Ok(found
            .into_iter()
            .map(|(process, path)| Opened { pid: process.pid, program: program(process.pid), path })
            .collect())
    }

    fn begin<'a>(
        &'a self,
        plan: &'a RestorePlan,
        listing: &'a Listing,
        journal: &Arc<dyn Journal>,
    ) -> Result<Box<dyn Beside + 'a>, Failure> {
        Ok(Box::new(beside::LocalBeside::begin(plan, listing, journal)?))
    }

    fn remove_old(&self, kept: &[PathBuf], journal: &Arc<dyn Journal>) -> Swapped {
        old::remove(kept, journal)
    }
}

/// `/proc/[pid]/comm`, proc_pid_comm(5); empty if the process is gone.
fn program(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}
