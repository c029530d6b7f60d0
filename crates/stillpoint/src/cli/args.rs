//! The arguments of each command.
//!
//! Crash story: plain values, no effects.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use clap_complete::Shell;

/// `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// How many cuts to take
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub cuts: u32,
    /// Begin no further cut after so many seconds
    #[arg(long, value_name = "S", default_value_t = 45)]
    pub seconds: u64,
    /// How many processes write to the guestbook
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub writers: u32,
    /// Where to work: a temporary directory is made below it and removed afterwards
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `init`.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// Where backups are kept
    #[arg(long, value_name = "DIR", default_value = "/var/backups/stillpoint")]
    pub partition: PathBuf,
    /// The file that holds the key of the repositories; made if it is missing
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Short name of a first application
    #[arg(long, value_name = "NAME")]
    pub app: Option<String>,
    /// Its identity: virtual host, then path [default: its short name]
    #[arg(long, value_name = "RELPATH", requires = "app")]
    pub relpath: Option<String>,
    /// One of its directories; may be given several times
    #[arg(long, value_name = "PATH", requires = "app")]
    pub directory: Vec<PathBuf>,
    /// One of its SQLite databases; may be given several times
    #[arg(long, value_name = "FILE", requires = "app")]
    pub sqlite: Vec<PathBuf>,
    /// The socket of a MariaDB server that it owns; may be given several times
    #[arg(long, value_name = "SOCKET", requires = "app")]
    pub mariadb: Vec<PathBuf>,
    /// One of its databases, if others use that server too; may be given several times
    #[arg(long, value_name = "NAME", requires = "mariadb")]
    pub database: Vec<String>,
    /// The systemd unit whose processes write its files
    #[arg(long, value_name = "UNIT", requires = "app", conflicts_with = "pid_file")]
    pub unit: Option<String>,
    /// The pid file of the process that writes its files
    #[arg(long, value_name = "FILE", requires = "app")]
    pub pid_file: Option<PathBuf>,
}

/// `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Applications by short name or relpath [default: all]
    #[arg(value_name = "APP")]
    pub applications: Vec<String>,
}

/// `backup`.
#[derive(Debug, Clone, Args)]
pub struct BackupArgs {
    /// Applications by short name or relpath [default: all]
    #[arg(value_name = "APP")]
    pub applications: Vec<String>,
    /// A word to find this backup by
    #[arg(long, value_name = "LABEL")]
    pub label: Option<String>,
    /// Print the very plan that would be executed, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Take the cut and let it go again: what it costs the writers is measured, and nothing is stored
    #[arg(long, conflicts_with_all = ["dry_run", "label"])]
    pub rehearse: bool,
}

/// `list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// An application by short name or relpath [default: all]
    #[arg(value_name = "APP")]
    pub application: Option<String>,
}

/// `show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// An application by short name or relpath
    #[arg(value_name = "APP")]
    pub application: String,
    /// A backup: the beginning of its id, its cut, or `latest`
    #[arg(value_name = "BACKUP", default_value = "latest")]
    pub backup: String,
}

/// `restore`.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("where").required(true).args(["to", "in_place", "before_statement"]).multiple(true)))]
pub struct RestoreArgs {
    /// An application by short name or relpath
    #[arg(value_name = "APP")]
    pub application: String,
    /// Which backup: the beginning of its id, its cut, or `latest`
    #[arg(long, value_name = "ID", default_value = "latest")]
    pub backup: String,
    /// As of this moment: 2026-11-20T14:30:00+01:00, or without an offset in this server's zone. The last backup before
    /// it, and what the log archive has since then; without an archive the backup as it is
    #[arg(long, value_name = "TIME", conflicts_with = "backup")]
    pub at: Option<String>,
    /// As of this transaction, which is included
    #[arg(long, value_name = "GTID", conflicts_with_all = ["backup", "at"])]
    pub at_gtid: Option<String>,
    /// Everything before this place of the binary log: `binlog.000042:1234`
    #[arg(long, value_name = "FILE:OFFSET", conflicts_with_all = ["backup", "at", "at_gtid"])]
    pub at_position: Option<String>,
    /// Show the statements around the moment, each with the command that stops just before it, and restore nothing
    #[arg(long, requires = "at")]
    pub before_statement: bool,
    /// Restore below this directory, which must be empty or missing
    #[arg(long, value_name = "DIR", conflicts_with = "in_place")]
    pub to: Option<PathBuf>,
    /// Restore to where it came from; what is there is kept until the restored is in place
    #[arg(long)]
    pub in_place: bool,
    /// Keep what was there before a restore in place, beside it
    #[arg(long, requires = "in_place")]
    pub keep_old: bool,
    /// Restore in place although the backup is known to lack something, which is lost then
    #[arg(long, requires = "in_place")]
    pub accept_incomplete: bool,
    /// Read everything back from the disk and compare it before the directory appears; in place this is always done
    #[arg(long)]
    pub read_back: bool,
    /// Do not read what is cloned from frozen copies that are kept of the backup: it takes a moment, and whether the disk
    /// still has in them what was stored is not known
    #[arg(long, requires = "to", conflicts_with_all = ["in_place", "read_back"])]
    pub trust_copies: bool,
    /// Do not ask before overwriting
    #[arg(long)]
    pub yes: bool,
    /// Print what would be done, and stop
    #[arg(long)]
    pub dry_run: bool,
}

/// `coverage`.
#[derive(Debug, Clone, Args)]
pub struct CoverageArgs {
    /// Applications by short name or relpath [default: all]
    #[arg(value_name = "APP")]
    pub applications: Vec<String>,
    /// Read every closed segment and compare it with its SHA-256, here and in the repository
    #[arg(long)]
    pub verify: bool,
    /// Draw it into this new file, too, for one application
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Applications by short name or relpath [default: all]
    #[arg(value_name = "APP")]
    pub applications: Vec<String>,
    /// Read every stored byte back, not only the structure
    #[arg(long)]
    pub read_data: bool,
    /// Open the newest backup: restore its databases beside, start them behind a fence, check every table
    #[arg(long)]
    pub open: bool,
}

/// Arguments of `log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Application by short name or relpath
    #[arg(value_name = "APP")]
    pub application: String,
}

/// `prune`.
#[derive(Debug, Clone, Args)]
pub struct PruneArgs {
    /// Applications by short name or relpath [default: all]
    #[arg(value_name = "APP")]
    pub applications: Vec<String>,
    /// Print what would be kept and removed, and why; remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Accept this backup although it looks wrong, so that it may displace others; may be given several times
    #[arg(long, value_name = "ID")]
    pub accept: Vec<String>,
}

/// `key`.
#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub action: KeyAction,
}

/// What to do with the key.
#[derive(Debug, Clone, Subcommand)]
pub enum KeyAction {
    /// Print a recovery sheet with the key, to keep away from this machine
    Show {
        /// Write it to this new file, readable by its owner only, instead of the terminal
        #[arg(long, value_name = "FILE")]
        sheet: Option<PathBuf>,
    },
    /// Type the last group of the key from the sheet, to show that you have it; `check` warns until then
    Confirm,
    /// Make a new key, admit it to every repository, then turn the old one away
    Change,
}

/// `completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}
