//! Holding processes by ptrace and SIGSTOP, and platforms by hooks.

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use model::{
    plan::ProcessMethod,
    port::{FailureKind, Frozen, Hold, Journal},
    undo::Undo,
    verdict::Stillness,
};
use os::{
    clock::deadline_in,
    hold::{ProcessHold, StopHook},
    process::{alive, facts, signal},
};
use rustix::process::Signal;

use crate::scene::{LONG, Memory, Writer, eventually, hook, read, start, state_of, states};

pub const TESTS: &[(&str, fn())] = &[
    ("ptrace_holds_every_thread", ptrace_holds_every_thread),
    ("stop_holds_every_thread", stop_holds_every_thread),
    ("the_method_is_chosen_without_holding", the_method_is_chosen_without_holding),
    ("makers_of_threads_and_processes_are_held_whole", makers_are_held_whole),
    ("no_signal_is_lost", no_signal_is_lost),
    ("who_was_stopped_before_stays_stopped", who_was_stopped_before_stays_stopped),
    ("death_of_the_holder_lets_go", death_of_the_holder_lets_go),
    ("a_hold_that_cannot_be_had_leaves_nobody_stopped", a_hold_that_cannot_be_had),
    ("a_hold_ends_at_its_deadline", a_hold_ends_at_its_deadline),
    ("an_interrupted_hold_is_lost", an_interrupted_hold_is_lost),
    ("an_exit_status_is_left_to_the_parent", an_exit_status_is_left_to_the_parent),
    ("whoever_must_answer_is_not_held", whoever_must_answer_is_not_held),
    ("nobody_is_stopped_without_a_journal", nobody_is_stopped_without_a_journal),
    ("hooks_stop_and_start", hooks_stop_and_start),
    ("a_failing_stop_hook_is_followed_by_the_start_hook", a_failing_stop_hook),
    ("a_slow_stop_hook_is_ended_before_the_start_hook", a_slow_stop_hook),
    ("a_failing_start_hook_says_what_to_do", a_failing_start_hook),
];

fn hold(writer: &Writer, method: ProcessMethod, journal: &Arc<Memory>) -> ProcessHold {
    let journal: Arc<dyn Journal> = Arc::clone(journal) as Arc<dyn Journal>;
    ProcessHold::new(writer.selector(), method, [], journal)
}

fn freeze(hold: &mut dyn Hold, time: Duration) -> Box<dyn Frozen> {
    hold.freeze(deadline_in(time)).unwrap_or_else(|f| panic!("{}", f.in_full()))
}

fn proof(frozen: &mut Box<dyn Frozen>) -> String {
    match frozen.prove().unwrap_or_else(|f| panic!("{}", f.in_full())) {
        Stillness::WritersFrozen(how) => how,
        other => panic!("{other:?}"),
    }
}

fn lost(frozen: &mut Box<dyn Frozen>) -> bool {
    frozen.prove().is_err_and(|failure| failure.kind == FailureKind::Lost)
}

fn ptrace_holds_every_thread() {
    let writer = Writer::start("busy");
    let journal = Arc::new(Memory::default());
    let mut hold = hold(&writer, ProcessMethod::Ptrace, &journal);
    assert!(hold.prepare().unwrap().is_empty());
    let held = hold.held();
    for _ in 0..5 {
        let began = Instant::now();
        let mut frozen = freeze(&mut hold, LONG);
        println!("  held after {:.2?}", began.elapsed());
        assert_eq!(*held.lock().unwrap(), [writer.process()]);
        writer.assert_still_for(Duration::from_millis(200));
        let how = proof(&mut frozen);
        assert!(how.starts_with("9 threads of 1 process of "), "{how}");
        assert_eq!(journal.open.lock().unwrap().len(), 0, "the kernel ends it: nothing to undo");
        frozen.thaw().unwrap();
        assert!(held.lock().unwrap().is_empty());
        writer.assert_runs();
    }
}

fn stop_holds_every_thread() {
    let writer = Writer::start("busy");
    let journal = Arc::new(Memory::default());
    let mut hold = hold(&writer, ProcessMethod::Stop, &journal);
    let mut frozen = freeze(&mut hold, LONG);
    let undo = Undo::Continue { processes: vec![writer.process()] };
    assert_eq!(journal.open.lock().unwrap()[0].1, undo);
    writer.assert_still_for(Duration::from_millis(200));
    assert!(proof(&mut frozen).starts_with("9 threads of 1 process of "));
    frozen.thaw().unwrap();
    assert!(journal.open.lock().unwrap().is_empty());
    writer.assert_runs();
    drop(freeze(&mut hold, LONG));
    writer.assert_runs();
    assert!(journal.open.lock().unwrap().is_empty());
}

fn the_method_is_chosen_without_holding() {
    let writer = Writer::start("busy");
    let facts = facts(&writer.selector());
    assert_eq!(facts.pids, [writer.process().pid]);
    assert_eq!(facts.method, Some(ProcessMethod::Ptrace), "{}", facts.why);
    writer.assert_runs();
}

