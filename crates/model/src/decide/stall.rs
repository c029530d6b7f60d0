//! The predicted stall: what the steps between the first lock and the last release are expected to take.
//!
//! The sum, over all holds and pins, of a fixed part and a part that grows with what has to be looked at
//! while writers are held:
//!
//! | step | fixed | and for each |
//! |---|---|---|
//! | lock an SQLite database, prove it, let go | 2 ms | |
//! | hold processes, prove it, let go | 1 ms | process: 0.2 ms |
//! | clone a database and its `-wal` | 1 ms | extent: 15 µs (seen on XFS: 62,000 in 0.9 s) |
//! | begin a read transaction | 1 ms | |
//! | compare a database with its copy | 1 ms | page of 4 KiB: 8 µs (500 MB/s, both sides from memory) |
//! | btrfs snapshot | 30 ms | |
//! | lock a server, prove it, let go | 20 ms | |
//! | hold a server's process, prove it, let go | 5 ms | |
//! | snapshots of a server's or directory's volume | 30 ms on btrfs and ZFS, 150 ms with LVM | volume |
//! | clone what changed of a server's files | 5 ms | file: 20 µs; extent: 15 µs of a tenth of them |
//! | open transactions for dumps, or look at binary logs | 10 ms | |
//! | last round of two passes, and the look after it | 1 ms | name: 1.5 µs, looked at twice (seen warm, on two processors: 100,000 in 75 ms, in 160 ms with both busy) |
//!
//! Where extents are not told, one for each 64 KiB is assumed. Not predicted: files that change between the
//! last unlocked round and the cut. Without a lock and without held processes nobody is held back, and the
//! prediction is nothing; what a stop hook costs is downtime, not stall.
//!
//! Crash story: pure functions, no effects.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    plan::{CutPlan, Facts, HoldMethod, HoldPlan, PinMethod, PinPlan, SqliteFacts},
    server::{ServerFacts, Volume},
};

const PAGE: u64 = 4096;
const GUESSED_EXTENT: u64 = 64 * 1024;

/// What a cut is expected to cost the writers.
pub(super) struct Prediction {
    /// From the first lock to the last release.
    pub total: Duration,
    /// The hold or source that costs most.
    pub longest: String,
}

/// The prediction for a plan, but for what is not known in advance.
pub(super) fn predict(plan: &CutPlan, facts: &Facts) -> Prediction {
    let holds = plan.holds.iter().filter_map(|hold| hold_cost(hold, facts));
    let mut costs: Vec<(Duration, String)> = holds.collect();
    if !costs.is_empty() {
        costs.extend(plan.pins.iter().map(|pin| (pin_cost(pin, facts), pin.source.to_string())));
    }
    let total = costs.iter().map(|(cost, _)| *cost).sum();
    let longest = costs.into_iter().max_by_key(|(cost, _)| *cost).map(|(_, name)| name).unwrap_or_default();
    Prediction { total, longest }
}

fn hold_cost(hold: &HoldPlan, facts: &Facts) -> Option<(Duration, String)> {
    match &hold.method {
        HoldMethod::StopHook { .. } => None,
        HoldMethod::SqliteLock { source, .. } => Some((millis(2), source.to_string())),
        HoldMethod::ServerSlowLock(lock) | HoldMethod::ServerFinalLock(lock) => {
            Some((millis(10), lock.source.to_string()))
        }
        HoldMethod::ServerProcess { source, .. } => Some((millis(5), source.to_string())),
        HoldMethod::Processes { .. } => {
            let processes = facts.process.as_ref().map_or(0, |p| p.pids.len() as u64);
            Some((millis(1) + micros(200, processes), "the processes".to_owned()))
        }
    }
}

fn pin_cost(pin: &PinPlan, facts: &Facts) -> Duration {
    let sqlite = facts.sqlite.iter().find(|f| f.source == pin.source);
    let directory = facts.directories.iter().find(|f| f.source == pin.source);
    match &pin.method {
        PinMethod::SqliteReflink(_) => millis(1) + micros(15, sqlite.map_or(0, extents)),
        PinMethod::SqliteTransaction(_) => millis(1),
        PinMethod::SqlitePages(_) => millis(1) + micros(8, sqlite.map_or(0, |f| f.bytes.0.div_ceil(PAGE))),
        PinMethod::BtrfsSnapshot(_) => millis(30),
        PinMethod::VolumeSnapshot(plan) => volume_cost(&plan.volume),
        PinMethod::ServerVolumes(plan) => {
            let volumes: BTreeSet<&Volume> =
                plan.roots.iter().filter_map(|root| root.volume.as_ref()).collect();
            volumes.into_iter().map(volume_cost).sum()
        }
        PinMethod::ServerReflink(_) => {
            let server = facts.servers.iter().find(|f| f.source == pin.source);
            let (files, extents) = server.map_or((0, 0), |f| (f.files, server_extents(f)));
            millis(5) + micros(20, files) + micros(15, extents / 10)
        }
        PinMethod::ServerPhysical(_) | PinMethod::ServerDump(_) => millis(10),
        PinMethod::TwoPassReflink(_) | PinMethod::TwoPassCopy(_) => {
            millis(1) + micros(3, directory.map_or(0, |f| f.entries))
        }
    }
}

fn extents(found: &SqliteFacts) -> u64 {
    found.extents.unwrap_or_else(|| (found.bytes + found.wal_bytes).0.div_ceil(GUESSED_EXTENT))
}

fn server_extents(found: &ServerFacts) -> u64 {
    found.extents.unwrap_or_else(|| found.bytes.0.div_ceil(GUESSED_EXTENT))
}

fn volume_cost(volume: &Volume) -> Duration {
    match volume {
        Volume::Btrfs { .. } | Volume::Zfs { .. } => millis(30),
        Volume::Lvm { .. } => millis(150),
    }
}

fn millis(fixed: u64) -> Duration {
    Duration::from_millis(fixed)
}

fn micros(each: u64, count: u64) -> Duration {
    Duration::from_micros(each.saturating_mul(count))
}

/// The next whole second, for a budget that would do.
pub(super) fn rounded_up(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs() + 1)
}
