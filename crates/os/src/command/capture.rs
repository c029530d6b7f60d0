//! The end of what a process writes, bounded.
//!
//! Crash story: memory only.

use std::io::{self, Read};

/// Keeps the last `limit` bytes.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    limit: usize,
    truncated: bool,
}

impl Tail {
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, truncated: false }
    }

    pub fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
        // Twice the limit before moving bytes: each byte is moved at most once.
        if self.bytes.len() > 2 * self.limit {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let over = self.bytes.len().saturating_sub(self.limit);
        self.truncated |= over > 0;
        self.bytes.drain(..over);
    }

    /// The last bytes, and whether there were more.
    pub fn take(&mut self) -> (Vec<u8>, bool) {
        self.cut();
        (std::mem::take(&mut self.bytes), self.truncated)
    }

    /// The last bytes as text.
    pub fn text(&mut self) -> String {
        self.cut();
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }

    /// Takes what can be read without waiting. `false` once the other side has closed.
    pub fn fill(&mut self, pipe: &mut impl Read) -> io::Result<bool> {
        let mut buffer = [0; 8192];
        // Bounded: someone who never stops writing must not keep us from looking at the time.
        for _ in 0..64 {
            match pipe.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => self.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
