//! How the C library's allocator behaves.
//!
//! Crash story: one call at the start, before any thread; nothing to undo.

/// Keeps the allocator to two arenas. By default glibc gives up to eight times as many arenas as there are
/// cores, one to each busy thread, and memory freed in one is not used by another: storing 100,000 files and
/// one of 2 GiB then peaks at 334 MiB instead of 193 MiB, at the same speed. And keeps what is large out of them, always:
/// by default glibc raises that limit with the first large thing that is freed, and what is freed later lies between
/// smaller things and stays; a first backup of a million files then peaks at 469 MB instead of 418. Call it before the
/// first thread.
pub fn use_few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two integers and has no other precondition than that no other thread runs yet,
    // which is for speed, not for soundness. It answers 0 if it cannot, and all goes on as by default.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}
