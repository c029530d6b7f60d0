//! The watchdog, and the death of those whom it guards.

use std::{fs, thread, time::Duration};

use model::undo::{ProcessRef, Ticket, Undo};
use os::{
    clock::deadline_in,
    command::{Helper, HelperChild},
    process::{alive, process_ref, signal},
    watchdog::Watchdog,
};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::scene::{LONG, Writer, eventually, hook, read, start, states, within};

pub const TESTS: &[(&str, fn())] = &[
    ("death_of_the_run_continues_and_starts", death_of_the_run_continues_and_starts),
    ("death_of_the_whole_process_group_does_too", death_of_the_whole_process_group),
    ("a_running_stop_hook_is_ended_first", a_running_stop_hook_is_ended_first),
    ("a_deadline_is_kept_though_the_run_lives", a_deadline_is_kept),
    ("a_long_start_hook_delays_no_other_deadline", a_long_start_hook_delays_no_other),
    ("terminating_signals_are_not_noticed_nor_handed_on", terminating_signals),
    ("what_is_done_is_not_undone", what_is_done_is_not_undone),
    ("a_dead_watchdog_is_noticed", a_dead_watchdog_is_noticed),
];

fn is_stopped(process: ProcessRef) -> bool {
    states(process).iter().all(|(_, state)| *state == 'T')
}

/// A run that has stopped the writer, and the id of its watchdog.
fn stopper(writer: &Writer) -> (HelperChild, ProcessRef) {
    let args = [writer.process().pid.to_string().into(), writer.dir.path().into()];
    let mut run = Helper::this_program().spawn("stopper", &args).unwrap();
    let watchdog = process_ref(run.receive(LONG).unwrap()).unwrap();
    eventually("it is stopped", || is_stopped(writer.process()));
    (run, watchdog)
}

fn death_of_the_run_continues_and_starts() {
    let writer = Writer::start("busy");
    let (mut run, watchdog) = stopper(&writer);
    run.kill().unwrap();
    within(Duration::from_secs(1), "writers run again", || !is_stopped(writer.process()));
    let log = writer.dir.path().join("log");
    within(Duration::from_secs(1), "the start hook has run", || read(&log) == "started\n");
    eventually("the watchdog ends", || !alive(watchdog));
    let told = read(&writer.dir.path().join("watchdog.log"));
    let (first, last) = (told.find("Continue").unwrap(), told.find("Start").unwrap());
    assert!(first < last, "{told}");
    writer.assert_runs();
}

fn death_of_the_whole_process_group() {
    let writer = Writer::start("busy");
    let (run, watchdog) = stopper(&writer);
    let group = Pid::from_raw(i32::try_from(run.process().pid).unwrap()).unwrap();
    kill_process_group(group, Signal::KILL).unwrap();
    within(Duration::from_secs(1), "writers run again", || !is_stopped(writer.process()));
    let log = writer.dir.path().join("log");
    within(Duration::from_secs(1), "the start hook has run", || read(&log) == "started\n");
    eventually("the watchdog ends", || !alive(watchdog));
}

fn a_running_stop_hook_is_ended_first() {
    let dir = tempfile::tempdir().unwrap();
    let (log, stopping) = (dir.path().join("log"), dir.path().join("stopping"));
    let mut run = start("hooker", &[dir.path().into()]);
    eventually("the stop hook runs", || stopping.exists());
    let stop_hook = process_ref(read(&stopping).trim().parse().unwrap()).unwrap();
    thread::sleep(Duration::from_millis(50));
    run.kill().unwrap();
    within(Duration::from_secs(1), "the start hook has run", || read(&log).contains("started"));
    assert_eq!(read(&log), "ended\nstarted\n");
    assert!(!alive(stop_hook));
}

fn a_deadline_is_kept() {
    let writer = Writer::start("busy");
    let watchdog = Watchdog::spawn(&Helper::this_program()).unwrap();
    let undo = Undo::Continue { processes: vec![writer.process()] };
    watchdog.intend(Ticket(7), &undo, Some(deadline_in(Duration::from_millis(300)))).unwrap();
    assert!(signal(writer.process(), Signal::STOP).unwrap());
    eventually("it is stopped", || is_stopped(writer.process()));
    assert_eq!(watchdog.undone(), []);
    within(Duration::from_secs(1), "it runs at the deadline", || !is_stopped(writer.process()));
    let mut undone = Vec::new();
    eventually("it is reported", || {
        undone.extend(watchdog.undone());
        !undone.is_empty()
    });
    assert_eq!((undone[0].ticket, &undone[0].error), (Ticket(7), &None));
    writer.assert_runs();
    watchdog.done(Ticket(7)).unwrap();
    watchdog.dismiss().unwrap();
}

