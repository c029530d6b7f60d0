//! A backup that goes easy on the machine: how fast it reads, how the kernel weighs its threads, and that it holds what
//! was there. Only a lower bound of time is asserted, which no load of the machine can make fail.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use common::{Site, below, start};
use rand::{RngCore, SeedableRng, rngs::StdRng};

const MIB: usize = 1 << 20;

/// Threads of a process that are in the idle class, as `ionice` says, and how nice they are.
fn idle_threads(pid: u32) -> Vec<(PathBuf, i64)> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let idle = threads.flatten().map(|entry| entry.path()).filter(|path| {
        let thread = path.file_name().expect("a number");
        let told = Command::new("ionice").arg("-p").arg(thread).output().expect("util-linux");
        String::from_utf8_lossy(&told.stdout).trim() == "idle"
    });
    idle.filter_map(|path| Some((path.clone(), nice(&path)?))).collect()
}

/// Field 19 of `stat`, proc(5), counted from behind the name.
fn nice(thread: &Path) -> Option<i64> {
    let stat = fs::read_to_string(thread.join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(16)?.parse().ok()
}

#[test]
fn a_limit_and_the_idle_class_are_kept_to() {
    let site = Site::new();
    fs::create_dir_all(site.app().join("small")).expect("directories");
    let mut bytes = vec![0; 35 * MIB];
    StdRng::seed_from_u64(7).fill_bytes(&mut bytes);
    let (large, small) = bytes.split_at(30 * MIB);
    fs::write(site.app().join("large"), large).expect("a file");
    for (n, part) in small.chunks(MIB / 8).enumerate() {
        fs::write(site.app().join("small").join(n.to_string()), part).expect("a file");
    }
    let sources = format!("[[application.directory]]\npath = \"{}\"\n", site.app().display());
    site.init(&format!("read_limit = \"10MiB/s\"\nio_class = \"idle\"\n{sources}"));
    let told = "at most 10.0 MiB of files a second, only when nobody else wants the disk";
    site.run(["plan"]).expect_status(0).expect_text(told);
    site.run(["backup", "--dry-run"]).expect_status(0).expect_text(told);

    let begun = Instant::now();
    let mut backup = start(site.command(["backup"]));
    let mut idle = Vec::new();
    while idle.is_empty() && backup.try_wait().expect("a child").is_none() {
        idle = idle_threads(backup.id());
    }
    assert!(backup.wait().expect("a child").success());
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(!idle.is_empty() && idle.iter().all(|(_, nice)| *nice == 19), "{idle:?}");
    let main = backup.id().to_string();
    assert!(
        idle.iter().all(|(path, _)| !path.ends_with(&main)),
        "whoever holds writers is not idle: {idle:?}"
    );

    let to = site.root().join("restored");
    site.run(["restore", "guestbook", "--to", to.to_str().expect("UTF-8")]).expect_status(0);
    let copy = below(&to, &site.app());
    assert!(fs::read(copy.join("large")).expect("restored") == large);
    let parts: Vec<u8> =
        (0..40).flat_map(|n| fs::read(copy.join(format!("small/{n}"))).expect("it")).collect();
    assert!(parts == small);
}
