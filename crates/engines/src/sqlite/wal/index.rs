//! What SQLite's wal-index says: how far the log is committed, and how far it is folded in.
//!
//! A commit *is* the change of this header, after its frames were written; so what it covers is committed, while a frame
//! that lies in the log already may still be taken back (its writer's `fsync` fails). The process must not open `-shm`
//! itself, since closing it would drop all of its locks: the memory is that of an open connection.
//!
//! Layout: <https://www.sqlite.org/walformat.html>, section 2.1; numbers are in the machine's own order, salts as in the log.
//!
//! Crash story: reads only. A writer may be in the middle of changing it, or have died there: then it says nothing.

use std::{
    ffi::{c_int, c_void},
    ptr,
    sync::atomic::{AtomicU32, Ordering, fence},
};

use rusqlite::{Connection, ffi};

use super::frames::sum;

/// The header stands there twice.
const WORDS: usize = 12;
/// The unit in which SQLite maps the index.
const REGION: c_int = 32 * 1024;

/// What the index says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Index {
    /// Counts the commits.
    pub change: u32,
    /// Committed frames.
    pub frames: u64,
    /// Salts of the log.
    pub salts: (u32, u32),
    /// Checksum of the last committed frame.
    pub checksum: (u32, u32),
    /// So many frames are folded into the database file.
    pub folded: u64,
}

/// Reads the index of a database that this connection has open in WAL mode; nothing if it is just being changed, or has to
/// be rebuilt by the next reader.
pub(super) fn read(connection: &Connection) -> Option<Index> {
    let memory = mapped(connection)?;
    let copy = |at: usize| -> [u32; WORDS] {
        std::array::from_fn(|n| {
            // SAFETY: `mapped` gives at least `REGION` bytes, aligned to a page, that stay mapped as long as the connection
            // is open, which we borrow; other processes change them, hence atomics.
            unsafe { AtomicU32::from_ptr(memory.add(at + n)) }.load(Ordering::Relaxed)
        })
    };
    let first = copy(0);
    fence(Ordering::Acquire);
    let second = copy(WORDS);
    fence(Ordering::Acquire);
    let folded = copy(2 * WORDS)[0];
    let bytes: Vec<u8> = first.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let is_whole = first == second
        && bytes[12] != 0
        && sum(cfg!(target_endian = "big"), &bytes[..40], (0, 0)) == (first[10], first[11]);
    is_whole.then(|| Index {
        change: first[2],
        frames: u64::from(first[4]),
        checksum: (first[6], first[7]),
        salts: (u32::from_be(first[8]), u32::from_be(first[9])),
        folded: u64::from(folded),
    })
}

/// The memory of the index, as SQLite itself has mapped it.
fn mapped(connection: &Connection) -> Option<*mut u32> {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: the handle is valid while the connection is borrowed, nobody else uses it (`!Sync`), and this control writes
    // one pointer to where we say.
    let told = unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_FILE_POINTER,
            ptr::from_mut(&mut file).cast::<c_void>(),
        )
    };
    if told != ffi::SQLITE_OK || file.is_null() {
        return None;
    }
    // SAFETY: SQLite's own file object, which lives as long as the connection; its methods are null or valid.
    let map = unsafe { (*file).pMethods.as_ref() }?.xShmMap?;
    let mut memory: *mut c_void = ptr::null_mut();
    // SAFETY: the same object; with `bExtend` 0 it maps what is there, in the unit that SQLite uses itself, or gives null.
    let told = unsafe { map(file, 0, REGION, 0, ptr::from_mut(&mut memory)) };
    (told == ffi::SQLITE_OK && !memory.is_null()).then(|| memory.cast())
}
