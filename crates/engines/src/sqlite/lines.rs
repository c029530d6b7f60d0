//! Lines over a pipe, with a deadline.
//!
//! Crash story: a line is complete or is not delivered; the end of the pipe is told apart from silence.

use std::{io, os::fd::BorrowedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, read},
};

/// No message of ours is longer; a peer that sends more is not ours.
const LONGEST: usize = 64 * 1024;

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Incoming {
    /// A line without its end.
    Line(String),
    /// The time was over first.
    Silence,
    /// The other end is closed.
    End,
}

/// Reads lines from a pipe.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
}

impl Lines {
    /// The next line, waiting for it at most so long, or for ever.
    ///
    /// # Errors
    /// If the pipe cannot be read, or what comes is not a line of text.
    pub fn next(&mut self, pipe: BorrowedFd<'_>, wait: Option<Duration>) -> io::Result<Incoming> {
        let started = std::time::Instant::now();
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let text = String::from_utf8(line[..end].to_vec()).map_err(io::Error::other)?;
                return Ok(Incoming::Line(text));
            }
            if self.buffer.len() > LONGEST {
                return Err(io::Error::other("a line that does not end"));
            }
            let left = wait.map(|wait| wait.saturating_sub(started.elapsed()));
            if !is_ready(pipe, left)? {
                return Ok(Incoming::Silence);
            }
            let mut chunk = [0; 4096];
            match read(pipe, &mut chunk) {
                Ok(0) => return Ok(Incoming::End),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether there is something to read, or the end of the pipe, waiting at most so long, or for ever.
///
/// # Errors
/// If the pipe cannot be polled.
pub(super) fn is_ready(pipe: BorrowedFd<'_>, wait: Option<Duration>) -> io::Result<bool> {
    let timeout = wait.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    loop {
        let mut fds = [PollFd::from_borrowed_fd(pipe, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(count) => return Ok(count > 0),
            // Waiting anew is harmless: nothing but signals that end us is ever sent to a helper.
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsFd, time::Duration};

    use super::{Incoming, Lines};

    #[test]
    fn lines_silence_and_the_end_are_told_apart() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut lines = Lines::default();
        let short = Some(Duration::from_millis(20));
        writer.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(lines.next(reader.as_fd(), short).unwrap(), Incoming::Line("one".into()));
        assert_eq!(lines.next(reader.as_fd(), short).unwrap(), Incoming::Line("two".into()));
        assert_eq!(lines.next(reader.as_fd(), short).unwrap(), Incoming::Silence);
        writer.write_all(b"ee\n").unwrap();
        assert_eq!(lines.next(reader.as_fd(), None).unwrap(), Incoming::Line("three".into()));
        drop(writer);
        assert_eq!(lines.next(reader.as_fd(), None).unwrap(), Incoming::End);
    }
}
