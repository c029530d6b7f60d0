//! Commands against real shells.
//!
//! Crash story: tests; every child is ended by its guard or by its own timeout.

use std::{fs, time::Duration};

use model::undo::{Hook, ProcessRef};

use super::{Command, CommandError, GRACE, Helper, end_group, helper_role};
use crate::process;

fn sh(script: &str) -> Command {
    Command::new("/bin/sh").arg("-c").arg(script)
}

#[test]
fn status_and_both_outputs_come_back() {
    let outcome = sh("echo out; echo first >&2; echo last words >&2; exit 3").run().unwrap();
    assert_eq!(outcome.status.code(), Some(3));
    assert_eq!(outcome.stdout, b"out\n");
    assert!(!outcome.is_success() && !outcome.timed_out && !outcome.truncated);
    assert_eq!(outcome.in_short(), "exit status: 3 (last words)");
}

#[test]
fn the_end_of_a_long_output_is_kept() {
    let outcome = sh("yes | head -c 1000000; echo end").limit(100).run().unwrap();
    assert!(outcome.truncated);
    assert!(outcome.stdout.ends_with(b"y\nend\n"));
    assert_eq!(outcome.stdout.len(), 100);
}

#[test]
fn environment_and_directory_are_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = sh("printf '%s ' \"$COLOUR\"; pwd -P").env("COLOUR", "red").directory(&dir).run().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    assert_eq!(String::from_utf8(outcome.stdout).unwrap(), format!("red {}\n", path.display()));
}

#[test]
fn the_whole_group_ends_at_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = "trap '' TERM; sleep 100 & echo $! >>pids; sh -c 'trap \"\" TERM; while :; do sleep 1; done' & \
                  echo $! >>pids; wait; wait; sleep 100";
    let outcome = sh(script).directory(&dir).timeout(Duration::from_millis(300)).run().unwrap();
    assert!(outcome.timed_out && !outcome.is_success());
    let pids = fs::read_to_string(pids).unwrap();
    assert_eq!(pids.lines().count(), 2);
    for pid in pids.lines() {
        assert_eq!(process::process_ref(pid.parse().unwrap()), None, "process {pid} is left");
    }
}

#[test]
fn a_daemon_left_behind_is_neither_awaited_nor_ended() {
    let outcome = sh("sleep 100 & echo $!").timeout(Duration::from_secs(20)).run().unwrap();
    assert!(outcome.is_success());
    let pid: u32 = String::from_utf8(outcome.stdout).unwrap().trim().parse().unwrap();
    let daemon = process::process_ref(pid).expect("it runs on");
    assert!(process::signal(daemon, rustix::process::Signal::KILL).unwrap());
}

#[test]
fn a_missing_program_is_named() {
    let error = Command::new("/no/such/program").run().unwrap_err();
    assert_eq!(error.to_string(), "cannot start /no/such/program");
    assert!(matches!(error, CommandError::Start { .. }));
}

#[test]
fn a_gated_hook_begins_at_the_gate_or_never() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("began");
    let hook = Hook { run: format!("echo $$ >{}", file.display()), timeout: Duration::from_secs(10) };

    drop(Command::gated_hook(&hook).start().unwrap());
    assert!(!file.exists(), "it began without the gate");

    let mut running = Command::gated_hook(&hook).start().unwrap();
    let process = running.process();
    std::thread::sleep(Duration::from_millis(50));
    assert!(!file.exists(), "it began before the gate opened");
    running.open_gate().unwrap();
    assert!(running.wait().unwrap().is_success());
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), process.pid.to_string());
}

#[test]
fn members_of_a_hook_are_known_by_their_mark_when_the_leader_has_ended() {
    let hook = Hook { run: "sleep 100 & echo $!".into(), timeout: Duration::from_secs(10) };
    let mut running = Command::gated_hook(&hook).start().unwrap();
    let leader = running.process();
    running.open_gate().unwrap();
    let outcome = running.wait().unwrap();
    let pid: u32 = String::from_utf8(outcome.stdout).unwrap().trim().parse().unwrap();
    let left = process::process_ref(pid).expect("it runs on");

    end_group(ProcessRef { start: leader.start + 1, ..leader }, GRACE).unwrap();
    assert!(process::alive(left), "another group's member was ended");
    end_group(leader, GRACE).unwrap();
    assert!(!process::alive(left));
}

#[test]
fn a_helper_answers_lines_and_ends_with_its_input() {
    let script = "while read -r line; do echo \"\\\"got $line\\\"\"; done; echo over >&2";
    let helper = Helper { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] };
    let mut child = helper.spawn("echo", &[]).unwrap();
    child.send(&7).unwrap();
    assert_eq!(child.receive::<String>(Duration::from_secs(10)).unwrap(), "got 7");
    let silent = child.receive::<String>(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(silent, CommandError::HelperSilent { .. }), "{silent}");
    assert_eq!(child.wait(Duration::from_millis(20)).unwrap(), None);
    let process = child.process();
    assert!(process::alive(process));
    drop(child);
    assert!(!process::alive(process));
}

#[test]
fn the_last_words_of_a_helper_are_in_the_error() {
    let helper =
        Helper { program: "/bin/sh".into(), args: vec!["-c".into(), "echo alas >&2; exit 1".into()] };
    let mut child = helper.spawn("role", &[]).unwrap();
    let error = child.receive::<String>(Duration::from_secs(10)).unwrap_err();
    assert_eq!(error.to_string(), "the helper role ended unexpectedly, saying \"alas\"");
}

#[test]
fn helper_arguments_are_told_from_others() {
    let args: Vec<_> = ["__helper", "watchdog", "log"].map(Into::into).to_vec();
    let (role, rest) = helper_role(&args).unwrap();
    assert_eq!((role.to_str(), rest.len()), (Some("watchdog"), 1));
    assert_eq!(helper_role(&args[1..]), None);
}

#[test]
fn files_are_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::write(&from, "some text").unwrap();
    let copy = Command::tool("cat").reads(&from).writes(&to);
    assert!(copy.run().unwrap().is_success());
    assert_eq!(std::fs::read_to_string(&to).unwrap(), "some text");
    let error = copy.run().unwrap_err();
    assert!(matches!(error, CommandError::File { .. }), "what is there is not overwritten: {error}");
}

#[test]
fn a_gated_program_begins_when_it_is_told_and_keeps_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    std::fs::write(&from, "x").unwrap();
    let mut running = sh("cat; echo $$").reads(&from).gated().start().unwrap();
    assert!(!running.ends_within(Duration::from_millis(50)).unwrap());
    let process = running.process();
    running.open_gate().unwrap();
    assert!(running.ends_within(Duration::from_secs(10)).unwrap());
    let outcome = running.wait().unwrap();
    assert_eq!(String::from_utf8(outcome.stdout).unwrap(), format!("x{}\n", process.pid));
}
