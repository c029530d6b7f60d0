//! Many small files and one large one: memory stays bounded, and unchanged files are not opened again.
//! `STILLPOINT_FILES` and `STILLPOINT_LARGE_MIB` say how many and how large; `scripts/prove` runs the full
//! counts (100,000 files of 1.1 GB in all, and 2 GiB). Needs strace.
#![allow(clippy::print_stdout, reason = "figures and seeds are for whoever reads the test's output")]

mod common;

use std::{
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use common::{Site, children, count, make_guestbook};
use rand::{RngCore, SeedableRng, rngs::StdRng};

/// Peak memory allowed for the largest process, in MiB.
const PEAK_MIB: u64 = 300;

fn fill(site: &Site, files: u64, large_mib: u64) {
    let mut random = StdRng::seed_from_u64(11);
    let mut bytes = vec![0; 1 << 20];
    for number in 0..files {
        let dir = site.uploads().join(format!("{:03}", number % 500));
        if number < 500 {
            fs::create_dir(&dir).expect("a directory");
        }
        // 11 KB on average, of which a half compresses well.
        let size = 1 + (random.next_u32() as usize) % 22_000;
        random.fill_bytes(&mut bytes[..size / 2]);
        bytes[size / 2..size].fill(b'x');
        fs::write(dir.join(format!("{number:06}.txt")), &bytes[..size]).expect("a small file");
    }
    let mut large = fs::File::create(site.app().join("large.img")).expect("a large file");
    for _ in 0..large_mib {
        random.fill_bytes(&mut bytes);
        large.write_all(&bytes).expect("written");
    }
    large.sync_all().expect("synced");
}

/// Runs the program and tells the peak memory of its largest process in MiB, sampled from `/proc` for the
/// program and all its descendants (`VmHWM`, which never falls while a process lives).
fn peak_of(mut command: Command) -> u64 {
    let mut run = command.stdin(Stdio::null()).spawn().expect("it starts");
    let mut peak = 0;
    let status = loop {
        peak = peak.max(tree_peak(run.id()));
        if let Some(status) = run.try_wait().expect("a child") {
            break status;
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{status} {:?}", status.signal());
    peak / 1024
}

fn tree_peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    children(pid).into_iter().map(tree_peak).fold(own, u64::max)
}

/// Regular files below `app`, other than the database, that a trace with `-y` shows to have been opened: the
/// path stands behind the descriptor that the call returned.
fn opened(trace: &Path, app: &Path) -> Vec<String> {
    let text = fs::read_to_string(trace).expect("the trace");
    assert!(text.lines().any(|line| line.contains("guestbook.sqlite3")), "the trace shows what is opened");
    text.lines()
        .filter(|line| !line.contains("O_TMPFILE") && !line.contains("O_PATH"))
        .filter_map(|line| line.rsplit_once("= ")?.1.split_once('<')?.1.strip_suffix('>'))
        .filter(|path| Path::new(path).starts_with(app) && Path::new(path).is_file())
        .filter(|path| !path.contains("guestbook.sqlite3"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn memory_is_bounded_and_unchanged_files_are_not_opened() {
    let site = Site::new();
    make_guestbook(&site.database());
    let (files, large) = (count("STILLPOINT_FILES", 20_000), count("STILLPOINT_LARGE_MIB", 400));
    fill(&site, files, large);
    thread::sleep(Duration::from_millis(1100));
    site.init(&site.sources());

    let first = peak_of(site.command(["backup"]));
    println!("first backup of {files} files and {large} MiB: peak {first} MiB");
    let second = peak_of(site.command(["backup"]));
    println!("second backup, nothing changed: peak {second} MiB");
    assert!(first <= PEAK_MIB && second <= PEAK_MIB, "peaks {first} and {second} MiB");

    let trace = site.root().join("trace");
    let mut traced = Command::new("strace");
    traced.args(["-f", "--seccomp-bpf", "-y", "-e", "trace=open,openat,openat2", "-o"]).arg(&trace);
    traced.arg(env!("CARGO_BIN_EXE_stillpoint")).arg("--config").arg(site.config()).arg("backup");
    assert!(traced.status().expect("strace is installed").success());
    let opened = opened(&trace, &site.app());
    println!("third backup, traced: {} unchanged files opened", opened.len());
    assert_eq!(opened, Vec::<String>::new());

    site.restic(["check"]).expect_status(0);
}
