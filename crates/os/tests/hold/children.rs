//! The roles that this program plays as a child of its own tests.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, BufRead, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use model::{
    inventory::ProcessSelector,
    plan::ProcessMethod,
    port::Hold,
    undo::{ProcessRef, Ticket, Undo},
};
use os::{
    clock::deadline_in,
    command::Helper,
    hold::{ProcessHold, StopHook},
    watchdog::Watchdog,
};

use crate::scene::{Memory, Told, hook};

pub fn play(role: &str, args: &[OsString]) -> ExitCode {
    let path = |i: usize| PathBuf::from(&args[i]);
    match role {
        "watchdog" => return os::watchdog::main(args),
        "busy" => busy(&path(0)),
        "maker" => maker(&path(0)),
        "signalled" => signalled(&path(0)),
        "stuck" => stuck(&path(0)),
        "holder" => holder(&path(0)),
        "stopper" => stopper(&args[0], &path(1)),
        "hooker" => hooker(&path(0)),
        other => panic!("no role {other}"),
    }
    ExitCode::SUCCESS
}

fn ready() {
    println!("\"ready\"");
}

/// Waits until the test is gone.
fn until_the_end() {
    let mut line = String::new();
    while io::stdin().lock().read_line(&mut line).is_ok_and(|count| count > 0) {}
}

fn counters(path: &Path) -> File {
    OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap()
}

/// Eight threads, each counting in its own place of the file.
fn busy(path: &Path) {
    for place in 0..8 {
        let file = counters(path);
        thread::spawn(move || {
            for count in 1_u64.. {
                file.write_all_at(&count.to_le_bytes(), place * 8).unwrap();
            }
        });
    }
    ready();
    until_the_end();
}

/// Makes threads and processes without end; each adds a byte to the file.
fn maker(path: &Path) {
    let append = |path: &Path| OpenOptions::new().append(true).create(true).open(path).unwrap();
    let file = append(path);
    let more = append(path);
    thread::spawn(move || {
        loop {
            let mut one = more.try_clone().unwrap();
            thread::spawn(move || one.write_all(b"t").unwrap()).join().unwrap();
        }
    });
    thread::spawn(move || {
        use std::os::fd::AsRawFd;
        let fd = file.as_raw_fd();
        loop {
            // SAFETY: the child only writes a byte and leaves, both of which may be done after a fork.
            unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    libc::write(fd, b"p".as_ptr().cast(), 1);
                    libc::_exit(0);
                }
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
        }
    });
    ready();
    until_the_end();
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_signal: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Counts the first real-time signal, of which none may be lost, in the file.
fn signalled(path: &Path) {
    let handler = count_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler only adds to an atomic number.
    unsafe { libc::signal(libc::SIGRTMIN(), handler) };
    let file = counters(path);
    thread::spawn(move || {
        loop {
            file.write_all_at(&SIGNALS.load(Ordering::Relaxed).to_le_bytes(), 0).unwrap();
        }
    });
    ready();
    until_the_end();
}

extern "C" fn tick(file: *mut libc::c_void) -> libc::c_int {
    let fd = file.addr() as libc::c_int;
    for count in 1_u64.. {
        // SAFETY: eight bytes of a live local are written to an open file.
        unsafe { libc::pwrite(fd, (&raw const count).cast(), 8, 0) };
    }
    0
}

/// Waits in the kernel, where ptrace cannot stop it, for a child that shares its memory and never ends.
fn stuck(path: &Path) {
    use std::os::fd::AsRawFd;
    let file = counters(path);
    ready();
    let mut stack = vec![0_u128; 8192];
    let top = stack.as_mut_ptr_range().end.cast();
    let fd = std::ptr::without_provenance_mut(file.as_raw_fd() as usize);
    // SAFETY: the child has a stack of its own and uses nothing but its argument and system calls.
    unsafe { libc::clone(tick, top, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, fd) };
}

/// Holds the processes of a pid file by ptrace until it is killed.
fn holder(pid_file: &Path) {
    let selector = ProcessSelector::PidFile(pid_file.to_owned());
    let mut hold = ProcessHold::new(selector, ProcessMethod::Ptrace, [], Arc::new(Memory::default()));
    let frozen = hold.freeze(deadline_in(Duration::from_secs(60))).unwrap();
    ready();
    until_the_end();
    drop(frozen);
}

/// Tells the watchdog of a process to continue and of a start hook, and waits to be killed.
fn stopper(pid: &OsString, dir: &Path) {
    let process: ProcessRef = os::process::process_ref(pid.to_str().unwrap().parse().unwrap()).unwrap();
    let watchdog = Watchdog::spawn_logging(&Helper::this_program(), &dir.join("watchdog.log")).unwrap();
    let start = hook(&format!("echo started >>{}", dir.join("log").display()));
    watchdog.intend(Ticket(1), &Undo::Start { start, ends: None }, None).unwrap();
    watchdog.intend(Ticket(2), &Undo::Continue { processes: vec![process] }, None).unwrap();
    assert!(os::process::signal(process, rustix::process::Signal::STOP).unwrap());
    println!("{}", watchdog.process().pid);
    until_the_end();
    drop(watchdog);
}

/// Runs a stop hook that does not end, guarded by the watchdog.
fn hooker(dir: &Path) {
    let watchdog = Watchdog::spawn(&Helper::this_program()).unwrap();
    let log = dir.join("log");
    // Messages of the shell would end it: the other side of its pipe dies with us.
    let stop = format!(
        "exec 2>/dev/null; echo $$ >{0}.tmp; mv {0}.tmp {0}; trap 'echo ended >>{1}; exit 1' TERM; while :; do sleep 0.01; done",
        dir.join("stopping").display(),
        log.display()
    );
    let start = hook(&format!("echo started >>{}", log.display()));
    let mut hold = StopHook::new(hook(&stop), start, Arc::new(Told(watchdog)));
    ready();
    let frozen = hold.freeze(deadline_in(Duration::from_secs(60)));
    panic!("the stop hook ended: {:?}", frozen.err());
}
