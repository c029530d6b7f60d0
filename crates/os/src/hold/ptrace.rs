//! Holding processes by ptrace: every thread of every process is seized and interrupted.
//!
//! ptrace(2) binds a traced thread to the thread that traces it, so one thread of ours, the tracer, does it
//! all; the guard talks to it.
//!
//! Crash story: the kernel lets everybody go when the tracer ends, however it ends, and hands on the signals
//! that were about to be taken; so nothing is journalled. The tracer lets go by itself when its time is over
//! or when the guard is gone. Those who were known before are seized without looking for others first; threads
//! and children that are born meanwhile are traced from birth if their maker was seized before, and found by
//! one look if it was not: the set is complete when all known are stopped and a look begun after that finds
//! nobody new. A look at all processes of the machine is the most expensive thing here. While an ordinary user seizes (not root), a
//! set-user-id program started in just these microseconds would run without its privileges.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use model::{
    port::{Failure, FailureKind, Frozen},
    time::Deadline,
    undo::ProcessRef,
    verdict::Stillness,
};

use super::{
    HeldList,
    targets::{Targets, describe_thread},
    trace::{self, Stop},
};
use crate::{
    clock::{deadline_in, left},
    process::{self, facts::tracer_of, stat},
};

const STEP: Duration = Duration::from_micros(50);

/// How long a try may take at the least, before all are let go and it is tried again: a thread that waits in
/// the kernel for another that is stopped already can only get on then.
const SHORTEST_TRY: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_millis(2);

/// How long threads that did not stop in time are waited for, so that none is let go only by the tracer's end.
const LETTING_GO: Duration = Duration::from_millis(20);

enum Ask {
    Prove(Sender<Result<Stillness, Failure>>),
    Thaw(Sender<Result<(), Failure>>),
}

/// Processes held by ptrace.
pub(super) struct Traced {
    asks: Sender<Ask>,
    tracer: Option<JoinHandle<()>>,
    _held: HeldList,
}

/// Holds them, until thawed or until the deadline. Who is `known` to be among them is seized first.
pub(super) fn hold(
    targets: Targets,
    known: Vec<ProcessRef>,
    until: Deadline,
    mut held: HeldList,
) -> Result<Box<dyn Frozen>, Failure> {
    let (asks, receiver) = channel();
    let (ready, answer) = channel();
    let tracer = thread::Builder::new()
        .name("tracer".to_owned())
        .spawn(move || serve(targets, &known, until, &ready, &receiver))
        .map_err(|error| Failure::new(FailureKind::Other, "cannot start a thread", "").because(error))?;
    // From here on the drop lets go.
    let answered = answer.recv();
    let traced = |held| Traced { asks, tracer: Some(tracer), _held: held };
    match answered {
        Ok(Ok(processes)) => {
            held.fill(processes);
            Ok(Box::new(traced(held)))
        }
        Ok(Err(failure)) => {
            drop(traced(held));
            Err(failure)
        }
        Err(_) => {
            drop(traced(held));
            Err(lost("the tracer ended"))
        }
    }
}

fn lost(what: &str) -> Failure {
    Failure::new(FailureKind::Lost, what, "")
}

impl Traced {
    fn ask<T>(&self, ask: impl FnOnce(Sender<Result<T, Failure>>) -> Ask) -> Result<T, Failure> {
        let (sender, answer) = channel();
        self.asks.send(ask(sender)).map_err(|_| lost("the tracer has ended"))?;
        answer.recv().map_err(|_| lost("the tracer has ended"))?
    }

    fn end(&mut self) -> Result<(), Failure> {
        let Some(tracer) = self.tracer.take() else { return Ok(()) };
        let thawed = self.ask(Ask::Thaw);
        // Whatever happened to it, with its end the kernel lets everybody go.
        if tracer.join().is_err() {
            tracing::error!("the tracer panicked; the kernel let go whom it held");
            return Ok(());
        }
        match thawed {
            Err(failure) if failure.kind == FailureKind::Lost => Ok(()),
            other => other,
        }
    }
}

impl Frozen for Traced {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        self.ask(Ask::Prove)
    }

    fn thaw(mut self: Box<Self>) -> Result<(), Failure> {
        self.end()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            tracing::error!("{}", failure.in_full());
        }
    }
}

