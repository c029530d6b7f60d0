//! How the C library's allocator behaves, and the size of the system's pages.
//!
//! Crash story: hints to the system, with nothing to undo.

use model::aligned::{Aligned, LARGE_PAGE};

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

/// A buffer with room for so many bytes, in large pages if the system has some: whatever looks at every page of it, such as a
/// disk that is written past the page cache, then does so for 512 times fewer. For buffers that are kept.
#[must_use]
pub fn in_large_pages(room: usize) -> Aligned {
    let mut buffer = Aligned::default();
    buffer.resize(room.next_multiple_of(LARGE_PAGE));
    let bytes: &mut [u8] = &mut buffer;
    // SAFETY: madvise(2) with this advice changes no content, and the range is of memory that is ours alone. An error says
    // that there are no such pages, and all goes on with small ones.
    unsafe { libc::madvise(bytes.as_mut_ptr().cast(), bytes.len(), libc::MADV_HUGEPAGE) };
    buffer.resize(0);
    buffer
}

/// Asks for pages of 2 MiB for what a large buffer will have (`MADV_HUGEPAGE`, madvise(2)): a page that is touched for the
/// first time costs a fault whatever its size. Where the kernel does not give them, all is as before. For tables that are looked
/// into at random; not for what is filled and read once: in a virtual machine large pages are those that the host has taken
/// back, and touching one costs more than the small ones that were just freed.
pub fn prefer_large_pages<T>(buffer: &mut Vec<T>) {
    let begin = buffer.as_mut_ptr() as usize;
    let end = begin + buffer.capacity() * size_of::<T>();
    let (first, last) = (begin.next_multiple_of(LARGE_PAGE), end / LARGE_PAGE * LARGE_PAGE);
    if last > first {
        let at = buffer.as_mut_ptr().wrapping_byte_add(first - begin);
        // SAFETY: the range lies within the buffer's own memory, and this advice changes no byte of it.
        let _ = unsafe { libc::madvise(at.cast(), last - first, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use model::aligned::LARGE_PAGE;

    #[test]
    fn large_pages_lie_where_the_system_wants_them() {
        let mut buffer = super::in_large_pages(LARGE_PAGE + 1);
        assert!(buffer.is_empty() && buffer.capacity() >= 2 * LARGE_PAGE);
        buffer.resize(2 * LARGE_PAGE);
        assert_eq!(buffer.as_ptr().align_offset(LARGE_PAGE), 0);
        assert!(buffer.iter().all(|byte| *byte == 0));
    }
}
