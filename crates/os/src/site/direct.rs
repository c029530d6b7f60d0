//! Writing large files, and reading them back, past the page cache.
//!
//! It pays: the memory of the machine is left to whoever runs on it, nothing is copied twice, and nothing is left to
//! be written when all is synced. Only on ext4 and XFS, where `O_DIRECT` is what open(2) says of it: on btrfs it would do
//! without the mount's compression, on others it may be the page cache all the same.
//!
//! Blocks are reserved for a stretch at a time, so that they lie together and threads need not wait for each other to
//! lengthen the file. Zeros are given back.
//!
//! Crash story: see [`super::write`].

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::FallocateFlags;

/// Offsets, lengths and memory are multiples of this, in bytes: no disk has larger logical blocks.
const BLOCK: usize = 4096;

/// So much is written with one call, in bytes.
const BATCH: usize = 1 << 20;

/// Runs of zeros are looked for in steps of this size, in bytes.
pub(super) const STEP: usize = 64 * 1024;

/// From this size on it pays for a file, in bytes.
pub(super) const FROM: u64 = 1 << 20;

/// Whether files of this filesystem are written so: magic numbers of statfs(2).
pub(super) fn is_for(file: &File) -> bool {
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    rustix::fs::fstatfs(file).is_ok_and(|facts| [EXT4, XFS].contains(&(facts.f_type as u64)))
}

/// Memory whose place suits a disk.
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    from: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; BATCH + BLOCK];
        let from = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, from }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + BATCH]
    }
}

/// Buffers that are not in use: as many as threads ever wrote at once.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Buffer>>);

/// What a disk may still have in its cache is flushed each time so much was written, in bytes: by one thread, while the others
/// go on. Left for the end, all would wait for it.
const FLUSH: u64 = 256 << 20;

/// How much was written past the page cache.
#[derive(Debug, Default)]
pub(super) struct Flusher(AtomicU64);

impl Flusher {
    /// So many bytes more were written to this file.
    pub fn wrote(&self, file: &File, bytes: u64) -> io::Result<()> {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        if before / FLUSH == (before + bytes) / FLUSH { Ok(()) } else { file.sync_data() }
    }
}

impl Buffers {
    fn take(&self) -> Buffer {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.unwrap_or_else(Buffer::new)
    }

    fn put(&self, buffer: Buffer) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// A stretch of a file that is being written.
pub(super) struct Batches<'a> {
    /// Opened with `O_DIRECT`.
    file: &'a File,
    buffers: &'a Buffers,
    /// Of the file: from the buffer's first byte to the end of the stretch.
    rest: Range<u64>,
    filled: usize,
    buffer: Option<Buffer>,
    is_reserved: bool,
}

impl<'a> Batches<'a> {
    /// The range begins at a multiple of [`BATCH`].
    pub fn new(file: &'a File, buffers: &'a Buffers, rest: Range<u64>) -> Self {
        let buffer = Some(buffers.take());
        Self { file, buffers, rest, filled: 0, buffer, is_reserved: false }
    }

