//! How the kernel weighs what a thread asks for.
//!
//! Crash story: a thread's priority ends with the thread.

use std::io;

/// `IOPRIO_WHO_PROCESS`, linux/ioprio.h: a thread by its id, 0 the calling one.
const WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_CLASS_IDLE` in the bits from `IOPRIO_CLASS_SHIFT` (13) on, the same.
const CLASS_IDLE: libc::c_int = 3 << 13;
/// The lowest priority on the processor, nice(2).
const NICEST: i32 = 19;

/// From now on the calling thread gets disk and processor when others leave them: idle I/O class, nice 19. It cannot take
/// that back without privileges.
///
/// # Errors
/// If the kernel refuses the class, such as by a filter of system calls.
pub fn be_idle() -> io::Result<()> {
    // Linux gives each thread a nice value of its own; becoming nicer is always allowed.
    rustix::process::setpriority_process(None, NICEST)?;
    // SAFETY: ioprio_set(2) takes three numbers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use super::be_idle;

    /// As `ionice` and the kernel have it of this thread.
    fn weight() -> (String, i32) {
        let id = rustix::thread::gettid().as_raw_nonzero().to_string();
        let told = Command::new("ionice").args(["-p", &id]).output().expect("util-linux");
        let nice = rustix::process::getpriority_process(None).unwrap();
        (String::from_utf8(told.stdout).unwrap().trim().to_owned(), nice)
    }

    #[test]
    fn one_thread_becomes_idle_and_no_other() {
        let before = weight();
        let idle = thread::spawn(|| {
            be_idle().unwrap();
            weight()
        });
        assert_eq!(idle.join().unwrap(), ("idle".to_owned(), 19));
        assert_eq!(weight(), before);
    }
}
