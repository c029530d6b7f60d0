//! Servers that were restored to a directory: made such that a server opens them there, with an option file for it.
//!
//! Crash story: the restore is complete and verified before; whatever fails here is a problem of its report, and the
//! copy can be settled by restoring again.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, chown},
    path::{Path, PathBuf},
};

use engines::server::open::{ServerCopy, option_file};
use model::{
    pathtext,
    port::{Failure, FailureKind, Progress},
    problem::{Effect, Problem},
    restore::{Request, RestoreReport},
    server::{ServerForm, ServerRecord},
};
use os::{durable, staging::Staging};

use crate::wire::{
    recover::{Ready, Roll},
    run::Run,
    served,
};

/// The longest path of a socket, `sun_path` of unix(7) with its final zero.
const LONGEST_SOCKET: usize = 107;

/// Settles every server below `dir`, and says in the report how each is opened or loaded.
pub(super) fn settle(
    run: &Run<'_>,
    request: &Request,
    dir: &Path,
    logs: &Ready,
    progress: &dyn Progress,
    report: &mut RestoreReport,
) {
    for (number, server) in request.servers.iter().enumerate() {
        let record = &server.record;
        if record.form == ServerForm::Dump {
            let root = record.beside.as_deref().map(|beside| below(dir, beside)).unwrap_or_default();
            let next = format!("the dump of {} is in {}", record.source, pathtext::show(&root));
            report.next.push(next);
            continue;
        }
        match settle_one(run, record, dir, number, logs.roll(&record.source, progress)) {
            Ok(lines) => report.next.extend(lines),
            Err(failure) => {
                let what = format!(
                    "its files are restored, but no server should be started on them: {}",
                    failure.in_full()
                );
                report.problems.push(Problem::new(Effect::Missing, None, what, "").of(&record.source));
            }
        }
    }
}

/// Puts SQLite databases of the moment in the place of those of the backup.
pub(super) fn put_databases(dir: &Path, logs: &Ready, report: &mut RestoreReport) {
    for wal in logs.wals() {
        report.problems.push(wal.put(&below(dir, &wal.path())).unwrap_or_else(|failure| {
            let what = format!("it is as of the backup, not of the moment: {}", failure.in_full());
            Problem::new(Effect::Missing, None, what, "").of(&wal.source)
        }));
    }
}

fn settle_one(
    run: &Run<'_>,
    record: &ServerRecord,
    dir: &Path,
    number: usize,
    roll: Option<Roll<'_>>,
) -> Result<Vec<String>, Failure> {
    let copy = ServerCopy::new(dir, record.clone())?;
    let staging: Staging = super::staging(run, "open")?;
    let done = served::finish_copy(&copy, &|path| below(dir, path), &run.journal(), staging.path(), roll)?;
    staging.release()?;
    let name = match number {
        0 => "stillpoint-mariadb.cnf".to_owned(),
        more => format!("stillpoint-mariadb-{}.cnf", more + 1),
    };
    let file = dir.join(&name);
    let runs = run_directory(dir, number, copy.owner()?).map_err(|error| failed(dir, error))?;
    let text = option_file(&copy, &runs)?;
    write(&file, &text).map_err(|error| failed(&file, error))?;
    let shown = pathtext::show(&file);
    let mut lines: Vec<String> = done.map(|done| format!("{}: {done}", record.source)).into_iter().collect();
    lines.push(format!(
        "open the copy of {} by itself, as root: mariadbd --defaults-file={shown}",
        record.source
    ));
    lines.push(format!("then: mariadb --socket={}", pathtext::show(&runs.join("socket"))));
    lines
        .push(format!("it has no network, replication and events until the last part of {shown} is removed"));
    Ok(lines)
}

/// Where its socket and its log will be. The server's account owns the whole directory, so that it can reach its files
/// and nobody else can.
fn run_directory(dir: &Path, number: usize, owner: (u32, u32)) -> io::Result<PathBuf> {
    let mut runs = dir.join(format!("stillpoint-run-{number}"));
    if runs.join("socket").as_os_str().len() > LONGEST_SOCKET {
        runs = os::staging::new_name(Path::new("/tmp"), "run")?;
    }
    durable::create_dirs(&runs, 0o700)?;
    if rustix::process::geteuid().is_root() {
        for path in [dir, &runs] {
            chown(path, Some(owner.0), Some(owner.1))?;
        }
    }
    Ok(runs)
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()
}

fn failed(path: &Path, error: io::Error) -> Failure {
    Failure::new(FailureKind::Other, format!("{} cannot be written", pathtext::show(path)), "").because(error)
}

fn below(dir: &Path, path: &Path) -> PathBuf {
    dir.join(path.strip_prefix("/").unwrap_or(path))
}