    /// Writes the next bytes, which are within the range.
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(buffer) = self.buffer.as_mut().filter(|_| !bytes.is_empty()) {
            let (now, later) = bytes.split_at(bytes.len().min(BATCH - self.filled));
            buffer.get()[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == BATCH {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes the batch that was begun.
    pub fn flush(&mut self) -> io::Result<()> {
        let Some(mut buffer) = self.buffer.take() else { return Ok(()) };
        let written = self.write(buffer.get());
        self.buffer = Some(buffer);
        written
    }

    fn write(&mut self, batch: &mut [u8]) -> io::Result<()> {
        let length = self.filled.next_multiple_of(BLOCK);
        batch[self.filled..length].fill(0);
        let mut from = 0;
        while from < length {
            let is_hole = |at: usize| batch[at..length.min(at + STEP)].iter().all(|byte| *byte == 0);
            let hole = is_hole(from);
            let mut to = length.min(from + STEP);
            while to < length && is_hole(to) == hole {
                to = length.min(to + STEP);
            }
            let at = self.rest.start + from as u64;
            if !hole {
                self.reserve();
                self.file.write_all_at(&batch[from..to], at)?;
            } else if self.is_reserved {
                // Without success they are zeros that take space.
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let _ = rustix::fs::fallocate(self.file, flags, at, (to - from) as u64);
            }
            from = to;
        }
        self.rest.start += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    /// What cannot be reserved, for lack of space or of the ability, is told by writing, if at all.
    fn reserve(&mut self) {
        if !self.is_reserved {
            let length = self.rest.end - self.rest.start;
            self.is_reserved =
                rustix::fs::fallocate(self.file, FallocateFlags::KEEP_SIZE, self.rest.start, length).is_ok();
        }
    }
}

/// A file that is read in batches, past the page cache.
pub(super) struct Window<'a> {
    /// Opened with `O_DIRECT`.
    file: File,
    buffers: &'a Buffers,
    buffer: Option<Buffer>,
    /// What the buffer has of the file.
    has: Range<u64>,
}

impl<'a> Window<'a> {
    pub fn new(file: File, buffers: &'a Buffers) -> Self {
        Self { file, buffers, buffer: Some(buffers.take()), has: 0..0 }
    }

    /// Fills the front of this with the bytes from an offset on; 0 at the end.
    pub fn at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let Some(buffer) = self.buffer.as_mut() else { return Ok(0) };
        if !self.has.contains(&offset) {
            let from = offset / BLOCK as u64 * BLOCK as u64;
            self.has = 0..0;
            let length = self.file.read_at(buffer.get(), from)? as u64;
            self.has = from..from + length;
        }
        let rest = self.has.end.saturating_sub(offset);
        let length = usize::try_from(rest).unwrap_or(BATCH).min(into.len());
        if length > 0 {
            // It is in the buffer, so it is below its length.
            let at = (offset - self.has.start) as usize;
            into[..length].copy_from_slice(&buffer.get()[at..at + length]);
        }
        Ok(length)
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.buffers.put(buffer);
        }
    }
}

impl Drop for Batches<'_> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.buffers.put(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::{MetadataExt, OpenOptionsExt},
    };

    use super::{BATCH, Batches, Buffers, Window, is_for};

    /// Bytes, zeros of more than a batch, bytes, and an end that is no block's.
    fn content() -> Vec<u8> {
        let noise = |count: usize| (0..count).map(|n| (n.wrapping_mul(2_654_435_761) >> 9) as u8 | 1);
        let zeros = vec![0; 2 * BATCH + 100_000];
        noise(BATCH + 70_000).chain(zeros).chain(noise(BATCH / 2 + 123)).collect()
    }

    #[test]
    fn stretches_come_out_as_they_went_in_with_their_holes() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("file");
        let plain = File::create(&path).unwrap();
        if !is_for(&plain) {
            // Here files are written through the page cache.
            return;
        }
        let bytes = content();
        plain.set_len(bytes.len() as u64).unwrap();
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
        let file = File::options().read(true).write(true).custom_flags(flags).open(&path).unwrap();
        let (buffers, middle) = (Buffers::default(), 2 * BATCH);
        std::thread::scope(|scope| {
            for (from, to) in [(0, middle), (middle, bytes.len())] {
                let (bytes, file, buffers) = (&bytes[from..to], &file, &buffers);
                scope.spawn(move || {
                    let mut batches = Batches::new(file, buffers, from as u64..to as u64);
                    bytes.chunks(99_999).for_each(|part| batches.append(part).unwrap());
                    batches.flush().unwrap();
                });
            }
        });
        plain.set_len(bytes.len() as u64).unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
        let mut window = Window::new(file, &buffers);
        let (mut read, mut part) = (Vec::new(), vec![0; 99_999]);
        while let length @ 1.. = window.at(read.len() as u64, &mut part).unwrap() {
            read.extend_from_slice(&part[..length]);
        }
        assert!(read == bytes, "it reads back otherwise");
        assert_eq!(window.at(5000, &mut part[..100]).unwrap(), 100);
        assert!(part[..100] == bytes[5000..5100]);
        let allocated = fs::metadata(&path).unwrap().blocks() * 512;
        assert!(allocated < bytes.len() as u64 - BATCH as u64, "{allocated} bytes are allocated");
    }
}
