//! The command line as it is typed.
//!
//! Crash story: pure parsing, no effects.

mod args;
mod time;

use std::{env, path::PathBuf};

use clap::{Args, Parser, Subcommand};

pub use self::{
    args::{
        BackupArgs, CheckArgs, CompletionsArgs, CoverageArgs, DemoArgs, InitArgs, KeyAction, KeyArgs,
        ListArgs, LogArgs, PlanArgs, PruneArgs, RestoreArgs, ShowArgs,
    },
    time::parse_time,
};

/// Where the inventory is, unless told otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/stillpoint/stillpoint.toml";

/// Backups whose databases and files are of one instant.
///
/// Stillpoint holds everything that makes up an application (its databases, its files) still for
/// milliseconds, pins it, lets it go, and copies from the pins into deduplicated, encrypted repositories in
/// the restic format.
///
/// Begin with `stillpoint demo`, then `stillpoint init`.
#[derive(Debug, Parser)]
#[command(name = "stillpoint", version, max_term_width = 100, after_long_help = EXIT_STATUS)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the exit statuses mean.
pub const EXIT_STATUS: &str = "\
Exit status: 0 done; 1 failed; 2 usage or configuration; 3 stored but weaker than required (of several \
applications the worst counts); 10 no such repository; 11 locked by another run; 12 wrong password.";

/// What holds for every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The inventory: which applications there are and where backups go; without it $STILLPOINT_CONFIG, if set,
    /// names the file
    #[arg(long, global = true, value_name = "FILE", default_value_os_t = default_config())]
    pub config: PathBuf,
    /// One JSON object on standard output, progress as JSON lines on standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on standard error
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// A variable that is set but empty counts as not set.
fn default_config() -> PathBuf {
    let named = env::var_os("STILLPOINT_CONFIG").filter(|file| !file.is_empty());
    named.map_or_else(|| DEFAULT_CONFIG.into(), PathBuf::from)
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show it: a small guestbook under load, cut, restored and checked; needs no server and no root
    Demo(DemoArgs),
    /// Write a commented stillpoint.toml, make the key, create the repositories
    Init(InitArgs),
    /// Print what a backup would do, how, why, and the stall it predicts
    Plan(PlanArgs),
    /// Cut, store, verify, retain
    Backup(BackupArgs),
    /// List backups, newest last, with verdict, stall and size
    List(ListArgs),
    /// Archive the logs of an application's databases as they are written, until it is stopped (Ctrl-C)
    Log(LogArgs),
    /// Show the record of one backup: its cut, its evidence, its problems
    Show(ShowArgs),
    /// Show which moments can be restored, the holes with their cause, and how far the log archive is
    Coverage(CoverageArgs),
    /// Bring an application back: to a directory, or in place
    Restore(RestoreArgs),
    /// Check that every byte is there
    Check(CheckArgs),
    /// Remove what retention no longer keeps, with the reason for each backup kept
    Prune(PruneArgs),
    /// Show, confirm or change the key of the repositories
    Key(KeyArgs),
    /// Undo whatever a dead run left held, stopped or locked
    Thaw,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    Man,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command};

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_restore_needs_exactly_one_place() {
        assert!(Cli::try_parse_from(["stillpoint", "restore", "hydro"]).is_err());
        assert!(Cli::try_parse_from(["stillpoint", "restore", "hydro", "--to", "/x", "--in-place"]).is_err());
        let cli = Cli::try_parse_from(["stillpoint", "restore", "hydro", "--to", "/x", "--json"]).unwrap();
        assert!(cli.global.json);
        assert!(matches!(cli.command, Command::Restore(args) if args.backup == "latest" && !args.in_place));
    }
}
