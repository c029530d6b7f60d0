//! Child processes that die with the test process.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    sync::{Mutex, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a command that the kernel kills when this process ends, however it ends.
///
/// The parent death signal of prctl(2) belongs to the *thread* that started the child, and tests run in threads
/// that end: so one thread that never ends starts them all. The command must be run through
/// `setpriv --pdeathsig KILL`.
pub(super) fn start(command: Command) -> std::io::Result<Child> {
    static STARTER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, taken) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in taken {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, answered) = mpsc::channel();
    starter.lock().expect("no panic under it").send((command, answer)).expect("the starter never ends");
    answered.recv().expect("the starter answers")
}

/// Runs a command to its end; its standard output, or what went wrong.
pub(super) fn run(command: &mut Command) -> super::Told<String> {
    let name = format!("{command:?}");
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name}: {}\n{}\n{}", output.status, tail(&text, 15), tail(&errors, 15)))
}

/// The last lines of a text.
pub(super) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Waits until something holds, and tells how long that took; `None` if it did not within `at_most`.
pub fn wait_until(at_most: Duration, mut holds: impl FnMut() -> bool) -> Option<Duration> {
    let start = Instant::now();
    loop {
        if holds() {
            return Some(start.elapsed());
        }
        if start.elapsed() > at_most {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The children of a process: field 4 of `/proc/[pid]/stat`, proc(5).
pub fn children(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    numbers.filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

/// A process and everything below it.
pub fn descendants(of: u32) -> Vec<u32> {
    let mut found = vec![of];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children(*pid));
        next += 1;
    }
    found
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// Lets the user `mysql` reach a path: adds `o+x` to those ancestors that are ours and lie below a temporary
/// directory (`/tmp`, or one named `tmp`), which `tempfile` makes private.
pub(super) fn open_the_way(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let below_tmp = |dir: &Path| dir.parent().is_some_and(|up| up.iter().any(|name| name == "tmp"));
    for dir in path.ancestors().filter(|dir| below_tmp(dir)) {
        let Ok(meta) = fs::metadata(dir) else { continue };
        let mode = meta.permissions().mode();
        if meta.is_dir() && mode & 0o001 == 0 {
            let _ = fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o011));
        }
    }
}
