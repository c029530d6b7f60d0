//! Many small files and a large one are stored within 300 MB of memory. The vault by itself, and fewer files
//! than the claim is about: the whole program and the full counts are in `crates/stillpoint/tests/scale.rs`.

mod common;

use std::{fs, io::Write};

use common::{Place, back_up, carried, manifest, noise, ok, store};
use model::port::Store;

const FILES: u64 = 20_000;
const SMALL: usize = 11_000;
const LARGE_MIB: u64 = 400;
const LIMIT_KB: u64 = 300_000;

/// The most memory that this process ever had, in kB: `VmHWM`, proc(5).
fn peak_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_large_tree_is_stored_in_little_memory() {
    let place = Place::at(tempfile::tempdir_in("/var/tmp").unwrap());
    let root = place.scratch();
    for dir in 0..FILES / 1000 {
        let path = root.join(format!("{dir:03}"));
        fs::create_dir(&path).unwrap();
        for file in 0..1000 {
            fs::write(path.join(format!("{file:03}")), noise(dir * 1000 + file, SMALL)).unwrap();
        }
    }
    let mut large = fs::File::create(root.join("large")).unwrap();
    for block in 0..LARGE_MIB {
        large.write_all(&noise(1_000_000 + block, 1 << 20)).unwrap();
    }
    drop(large);
    let (_, draft) = back_up(&mut place.repository(), &root, 1);
    assert_eq!(draft.problems, []);
    assert_eq!(draft.files, FILES + 1);
    let first = peak_kb();
    let mut repository = place.repository();
    assert_eq!(ok(repository.known()).len() as u64, FILES + 2);
    let (_, second) = store(&mut repository, manifest(&root, carried), &root, 2);
    assert_eq!((second.problems.len(), second.files), (0, FILES + 1));
    let peak = peak_kb();
    #[allow(clippy::print_stdout, reason = "a figure of the proof")]
    {
        println!("peak memory: {first} kB storing, {peak} kB with a second run in the same process");
    }
    assert!(peak < LIMIT_KB, "{peak} kB");
}
