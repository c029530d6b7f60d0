//! Files as they are after many nights: written in scattered pages while a clone of the night before held the
//! old ones, so that they lie in tens of thousands of extents.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

/// InnoDB's default page size, bytes.
const PAGE: u64 = 16 * 1024;

/// Ages all regular files of at least a megabyte below `datadir`, whose server must be stopped: on each of so many
/// nights they are cloned and `percent` of their pages written again, with the bytes that they have, in no order.
/// The last clone is removed. Tells how many pages were written. Needs a filesystem with reflinks.
///
/// # Errors
/// What the filesystem refused.
pub fn age(datadir: &Path, nights: u32, percent: u32, seed: u64) -> std::io::Result<u64> {
    let clones = datadir.parent().unwrap_or(datadir).join(".ageing-clones");
    let mut random = StdRng::seed_from_u64(seed);
    let mut files = Vec::new();
    find(datadir, &mut files)?;
    files.sort();
    let mut written = 0;
    for _ in 0..nights {
        if clones.exists() {
            fs::remove_dir_all(&clones)?;
        }
        fs::create_dir(&clones)?;
        for (number, path) in files.iter().enumerate() {
            let from = File::open(path)?;
            let to = File::create(clones.join(number.to_string()))?;
            rustix::fs::ioctl_ficlone(&to, &from)?;
        }
        for path in &files {
            written += write_pages(path, percent, &mut random)?;
        }
        rustix::fs::syncfs(File::open(datadir)?)?;
    }
    if clones.exists() {
        fs::remove_dir_all(&clones)?;
    }
    Ok(written)
}

fn write_pages(path: &Path, percent: u32, random: &mut StdRng) -> std::io::Result<u64> {
    let file = File::options().read(true).write(true).open(path)?;
    let pages = file.metadata()?.len() / PAGE;
    let chosen = pages * u64::from(percent) / 100;
    let mut page = vec![0; usize::try_from(PAGE).expect("a page is small")];
    for _ in 0..chosen {
        let offset = random.random_range(0..pages) * PAGE;
        file.read_exact_at(&mut page, offset)?;
        file.write_all_at(&page, offset)?;
    }
    Ok(chosen)
}

fn find(below: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(below)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            find(&entry.path(), found)?;
        } else if kind.is_file() && entry.metadata()?.len() >= 1 << 20 {
            found.push(entry.path());
        }
    }
    Ok(())
}
