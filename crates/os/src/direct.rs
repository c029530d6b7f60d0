//! Reading and writing past the page cache (`O_DIRECT`): what is read or written once would only put others' pages out
//! of it, and copying it in and out costs more than the disk does.
//!
//! Devices take whole blocks at whole blocks, from memory that begins at one. Filesystems that do not do it refuse it when
//! a file is opened, or when it is read or written; then it goes through the page cache, with the same result.
//!
//! Crash story: the same as without; nothing is durable before it is synced.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
};

use model::aligned::is_aligned;
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};

/// A multiple of the block size of every common device and of a page of memory, bytes.
pub const BLOCK: usize = 4096;

/// So many bytes are written at a time: they stay in the processor's cache.
const PART: usize = 1 << 20;

/// The least room that holds so many bytes from a block's beginning to the end of one.
#[must_use]
pub const fn room(length: usize) -> usize {
    length.next_multiple_of(BLOCK) + BLOCK
}

/// Where in this memory the first block begins; beyond its end if none does.
#[must_use]
pub fn first_block(memory: &[u8]) -> usize {
    memory.as_ptr().align_offset(BLOCK)
}

/// Whether from now on a file is read and written past the page cache, or not any more.
///
/// # Errors
/// If its filesystem cannot.
pub fn set(file: &File, on: bool) -> io::Result<()> {
    let before = fcntl_getfl(file)?;
    let flags = if on { before | OFlags::DIRECT } else { before - OFlags::DIRECT };
    Ok(fcntl_setfl(file, flags)?)
}

/// Reads from a file that was [`set`], from a block's beginning on, into memory that begins with a block and has room for
/// the last one whole. Returns how many bytes it got: fewer than asked for where the file ends, and where it has to be read
/// in the usual way instead.
pub fn read(file: &File, memory: &mut [u8], length: usize, from: u64) -> usize {
    let whole = length.next_multiple_of(BLOCK);
    let is_aligned = from.is_multiple_of(BLOCK as u64) && memory.as_ptr().align_offset(BLOCK) == 0;
    let Some(memory) = memory.get_mut(..whole).filter(|_| is_aligned) else { return 0 };
    let mut got = 0;
    while got < length && got.is_multiple_of(BLOCK) {
        match file.read_at(&mut memory[got..], from + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Whoever reads on in the usual way is told what is wrong.
            Err(_) => break,
        }
    }
    got.min(length)
}

/// Writes a whole new file, past the page cache where that is possible, but for what is left over at the end.
///
/// # Errors
/// What the filesystem says.
pub fn write_new(file: &File, bytes: &[u8]) -> io::Result<()> {
    let whole = bytes.len() - bytes.len() % BLOCK;
    let written = if whole >= PART && set(file, true).is_ok() {
        let written = write_blocks(file, &bytes[..whole]);
        set(file, false)?;
        written?
    } else {
        0
    };
    file.write_all_at(&bytes[written..], written as u64)
}

/// Writes whole blocks to a file that was [`set`], from where they are if that suits the disk; how many bytes were written until
/// it had to be done in the usual way.
fn write_blocks(file: &File, bytes: &[u8]) -> io::Result<usize> {
    let mut memory = if is_aligned(bytes) { Vec::new() } else { vec![0; room(PART)] };
    let begin = first_block(&memory);
    let mut done = 0;
    while done < bytes.len() {
        let mut part = &bytes[done..bytes.len().min(done + PART)];
        if !memory.is_empty() {
            let Some(aligned) = memory.get_mut(begin..begin + part.len()) else { break };
            aligned.copy_from_slice(part);
            part = aligned;
        }
        match file.write_at(part, done as u64) {
            Ok(more) if more > 0 && more.is_multiple_of(BLOCK) => done += more,
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use model::aligned::Aligned;

    use super::{BLOCK, PART, first_block, read, room, set, write_new};

    /// On whatever filesystems the tests have: with and without what is tried, the bytes are the same.
    #[test]
    fn what_is_written_is_read() {
        for dir in [std::env::temp_dir(), "/var/tmp".into(), "/dev/shm".into()] {
            let Ok(dir) = tempfile::tempdir_in(dir) else { continue };
            let path = dir.path().join("file");
            for length in [0, 1, PART - 1, PART, PART + 1, 3 * PART + BLOCK + 17] {
                let bytes: Vec<u8> = (0..length).map(|n| (n / 7 + n / BLOCK) as u8).collect();
                let open =
                    || OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
                write_new(&open().unwrap(), &bytes).unwrap();
                assert!(fs::read(&path).unwrap() == bytes, "{length} bytes in {}", path.display());
                let mut lying_well = Aligned::default();
                lying_well.resize(length);
                lying_well.copy_from_slice(&bytes);
                write_new(&open().unwrap(), &lying_well).unwrap();
                assert!(fs::read(&path).unwrap() == bytes, "{length} bytes in {}", path.display());

                let file = fs::File::open(&path).unwrap();
                if set(&file, true).is_err() {
                    continue;
                }
                let mut memory = vec![0; room(length)];
                let begin = first_block(&memory);
                let got = read(&file, &mut memory[begin..], length, 0);
                assert!(got == length || got == 0, "{got} of {length}");
                assert!(memory[begin..begin + got] == bytes[..got]);
                assert_eq!(read(&file, &mut memory[begin..], length, 1), 0, "not at a block");
                let beyond = length.next_multiple_of(BLOCK) as u64;
                assert_eq!(read(&file, &mut memory[begin..], length, beyond), 0, "at the end");
            }
        }
    }
}
