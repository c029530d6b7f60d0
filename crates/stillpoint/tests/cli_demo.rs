//! `demo` in small: it proves its point, ends by itself and leaves nothing behind.

mod common;

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use common::Ran;

fn demo(dir: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stillpoint"));
    command.arg("demo").arg("--dir").arg(dir).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Processes that name this directory in their arguments.
fn processes_of(dir: &std::path::Path) -> Vec<String> {
    let dir = dir.display().to_string();
    fs::read_dir("/proc")
        .expect("proc")
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| line.contains(&dir))
        .collect()
}

fn nothing_is_left(dir: &std::path::Path) {
    assert_eq!(fs::read_dir(dir).expect("the directory").count(), 0, "files are left");
    let left: Vec<String> = (0..50)
        .map_while(|_| {
            let left = processes_of(dir);
            thread::sleep(Duration::from_millis(100));
            (!left.is_empty()).then_some(left)
        })
        .last()
        .unwrap_or_default();
    assert_eq!(processes_of(dir), Vec::<String>::new(), "they ran on: {left:?}");
}

#[test]
fn the_demo_proves_its_point_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = demo(dir.path(), &["--cuts", "4", "--writers", "2", "--json"]).output().expect("it starts");
    let ran = Ran(output);
    ran.expect_status(0);
    let report = ran.json();
    assert_eq!((&report["proven"], &report["mismatches_ours"]), (&true.into(), &0.into()), "{report}");
    let rounds = report["rounds"].as_array().expect("rounds");
    assert!(!rounds.is_empty() && rounds.len() <= 4);
    for round in rounds {
        assert_eq!(round["verdict"], "consistent");
        assert!(round["ours"]["rows"].as_u64().expect("rows") >= 200, "{round}");
        assert!(round["ours"]["most_in_flight"].as_u64().expect("files") <= 1, "{round}");
    }
    nothing_is_left(dir.path());
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let child = demo(dir.path(), &[]).spawn().expect("it starts");
    thread::sleep(Duration::from_secs(2));
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signalled");
    let ran = Ran(child.wait_with_output().expect("it ends"));
    ran.expect_status(1).expect_text("interrupted");
    nothing_is_left(dir.path());
}