/// The tracer's life.
fn serve(
    targets: Targets,
    known: &[ProcessRef],
    until: Deadline,
    ready: &Sender<Result<BTreeSet<ProcessRef>, Failure>>,
    asks: &Receiver<Ask>,
) {
    let mut tracees = Tracees { targets, threads: BTreeMap::new(), me: own_tid() };
    let held = tracees.hold_in_tries(known, until);
    let failed = held.is_err();
    // A guard that is gone already is noticed by the next receive.
    let _ = ready.send(held.map(|()| tracees.processes()));
    if failed {
        return;
    }
    let mut expired = false;
    loop {
        let asked = if expired {
            asks.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            asks.recv_timeout(left(until))
        };
        // Who asked and does not wait for the answer does not need it.
        match asked {
            Ok(Ask::Prove(answer)) if expired => {
                let _ = answer.send(Err(lost("the processes were let go at the deadline")));
            }
            Ok(Ask::Prove(answer)) => {
                let _ = answer.send(tracees.prove());
            }
            Ok(Ask::Thaw(answer)) => {
                let _ = answer.send(tracees.let_go());
                return;
            }
            Err(RecvTimeoutError::Timeout) => {
                expired = true;
                if let Err(failure) = tracees.let_go() {
                    tracing::error!("{}", failure.in_full());
                    return;
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                if let Err(failure) = tracees.let_go() {
                    tracing::error!("{}", failure.in_full());
                }
                return;
            }
        }
    }
}

fn own_tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

/// The threads that this thread traces. Used by the tracer only.
struct Tracees {
    targets: Targets,
    threads: BTreeMap<u32, Tracee>,
    me: u32,
}

#[derive(Debug, Clone, Copy)]
struct Tracee {
    process: ProcessRef,
    stop: Option<Stop>,
}

impl Tracees {
    fn processes(&self) -> BTreeSet<ProcessRef> {
        self.threads.values().map(|t| t.process).collect()
    }

    fn hold_in_tries(&mut self, known: &[ProcessRef], until: Deadline) -> Result<(), Failure> {
        loop {
            let time = (left(until) / 4).max(SHORTEST_TRY).min(left(until));
            let failure = match self.hold(known, deadline_in(time)) {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            self.let_go()?;
            if failure.kind != FailureKind::TimedOut || left(until) <= PAUSE {
                return Err(failure);
            }
            thread::sleep(PAUSE);
        }
    }

    /// Stops everybody.
    fn hold(&mut self, known: &[ProcessRef], until: Deadline) -> Result<(), Failure> {
        let known: Vec<ProcessRef> = known.iter().copied().filter(|p| process::alive(*p)).collect();
        let mut unsure = self.seize_all(&known)? > 0;
        loop {
            // Looked for only when all known are stopped: then nobody of them can make another.
            if !unsure && self.seize_newcomers()? == 0 && self.rouse() == 0 {
                return Ok(());
            }
            unsure = false;
            while let Some(tid) = self.collect_stops()? {
                if left(until).is_zero() {
                    return Err(self.too_slow(tid));
                }
                thread::sleep(STEP);
            }
            if left(until).is_zero() {
                let what = format!(
                    "{} makes threads or processes faster than they can be held",
                    self.targets.name()
                );
                return Err(Failure::new(FailureKind::TimedOut, what, ""));
            }
        }
    }

    fn too_slow(&self, tid: u32) -> Failure {
        let pid = self.threads.get(&tid).map_or(tid, |t| t.process.pid);
        let what = format!("{} did not stop in time", describe_thread(pid, tid));
        Failure::new(
            FailureKind::TimedOut,
            what,
            "it waits in the kernel, mostly for a disk or a network filesystem",
        )
    }

    /// Seizes and interrupts whoever is not traced yet; says how many that were.
    fn seize_newcomers(&mut self) -> Result<usize, Failure> {
        let found: Vec<ProcessRef> = self.targets.find()?.into_iter().collect();
        self.seize_all(&found)
    }

    fn seize_all(&mut self, processes: &[ProcessRef]) -> Result<usize, Failure> {
        let mut new = 0;
        for process in processes.iter().copied() {
            for tid in process::threads(process.pid) {
                if !self.threads.contains_key(&tid) && self.seize(process, tid)? {
                    new += 1;
                }
            }
        }
        Ok(new)
    }

    fn seize(&mut self, process: ProcessRef, tid: u32) -> Result<bool, Failure> {
        let seized = trace::seize(tid);
        let error = match seized.and_then(|()| {
            self.threads.insert(tid, Tracee { process, stop: None });
            trace::interrupt(tid)
        }) {
            Ok(()) => return Ok(true),
            Err(error) => error,
        };
        if has_ended(process.pid, tid) {
            self.threads.remove(&tid);
            return Ok(false);
        }
        let failure = |kind, what: String| Failure::new(kind, what, "").because(error);
        match tracer_of(process.pid, tid) {
            // Traced from its birth; it stops by itself.
            Some(tracer) if tracer == self.me => {
                self.threads.insert(tid, Tracee { process, stop: None });
                Ok(true)
            }
            Some(tracer) if tracer != 0 => {
                let what = format!("process {} is traced by {tracer} already", process.pid);
                Err(failure(FailureKind::Busy, what))
            }
            _ => Err(failure(
                FailureKind::Refused,
                format!("cannot trace {}", describe_thread(process.pid, tid)),
            )),
        }
    }

    /// Interrupts again whoever is not in a stop although it was: after an exec another thread has the id.
    fn rouse(&mut self) -> usize {
        let mut roused = 0;
        let mut ended = Vec::new();
        for (tid, tracee) in &mut self.threads {
            if trace::is_stopped(*tid) {
                continue;
            }
            match stat::read_thread(tracee.process.pid, *tid) {
                Ok(stat) if stat.state == b't' => {}
                Ok(stat) if !stat.has_ended() && trace::interrupt(*tid).is_ok() => {
                    tracee.stop = None;
                    roused += 1;
                }
                _ => ended.push(*tid),
            }
        }
        for tid in ended {
            self.threads.remove(&tid);
        }
        roused
    }

    /// Takes note of who has stopped; gives one who has not.
    fn collect_stops(&mut self) -> Result<Option<u32>, Failure> {
        let running: Vec<u32> =
            self.threads.iter().filter(|(_, t)| t.stop.is_none()).map(|(tid, _)| *tid).collect();
        let mut waiting = None;
        for tid in running {
            match trace::stopped(tid) {
                Ok(Some(stop)) => self.note(tid, stop),
                Ok(None) | Err(_) if self.is_gone(tid) => {
                    self.threads.remove(&tid);
                }
                Ok(None) => waiting = Some(tid),
                Err(error) => {
                    let what = format!("cannot wait for thread {tid}");
                    return Err(Failure::new(FailureKind::Other, what, "").because(error));
                }
            }
        }
        Ok(waiting)
    }

    fn is_gone(&self, tid: u32) -> bool {
        self.threads.get(&tid).is_none_or(|tracee| has_ended(tracee.process.pid, tid))
    }

    fn note(&mut self, tid: u32, stop: Stop) {
        if let Some(tracee) = self.threads.get_mut(&tid) {
            tracee.stop = Some(stop);
        }
        if let Stop::Born(newborn) = stop
            && let Some(process) = process_of(newborn)
        {
            self.threads.entry(newborn).or_insert(Tracee { process, stop: None });
        }
    }

    /// That all are still stopped and nobody has come.
    fn prove(&self) -> Result<Stillness, Failure> {
        for (tid, tracee) in &self.threads {
            let pid = tracee.process.pid;
            if !trace::is_stopped(*tid) {
                return Err(lost(&format!("{} was not held to the end", describe_thread(pid, *tid))));
            }
        }
        let known = self.processes();
        for process in self.targets.find_beside(&known)? {
            let pid = process.pid;
            // A thread that ended before the others were held stays a zombie as long as we trace it.
            let new = |tid: &u32| !self.threads.contains_key(tid) && !has_ended(pid, *tid);
            if let Some(tid) = process::threads(pid).into_iter().find(new) {
                let whom = describe_thread(pid, tid);
                return Err(lost(&format!("{whom} came while the others were held")));
            }
        }
        Ok(self.targets.shown(self.threads.len(), known.len(), "in tracing stop"))
    }

    /// Lets everybody go, handing on signals.
    fn let_go(&mut self) -> Result<(), Failure> {
        let until = deadline_in(LETTING_GO);
        let mut failed = None;
        loop {
            let waiting = self.collect_stops().ok().flatten().is_some();
            self.threads.retain(|tid, tracee| {
                let Some(stop) = tracee.stop else { return true };
                let signal = if let Stop::Signal(signal) = stop { Some(signal) } else { None };
                // Only a thread that is not in a stop any more is unknown to the request: it was killed.
                if let Err(error) = trace::detach(*tid, signal)
                    && error.raw_os_error() != Some(libc::ESRCH)
                {
                    failed = Some((describe_thread(tracee.process.pid, *tid), error));
                }
                false
            });
            if !waiting || left(until).is_zero() {
                break;
            }
            thread::sleep(STEP);
        }
        // Those who have not stopped by now are let go by the tracer's end.
        self.threads.clear();
        match failed {
            None => Ok(()),
            Some((whom, error)) => Err(not_let_go(&whom, error)),
        }
    }
}

fn not_let_go(whom: &str, error: io::Error) -> Failure {
    let remedy = "it is let go at the latest when stillpoint ends";
    Failure::new(FailureKind::Other, format!("cannot let {whom} go"), remedy).because(error)
}

fn has_ended(pid: u32, tid: u32) -> bool {
    stat::read_thread(pid, tid).map_or(true, |stat| stat.has_ended())
}

/// The process that a thread belongs to; `None` if it is gone.
fn process_of(tid: u32) -> Option<ProcessRef> {
    let status = fs::read(format!("/proc/{tid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
    process::process_ref(pid)
}
