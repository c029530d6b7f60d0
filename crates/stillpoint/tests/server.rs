//! A MariaDB server and its files in one cut, by the built program, against real servers under load on XFS and
//! btrfs: every restored copy is opened and judged by a ledger; whatever disturbs a cut, no client waits longer than
//! the stall budget, the verdict is right, and the server is left as it was.
#![allow(clippy::print_stdout, reason = "figures and seeds are for whoever reads the test's output")]

// Its long test is the first by name, so that the others run beside it.
#[path = "server/broken.rs"]
mod broken;
mod common;
#[path = "server/cuts.rs"]
mod cuts;
#[path = "server/disturbed.rs"]
mod disturbed;
#[path = "server/site.rs"]
mod site;
#[path = "server/watch.rs"]
mod watch;

/// The process of the ledgers that the other tests start.
#[test]
fn ledger() {
    testkit::server::ledger_process();
}
