//! Private MariaDB servers ([`PrivateServer`]), what their clients notice ([`Latency`]), an application whose
//! copies can be judged ([`Ledger`]), load and age ([`Sysbench`], [`age`]), and filesystems of one's own
//! ([`Volume`]).
//!
//! Crash story: servers, load and mounts end with their guards; a killed test process takes its servers with it
//! (parent death signal), while its mounts stay for `umount`.

mod ageing;
mod install;
mod latency;
mod ledger;
mod private;
mod process;
mod sysbench;
mod volume;

pub use ageing::age;
pub use latency::{Commit, Latency, Workload};
pub use ledger::{Ledger, LedgerOptions, Report, ledger_process, verify};
pub use private::{PrivateServer, ServerBuilder, ServerProcess};
pub use process::{children, descendants, wait_until};
pub use sysbench::{Sysbench, SysbenchRun, SysbenchSecond};
pub use volume::Volume;

/// What every helper here fails with: a sentence for the test's output.
pub type Told<T> = Result<T, String>;