fn makers_are_held_whole() {
    for method in [ProcessMethod::Ptrace, ProcessMethod::Stop] {
        let writer = Writer::start("maker");
        let mut hold = hold(&writer, method, &Arc::default());
        for _ in 0..50 {
            let mut frozen = freeze(&mut hold, LONG);
            writer.assert_still_for(Duration::from_millis(5));
            proof(&mut frozen);
            frozen.thaw().unwrap();
            let before = writer.bytes().len();
            eventually("threads and processes are made again", || {
                let bytes = writer.bytes();
                bytes[before..].contains(&b't') && bytes[before..].contains(&b'p')
            });
        }
    }
}

fn no_signal_is_lost() {
    let writer = Writer::start("signalled");
    let mut hold = hold(&writer, ProcessMethod::Ptrace, &Arc::default());
    let pid = libc::pid_t::try_from(writer.process().pid).unwrap();
    // SAFETY: sends a signal to a child of ours.
    let send = move || assert_eq!(unsafe { libc::kill(pid, libc::SIGRTMIN()) }, 0);
    let sender = thread::spawn(move || {
        for _ in 0..2000 {
            send();
            thread::sleep(Duration::from_micros(100));
        }
    });
    while !sender.is_finished() {
        let frozen = freeze(&mut hold, LONG);
        writer.assert_still_for(Duration::from_millis(2));
        frozen.thaw().unwrap();
    }
    sender.join().unwrap();
    let frozen = freeze(&mut hold, LONG);
    send();
    thread::sleep(Duration::from_millis(20));
    frozen.thaw().unwrap();
    eventually("all 2001 signals are counted", || writer.bytes() == 2001_u64.to_le_bytes());
}

fn who_was_stopped_before_stays_stopped() {
    for method in [ProcessMethod::Ptrace, ProcessMethod::Stop] {
        let writer = Writer::start("busy");
        assert!(signal(writer.process(), Signal::STOP).unwrap());
        eventually("it is stopped", || states(writer.process()).iter().all(|(_, state)| *state == 'T'));
        let mut hold = hold(&writer, method, &Arc::default());
        let mut frozen = freeze(&mut hold, LONG);
        writer.assert_still_for(Duration::from_millis(20));
        proof(&mut frozen);
        frozen.thaw().unwrap();
        eventually("it is stopped again", || states(writer.process()).iter().all(|(_, state)| *state == 'T'));
        writer.assert_still_for(Duration::from_millis(50));
        assert!(signal(writer.process(), Signal::CONT).unwrap());
        writer.assert_runs();
    }
}

fn death_of_the_holder_lets_go() {
    let writer = Writer::start("busy");
    let mut holder = start("holder", &[writer.dir.path().join("pid").into()]);
    writer.assert_still_for(Duration::from_millis(100));
    holder.kill().unwrap();
    writer.assert_runs();
}

fn a_hold_that_cannot_be_had() {
    let writer = Writer::start("stuck");
    eventually("it waits in the kernel", || {
        state_of(writer.process().pid, writer.process().pid) == Some('D')
    });
    for method in [ProcessMethod::Ptrace, ProcessMethod::Stop] {
        let mut hold = hold(&writer, method, &Arc::default());
        let began = Instant::now();
        let failure = hold.freeze(deadline_in(Duration::from_millis(300))).err().expect("it cannot be held");
        assert_eq!(failure.kind, FailureKind::TimedOut, "{}", failure.in_full());
        assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
        let processes = os::process::find(&writer.selector()).unwrap();
        assert_eq!(processes.len(), 2);
        writer.assert_runs();
        for (tid, state) in processes.into_iter().flat_map(states) {
            assert!(!matches!(state, 'T' | 't'), "{tid} is in state {state}");
        }
    }
    for process in os::process::find(&writer.selector()).unwrap() {
        signal(process, Signal::KILL).unwrap();
    }
}

fn a_hold_ends_at_its_deadline() {
    let writer = Writer::start("busy");
    let mut hold = hold(&writer, ProcessMethod::Ptrace, &Arc::default());
    // A writer may be throttled in the kernel for a while on a busy disk before it can be held.
    let until = deadline_in(Duration::from_secs(2));
    let mut frozen = hold.freeze(until).unwrap_or_else(|f| panic!("{}", f.in_full()));
    writer.assert_still_for(Duration::from_millis(50));
    thread::sleep(os::clock::left(until) + Duration::from_millis(50));
    writer.assert_runs();
    assert!(lost(&mut frozen));
    frozen.thaw().unwrap();
    proof(&mut freeze(&mut hold, LONG));
}

fn an_interrupted_hold_is_lost() {
    let writer = Writer::start("busy");
    let mut stop = hold(&writer, ProcessMethod::Stop, &Arc::default());
    let mut frozen = freeze(&mut stop, LONG);
    assert!(signal(writer.process(), Signal::CONT).unwrap());
    assert!(lost(&mut frozen));
    frozen.thaw().unwrap();

    let mut ptrace = hold(&writer, ProcessMethod::Ptrace, &Arc::default());
    let mut frozen = freeze(&mut ptrace, LONG);
    proof(&mut frozen);
    assert!(signal(writer.process(), Signal::KILL).unwrap());
    eventually("it is lost", || lost(&mut frozen));
    frozen.thaw().unwrap();
}

