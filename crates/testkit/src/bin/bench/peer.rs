//! The tools that back up into repositories of their own, and what a run of one costs.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use super::options::Options;

const PASSWORD: &str = "bench";

/// Who is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// It keeps the pin of the last backup and compares extents.
    Stillpoint,
    /// The same repository, and restoring does not read what the pin has.
    StillpointTrusting,
    /// It reads what may have changed.
    StillpointReading,
    Restic,
    Borg,
    Rustic,
}

/// In the order in which they run.
pub const ALL: [Tool; 5] =
    [Tool::Stillpoint, Tool::StillpointReading, Tool::Restic, Tool::Borg, Tool::Rustic];

/// What one run cost: seconds, seconds, megabytes, megabytes.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    pub wall: f64,
    pub processor: f64,
    pub memory: f64,
    pub added: f64,
}

impl Ran {
    /// Only the size of what is kept.
    pub fn kept(repository: impl AsRef<Path>) -> Self {
        Self { wall: f64::NAN, processor: f64::NAN, memory: f64::NAN, added: megabytes(repository.as_ref()) }
    }
}

impl Tool {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stillpoint => "stillpoint",
            Self::StillpointTrusting => "stillpoint, copies trusted",
            Self::StillpointReading => "stillpoint, no pin kept",
            Self::Restic => "restic",
            Self::Borg => "borg",
            Self::Rustic => "rustic",
        }
    }

    /// Whether it is one of those that are asked for by name, or none are.
    pub fn is_among(self, only: &[String]) -> bool {
        only.is_empty() || only.iter().any(|name| self.name() == name)
    }

    /// Whose repository it restores from.
    pub fn owner(self) -> Self {
        if self == Self::StillpointTrusting { Self::Stillpoint } else { self }
    }

    /// Whether it is one of ours.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Stillpoint | Self::StillpointTrusting | Self::StillpointReading)
    }

    /// Makes a repository, for these data.
    pub fn init(self, options: &Options, repository: &Path, data: &Path) {
        fs::create_dir_all(repository).expect("a directory");
        if self.is_ours() {
            inventory(repository, data, self == Self::Stillpoint);
        }
        let arguments: &[&str] = match self {
            Self::Stillpoint | Self::StillpointTrusting | Self::StillpointReading | Self::Rustic => &["init"],
            Self::Restic => &["--quiet", "init"],
            Self::Borg => &["init", "--encryption=repokey"],
        };
        let mut command = self.command(options, repository);
        command.args(arguments);
        if self == Self::Borg {
            command.arg(repository);
        }
        measured(&mut command, repository);
    }

    /// Backs up a directory.
    pub fn backup(self, options: &Options, repository: &Path, data: &Path) -> Ran {
        let mut command = self.command(options, repository);
        match self {
            Self::Stillpoint | Self::StillpointTrusting | Self::StillpointReading => command.arg("backup"),
            Self::Restic => command.args(["--quiet", "backup"]).arg(data),
            Self::Rustic => command.arg("backup").arg(data),
            Self::Borg => {
                let archive = format!("{}::{{now:%s.%f}}", repository.display());
                command.args(["create", "--compression=zstd", &archive]).arg(data)
            }
        };
        let before = megabytes(repository);
        let ran = measured(&mut command, repository);
        Ran { added: megabytes(repository) - before, ..ran }
    }

    /// Restores the newest backup to a directory, which is not there.
    pub fn restore(self, options: &Options, repository: &Path, out: &Path) -> Ran {
        let mut command = self.command(options, repository);
        match self {
            Self::Stillpoint | Self::StillpointReading => command.args(["restore", "shop", "--to"]).arg(out),
            Self::StillpointTrusting => command.args(["restore", "shop", "--trust-copies", "--to"]).arg(out),
            Self::Restic => command.args(["--quiet", "restore", "latest", "--target"]).arg(out),
            Self::Rustic => command.args(["restore", "latest"]).arg(out),
            Self::Borg => {
                fs::create_dir(out).expect("a directory");
                let newest = newest_of_borg(options, repository);
                command.current_dir(out).arg("extract").arg(format!("{}::{newest}", repository.display()))
            }
        };
        let ran = measured(&mut command, out.parent().expect("a directory"));
        Ran { added: f64::NAN, ..ran }
    }

    /// The program with its repository and its password, counted by time(1).
    fn command(self, options: &Options, repository: &Path) -> Command {
        let mut command = Command::new("/usr/bin/time");
        command.args(["--format", "%U %S %M", "--output"]).arg(counted(repository));
        command
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("BORG_PASSPHRASE", PASSWORD)
            .env("RUSTIC_PASSWORD", PASSWORD);
        match self {
            Self::Stillpoint | Self::StillpointTrusting | Self::StillpointReading => {
                let program = options.program.canonicalize().expect("the program is built");
                command.arg(program).arg("--config").arg(repository.join("stillpoint.toml"))
            }
            Self::Restic => command.arg("restic").arg("--repo").arg(repository),
            Self::Rustic => {
                let program = options.rustic.canonicalize().expect("rustic is built, see scripts/bench");
                command.arg(program).arg("--repository").arg(repository)
            }
            Self::Borg => command.arg("borg"),
        };
        command
    }
}

fn newest_of_borg(options: &Options, repository: &Path) -> String {
    let mut command = Tool::Borg.command(options, repository);
    let listed = command.args(["list", "--short", "--last=1"]).arg(repository).output().expect("borg runs");
    String::from_utf8_lossy(&listed.stdout).trim().to_owned()
}

/// Where time(1) writes.
fn counted(repository: &Path) -> std::path::PathBuf {
    repository.with_extension("counted")
}

/// Runs it, and waits until all it wrote near there is on disk.
fn measured(command: &mut Command, near: &Path) -> Ran {
    let disk = File::open(near).expect("a directory");
    rustix::fs::syncfs(&disk).expect("it is synced");
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("the tool is installed");
    rustix::fs::syncfs(&disk).expect("it is synced");
    let wall = begun.elapsed().as_secs_f64();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, super::scene::text(&output));
    let counted =
        command.get_args().nth(3).map(fs::read_to_string).expect("an argument").expect("it was counted");
    let words: Vec<f64> = counted.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [user, system, kilobytes] = words[..] else { panic!("time(1) said {counted:?}") };
    Ran { wall, processor: user + system, memory: kilobytes * 1024.0 / 1e6, added: f64::NAN }
}

/// The inventory of a site whose only application has these data.
fn inventory(repository: &Path, data: &Path, keeps_pin: bool) {
    let text = format!(
        "server = \"bench\"\npartition = \"{0}/backup\"\npassword_file = \"{0}/password\"\n\n[defaults]\nstall_budget = \
         \"10m\"\nchanged_extents_only = {keeps_pin}\nkeep = {{ last = 1000 }}\n\n[[application]]\nname = \"shop\"\nrelpath = \
         \"bench/shop\"\n[[application.directory]]\npath = \"{1}\"\n",
        repository.display(),
        data.display()
    );
    let path = repository.join("stillpoint.toml");
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is private");
}

/// Without pins, which share their extents with the data.
fn megabytes(below: &Path) -> f64 {
    let arguments = ["-s", "--block-size=1000", "--exclude=.stillpoint-*", &below.to_string_lossy()];
    let said = super::machine::said("du", &arguments);
    let kilobytes: f64 = said.split_whitespace().next().and_then(|word| word.parse().ok()).expect("du tells");
    kilobytes / 1000.0
}