fn a_long_start_hook_delays_no_other() {
    let writer = Writer::start("busy");
    let watchdog = Watchdog::spawn(&Helper::this_program()).unwrap();
    let begun = writer.dir.path().join("begun");
    let start = hook(&format!("touch {}; sleep 3", begun.display()));
    watchdog
        .intend(Ticket(1), &Undo::Start { start, ends: None }, Some(deadline_in(Duration::ZERO)))
        .unwrap();
    eventually("the start hook has begun", || begun.exists());
    let undo = Undo::Continue { processes: vec![writer.process()] };
    watchdog.intend(Ticket(2), &undo, Some(deadline_in(Duration::from_millis(200)))).unwrap();
    assert!(signal(writer.process(), Signal::STOP).unwrap());
    eventually("it is stopped", || is_stopped(writer.process()));
    within(Duration::from_secs(1), "it runs at the deadline", || !is_stopped(writer.process()));
    watchdog.done(Ticket(1)).unwrap();
    watchdog.done(Ticket(2)).unwrap();
    watchdog.dismiss().unwrap();
}

fn terminating_signals() {
    let dir = tempfile::tempdir().unwrap();
    let watchdog = Watchdog::spawn(&Helper::this_program()).unwrap();
    for each in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        assert!(signal(watchdog.process(), each).unwrap());
    }
    thread::sleep(Duration::from_millis(50));
    let ignored = dir.path().join("ignored");
    let start = hook(&format!("grep SigIgn /proc/self/status >{0}.tmp; mv {0}.tmp {0}", ignored.display()));
    watchdog.intend(Ticket(1), &Undo::Start { start, ends: None }, None).unwrap();
    let process = Pid::from_raw(i32::try_from(watchdog.process().pid).unwrap()).unwrap();
    assert_eq!(rustix::process::getsid(Some(process)).unwrap(), process, "it leads a session of its own");
    drop(watchdog);
    eventually("the start hook has run", || ignored.exists());
    let mask = read(&ignored);
    let mask = u64::from_str_radix(mask.trim_start_matches("SigIgn:").trim(), 16).unwrap();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        assert_eq!(mask & (1 << (signal - 1)), 0, "a daemon would ignore signal {signal}");
    }
}

fn what_is_done_is_not_undone() {
    let dir = tempfile::tempdir().unwrap();
    let lock = dir.path().join("locks").join("x");
    fs::create_dir(dir.path().join("locks")).unwrap();
    fs::write(&lock, "").unwrap();
    let undo = Undo::RemoveLock { path: lock.clone() };

    let watchdog = Watchdog::spawn(&Helper::this_program()).unwrap();
    watchdog.intend(Ticket(1), &undo, None).unwrap();
    watchdog.intend(Ticket(1), &undo, None).unwrap_err();
    watchdog.done(Ticket(1)).unwrap();
    watchdog.intend(Ticket(2), &Undo::RemoveTree { path: dir.path().join("locks") }, None).unwrap();
    watchdog.dismiss().unwrap();
    assert!(lock.exists());

    let watchdog = Watchdog::spawn(&Helper::this_program()).unwrap();
    watchdog.intend(Ticket(1), &undo, None).unwrap();
    let error = watchdog.dismiss().unwrap_err();
    assert!(error.to_string().contains("1 of the holds"), "{error}");
    eventually("what is open is undone", || !lock.exists());
}

fn a_dead_watchdog_is_noticed() {
    let watchdog = Watchdog::spawn(&Helper::this_program()).unwrap();
    assert!(signal(watchdog.process(), Signal::KILL).unwrap());
    let undo = Undo::RemoveLock { path: "/nowhere/locks/x".into() };
    eventually("it is dead", || !alive(watchdog.process()));
    watchdog.intend(Ticket(1), &undo, None).unwrap_err();

    let missing = Helper { program: "/no/such/program".into(), args: vec![] };
    assert!(Watchdog::spawn(&missing).is_err());
}