fn an_exit_status_is_left_to_the_parent() {
    let mut writer = Writer::start("busy");
    let mut hold = hold(&writer, ProcessMethod::Ptrace, &Arc::default());
    let frozen = freeze(&mut hold, LONG);
    assert!(signal(writer.process(), Signal::KILL).unwrap());
    eventually("it has ended", || !alive(writer.process()));
    frozen.thaw().unwrap();
    let status = writer.child.wait(LONG).unwrap().expect("it has ended");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
}

fn whoever_must_answer_is_not_held() {
    let writer = Writer::start("busy");
    let mut of_writer = hold(&writer, ProcessMethod::Ptrace, &Arc::default());
    of_writer.add_exceptions([writer.process().pid]);
    assert_eq!(of_writer.prepare().unwrap_err().kind, FailureKind::Refused);
    assert_eq!(of_writer.freeze(deadline_in(LONG)).err().unwrap().kind, FailureKind::Refused);
    writer.assert_runs();

    for ours in [std::process::id(), std::os::unix::process::parent_id()] {
        fs::write(writer.dir.path().join("pid"), ours.to_string()).unwrap();
        let mut hold = hold(&writer, ProcessMethod::Stop, &Arc::default());
        assert_eq!(hold.freeze(deadline_in(LONG)).err().unwrap().kind, FailureKind::Refused);
    }
    fs::remove_file(writer.dir.path().join("pid")).unwrap();
    let failure = hold(&writer, ProcessMethod::Ptrace, &Arc::default()).prepare().unwrap_err();
    assert!(failure.what.ends_with("runs"), "{}", failure.in_full());
}

fn nobody_is_stopped_without_a_journal() {
    let writer = Writer::start("busy");
    let journal = Arc::new(Memory { broken: true, ..Memory::default() });
    let mut hold = hold(&writer, ProcessMethod::Stop, &journal);
    assert_eq!(hold.freeze(deadline_in(LONG)).err().unwrap().kind, FailureKind::NoSpace);
    writer.assert_runs();
}

struct Platform {
    dir: tempfile::TempDir,
    journal: Arc<Memory>,
}

impl Platform {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), journal: Arc::default() }
    }

    fn log(&self) -> String {
        read(&self.dir.path().join("log"))
    }

    fn hold(&self, stop: &str, start: &str) -> StopHook {
        let there = format!("cd {};", self.dir.path().display());
        let journal: Arc<dyn Journal> = Arc::clone(&self.journal) as Arc<dyn Journal>;
        StopHook::new(hook(&format!("{there} {stop}")), hook(&format!("{there} {start}")), journal)
    }
}

fn hooks_stop_and_start() {
    let platform = Platform::new();
    let mut hold = platform.hold("echo stop >>log", "echo start >>log");
    let mut frozen = freeze(&mut hold, LONG);
    assert_eq!(platform.log(), "stop\n");
    assert!(matches!(platform.journal.open.lock().unwrap()[0].1, Undo::Start { ends: None, .. }));
    proof(&mut frozen);
    frozen.thaw().unwrap();
    assert_eq!(platform.log(), "stop\nstart\n");
    drop(freeze(&mut hold, LONG));
    assert_eq!(platform.log(), "stop\nstart\nstop\nstart\n");
    assert!(platform.journal.open.lock().unwrap().is_empty());
}

fn a_failing_stop_hook() {
    let platform = Platform::new();
    let mut hold = platform.hold("echo half >>log; echo no such unit >&2; exit 5", "echo start >>log");
    let failure = hold.freeze(deadline_in(LONG)).err().unwrap();
    assert!(failure.what.ends_with("did not succeed: exit status: 5 (no such unit)"), "{}", failure.what);
    assert_eq!(platform.log(), "half\nstart\n");
    assert!(platform.journal.open.lock().unwrap().is_empty());
}

fn a_slow_stop_hook() {
    let platform = Platform::new();
    let stop = "trap 'echo ended >>log; exit 0' TERM; while :; do sleep 0.01; done";
    let mut stop = hook(&format!("cd {}; {stop}", platform.dir.path().display()));
    stop.timeout = Duration::from_millis(200);
    let start = hook(&format!("echo start >>{}/log", platform.dir.path().display()));
    let journal: Arc<dyn Journal> = Arc::clone(&platform.journal) as Arc<dyn Journal>;
    let failure = StopHook::new(stop, start, journal).freeze(deadline_in(LONG)).err().unwrap();
    assert!(!failure.is_transient(), "each attempt would stop the platform once more: {failure:?}");
    assert_eq!(platform.log(), "ended\nstart\n");
}

fn a_failing_start_hook() {
    let platform = Platform::new();
    let frozen = freeze(&mut platform.hold("true", "exit 9"), LONG);
    let failure = frozen.thaw().unwrap_err();
    let text = failure.in_full();
    assert!(text.contains("exit status: 9") && text.contains("start the platform by hand"), "{text}");
    assert_eq!(platform.journal.open.lock().unwrap().len(), 1, "it stays in the journal");
}
