//! Two threads that take turns, on one processor.
//!
//! Client and server of a connection wait for one another at every statement. On two processors each answer first has to wake
//! an idle one, which costs more than the statement does, above all in a virtual machine (seen: 62,000 transactions of four rows
//! replayed in 16 s instead of 50).
//!
//! Crash story: what is set belongs to the threads and ends with them.

use std::{fs, io};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};

/// Keeps both threads on the processor on which the first ran last. Threads that they begin later inherit that.
///
/// # Errors
/// If one of them is gone, or is not ours to move.
pub fn keep_together(first: u32, second: u32) -> io::Result<()> {
    let mut here = CpuSet::new();
    here.set(processor(first)?);
    for thread in [first, second] {
        let id = i32::try_from(thread).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        sched_setaffinity(Some(id), &here)?;
    }
    Ok(())
}

/// Where a thread ran last: field 39 of `/proc/[pid]/stat`, proc(5).
fn processor(thread: u32) -> io::Result<usize> {
    let stat = fs::read_to_string(format!("/proc/{thread}/stat"))?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let field = after_name.split_whitespace().nth(39 - 3).and_then(|field| field.parse().ok());
    field.filter(|number| *number < CpuSet::MAX_CPU).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        thread,
        time::{Duration, Instant},
    };

    use rustix::{process::Pid, thread::sched_getaffinity};

    use super::keep_together;

    #[test]
    fn both_are_where_the_first_was_and_one_that_is_gone_is_an_error() {
        let mut sleeps = [(); 2].map(|()| Command::new("sleep").arg("60").spawn().unwrap());
        let [one, other] = [sleeps[0].id(), sleeps[1].id()];
        keep_together(one, other).unwrap();
        let allowed = |pid: u32| sched_getaffinity(Pid::from_raw(i32::try_from(pid).unwrap())).unwrap();
        assert_eq!(allowed(one).count(), 1);
        assert_eq!(allowed(one), allowed(other));
        for sleep in &mut sleeps {
            sleep.kill().unwrap();
            sleep.wait().unwrap();
        }
        let asked = Instant::now();
        while keep_together(one, other).is_ok() {
            assert!(asked.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(1));
        }
    }
}
