//! Memory whose place suits a disk that is read and written past the page cache.
//!
//! What lies in it can be handed to `O_DIRECT` as it is (open(2)), by whoever it comes to: one need not know of the
//! other, only look where the bytes lie ([`is_aligned`]).
//!
//! Crash story: plain values, no effects.

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

/// Offsets, lengths and memory are multiples of this, in bytes: no disk has larger logical blocks.
pub const BLOCK: usize = 4096;

/// No less is asked of the system for a buffer, in bytes.
const LEAST: usize = 1 << 20;

/// Buffers of this size or more begin at a multiple of it, so that the system can give large pages for them, in bytes.
pub const LARGE_PAGE: usize = 2 << 20;

/// Whether these bytes begin at a multiple of [`BLOCK`].
#[must_use]
pub fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().align_offset(BLOCK) == 0
}

/// Whether these are zeros only.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    bytes.chunks(BLOCK).all(|part| part == &ZEROS[..part.len()])
}

/// Bytes that begin at a multiple of [`BLOCK`], or of [`LARGE_PAGE`] if there are so many.
#[derive(Debug, Default)]
pub struct Aligned {
    bytes: Vec<u8>,
    from: usize,
    room: usize,
    length: usize,
}

impl Aligned {
    /// How many bytes it takes without asking for more memory.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.room
    }

    /// Makes it so long. What is in it stays; what comes to it has any content.
    pub fn resize(&mut self, length: usize) {
        if length > self.room {
            let room = length.next_power_of_two().max(LEAST);
            let border = if room < LARGE_PAGE { BLOCK } else { LARGE_PAGE };
            // Of what is never touched no memory is taken.
            let mut bytes = vec![0; room + border];
            let from = bytes.as_ptr().align_offset(border);
            bytes[from..from + self.length].copy_from_slice(self);
            (self.bytes, self.from, self.room) = (bytes, from, room);
        }
        self.length = length;
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + self.length]
    }
}

/// Buffers that are not in use: as many as were ever used at once.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Vec<Aligned>>);

impl Pool {
    /// A buffer of this length, with any content, until it is dropped.
    #[must_use]
    pub fn take(&self, length: usize) -> Taken<'_> {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = idle.unwrap_or_default();
        buffer.resize(length);
        Taken { pool: self, buffer }
    }
}

/// A buffer that is in use.
#[derive(Debug)]
pub struct Taken<'a> {
    pool: &'a Pool,
    buffer: Aligned,
}

impl Deref for Taken<'_> {
    type Target = Aligned;

    fn deref(&self) -> &Aligned {
        &self.buffer
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Aligned {
        &mut self.buffer
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::{Aligned, BLOCK, Pool, is_aligned, is_zero};

    #[test]
    fn what_is_in_it_stays_when_it_grows() {
        let mut buffer = Aligned::default();
        assert!(buffer.is_empty());
        for length in [3, 70_000, 3 << 20, 5 << 20, 3] {
            buffer.resize(length);
            assert!(is_aligned(&buffer) && buffer.len() == length);
            let there = buffer.len().min(3);
            assert!(buffer[..there] == [1, 2, 3][..] || is_zero(&buffer[..there]));
            buffer[..there].copy_from_slice(&[1, 2, 3]);
        }
        assert!(!is_aligned(&buffer[1..]));
    }

    #[test]
    fn zeros_are_told_from_others() {
        let mut bytes = vec![0; 3 * BLOCK + 5];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in [0, BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 4] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
    }

    #[test]
    fn a_buffer_is_used_again() {
        let pool = Pool::default();
        let first = pool.take(10).as_ptr();
        let mut second = pool.take(20);
        assert!(second.as_ptr() == first && second.len() == 20);
        second.resize(30);
        assert_ne!(pool.take(10).as_ptr(), first);
    }
}
