//! Writing the regular files, by several threads: the small ones, a directory at a time, so that no two threads wait for
//! each other to make a name in the same one; then large files in stretches, side by side, and the last of them in
//! shorter ones, so that no thread ends long before the others.
//!
//! Why a wrong restore is not put in place. Each part of a file is compared with its cryptographic name when it comes out
//! of the repository, and those very bytes are handed to the site, which counts that every one of them was written, and
//! compares size, kind, owner, mode, times and attributes with the listing. Names are compared when all is written. Then
//! everything is synced, and the site fails if the filesystem could not write anything of it since the restore began.
//! So memory and filesystem are taken at their word only where every program has to, and reading all of it a second time
//! proves one thing more: that the disk gives back what it said it had written. A restore that replaces something does
//! that before it replaces it ([`compare`]), and any other on request: what it is restored from is still there.
//! Every byte is read after it was synced, past the memory of this machine where that can be done, and compared by the
//! names of its parts; nothing is read from the repository twice.
//!
//! Crash story: see [`super`]: all this happens beside what is there.

use std::{
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use model::{
    port::{Failure, FailureKind},
    port_restore::{Beside, Finished, SHARE, STRETCH, Writing},
    problem::Problem,
    restore::Listed,
    size::Bytes,
};

use super::Job;

/// What was written beside.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub files: u64,
    pub bytes: Bytes,
    pub problems: Vec<Problem>,
    pub lost: Vec<PathBuf>,
}

/// Writes these regular files. A full disk ends it all; any other failure loses that file only.
pub(super) fn write(
    job: &Job<'_>,
    beside: &dyn Beside,
    files: &[(usize, usize)],
) -> Result<Written, Failure> {
    let entries = job.contents.listing().entries();
    let size = |file: &(usize, usize)| entries[file.1].meta.size.0;
    let (large, small): (Vec<_>, Vec<_>) = files.iter().copied().partition(|file| size(file) > STRETCH);
    let groups: Vec<&[(usize, usize)]> = Groups { rest: &small, entries }.collect();
    let shares = shares(&large.iter().map(size).collect::<Vec<_>>(), job.threads);
    let mut large: Vec<Large<'_>> = large.into_iter().map(Large::new).collect();
    shares.iter().for_each(|(number, _)| *large[*number].left() += 1);
    let crew = Crew::new(job);
    crew.work(groups.len() + shares.len(), |number| match groups.get(number) {
        Some(group) => write_group(job, beside, group, &crew),
        None => {
            let (file, range) = &shares[number - groups.len()];
            let file = &large[*file];
            if let Some(done) = file.write(job, beside, range.clone()) {
                crew.note(file.file, done);
            }
        }
    });
    crew.result()
}

/// Small files are read together.
fn write_group(job: &Job<'_>, beside: &dyn Beside, files: &[(usize, usize)], crew: &Crew<'_>) {
    const TOGETHER: u64 = 1 << 20;
    let size = |file: &(usize, usize)| job.contents.listing().entries()[file.1].meta.size.0;
    let mut rest = files;
    while !rest.is_empty() && !crew.is_ended() {
        let mut bytes = 0;
        let mut is_small = |file: &(usize, usize)| {
            bytes += size(file);
            bytes <= TOGETHER
        };
        let count = rest.iter().take_while(|file| is_small(file)).count();
        let (together, behind) = rest.split_at(count.max(1));
        rest = behind;
        if count < 2 {
            together.iter().for_each(|file| crew.note(*file, write_whole(job, beside, *file)));
            continue;
        }
        let items: Vec<usize> = together.iter().map(|file| file.1).collect();
        job.contents.read_each(&items, &mut |number, content| {
            let file = together[number];
            crew.note(file, content.and_then(|content| write_content(job, beside, file, content)));
        });
    }
}

/// Files of one directory, as many as one thread writes before it looks for others.
struct Groups<'a> {
    rest: &'a [(usize, usize)],
    entries: &'a [Listed],
}

impl<'a> Iterator for Groups<'a> {
    type Item = &'a [(usize, usize)];

    fn next(&mut self) -> Option<Self::Item> {
        const FILES: usize = 500;
        const BYTES: u64 = SHARE;
        let first = self.rest.first()?;
        let entry = |file: &(usize, usize)| &self.entries[file.1];
        let mut bytes = entry(first).meta.size.0;
        let mut goes_along = |file: &(usize, usize)| {
            bytes += entry(file).meta.size.0;
            file.0 == first.0 && entry(file).path.parent() == entry(first).path.parent() && bytes <= BYTES
        };
        let more = self.rest[1..].iter().take(FILES - 1);
        let count = 1 + more.take_while(|file| goes_along(file)).count();
        let (group, rest) = self.rest.split_at(count);
        self.rest = rest;
        Some(group)
    }
}

/// Reads files back and compares them, large ones by several threads. The problems, sorted by path.
pub(super) fn compare(
    job: &Job<'_>,
    beside: &dyn Beside,
    files: &[(usize, usize)],
) -> Result<Vec<Problem>, Failure> {
    let mut problems = Vec::new();
    for (file, done) in files.iter().zip(reread(job, beside, files)) {
        let path = &job.contents.listing().entries()[file.1].path;
        let what = match done {
            Ok(true) => continue,
            Ok(false) => "reads back otherwise than it was written: the disk may be failing".to_owned(),
            Err(failure) => format!("could not be restored: {}", failure.in_full()),
        };
        problems.push(Problem::missing(path, what, "restore to another disk"));
    }
    problems.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(problems)
}

/// Whether each of these files has on disk what the backup has for it.
pub(super) fn reread(
    job: &Job<'_>,
    beside: &dyn Beside,
    files: &[(usize, usize)],
) -> Vec<Result<bool, Failure>> {
    let size = |number: usize| job.contents.listing().entries()[files[number].1].meta.size.0;
    let stretches: Vec<(usize, Range<u64>)> = (0..files.len())
        .flat_map(|number| stretches(size(number)).map(move |range| (number, range)))
        .collect();
    let all = Mutex::new(files.iter().map(|_| Ok(true)).collect::<Vec<_>>());
    let known = || all.lock().unwrap_or_else(PoisonError::into_inner);
    Crew::new(job).work(stretches.len(), |task| {
        let (number, range) = &stretches[task];
        if !matches!(known()[*number], Ok(true)) {
            return;
        }
        let done = reread_stretch(job, beside, files[*number], range.clone());
        if !matches!(done, Ok(true)) {
            known()[*number] = done;
        }
    });
    all.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn reread_stretch(
    job: &Job<'_>,
    beside: &dyn Beside,
    (part, item): (usize, usize),
    range: Range<u64>,
) -> Result<bool, Failure> {
    let mut reading = beside.reread(part, &job.contents.listing().entries()[item])?;
    job.contents.matches(item, range, &mut |offset, buffer| {
        let length = reading.at(offset, buffer)?;
        job.progress.advance(Bytes(length as u64));
        Ok(length)
    })
}

/// What large files of these sizes are divided into, in order: the number of the file, and a part of it.
fn shares(sizes: &[u64], threads: usize) -> Vec<(usize, Range<u64>)> {
    let few = threads as u64 * STRETCH / 2;
    let mut left: u64 = sizes.iter().sum();
    let mut shares = Vec::new();
    for (number, size) in sizes.iter().enumerate() {
        let mut from = 0;
        while from < *size {
            let to = (*size).min(from + if left > few { STRETCH } else { SHARE });
            shares.push((number, from..to));
            left -= to - from;
            from = to;
        }
    }
    shares
}

/// What a file is divided into for several threads; an empty one is one stretch.
fn stretches(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(STRETCH).max(1)).map(move |n| n * STRETCH..size.min((n + 1) * STRETCH))
}

/// Threads that take files one after the other, and what came of it.
struct Crew<'a> {
    job: &'a Job<'a>,
    is_full: AtomicBool,
    state: Mutex<(Written, Option<Failure>)>,
}

impl<'a> Crew<'a> {
    fn new(job: &'a Job<'a>) -> Self {
        Self { job, is_full: AtomicBool::new(false), state: Mutex::default() }
    }

    /// Does every task, unless a full disk ends it all.
    fn work(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        let next = AtomicUsize::new(0);
        let worker = || loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= tasks || self.is_ended() {
                return;
            }
            task(number);
        };
        std::thread::scope(|scope| {
            for _ in 1..self.job.threads.max(1).min(tasks) {
                scope.spawn(worker);
            }
            worker();
        });
    }

    fn is_ended(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Takes note of what became of a file.
    fn note(&self, file: (usize, usize), done: Result<Finished, Failure>) {
        let entry = &self.job.contents.listing().entries()[file.1];
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (written, ended) = &mut *state;
        match done {
            Ok(finished) => {
                written.files += 1;
                written.bytes = written.bytes + entry.meta.size;
                written.problems.extend(finished.problems);
            }
            Err(failure) if failure.kind == FailureKind::NoSpace => {
                self.is_full.store(true, Ordering::Relaxed);
                ended.get_or_insert(failure);
            }
            Err(failure) => {
                let what = format!("could not be restored: {}", failure.in_full());
                written.problems.push(Problem::missing(entry.path.clone(), what, ""));
                written.lost.push(entry.path.clone());
            }
        }
    }

    fn result(self) -> Result<Written, Failure> {
        let (mut written, ended) = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        written.problems.sort_by(|a, b| a.path.cmp(&b.path));
        ended.map_or(Ok(written), Err)
    }
}

/// A file that several threads write.
struct Large<'a> {
    /// Its part and its item.
    file: (usize, usize),
    state: Mutex<State<'a>>,
}

struct State<'a> {
    /// Made by whoever comes first.
    writing: Option<Arc<Box<dyn Writing + 'a>>>,
    /// Parts that nobody has ended yet.
    left: usize,
    failed: Option<Failure>,
}

impl<'a> Large<'a> {
    fn new(file: (usize, usize)) -> Self {
        Self { file, state: Mutex::new(State { writing: None, left: 0, failed: None }) }
    }

    /// How many parts there are.
    fn left(&mut self) -> &mut usize {
        &mut self.state.get_mut().unwrap_or_else(PoisonError::into_inner).left
    }

    fn state(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a part. Whoever ends the last one ends the file, and has its result.
    fn write(
        &self,
        job: &'a Job<'_>,
        beside: &'a dyn Beside,
        range: Range<u64>,
    ) -> Option<Result<Finished, Failure>> {
        let done = self.writing(job, beside).and_then(|writing| match writing {
            Some(writing) => write_stretch(job, &**writing, self.file.1, range),
            None => Ok(()),
        });
        let (writing, failed) = {
            let mut state = self.state();
            state.left -= 1;
            if let Err(failure) = done {
                state.failed.get_or_insert(failure);
            }
            if state.left > 0 {
                return None;
            }
            (state.writing.take(), state.failed.take())
        };
        if let Some(failure) = failed {
            return Some(Err(failure));
        }
        // Nobody else has it: each let go of it before it counted its part as ended.
        let gone = || Failure::new(FailureKind::Other, "the file is still being written", "");
        Some(writing.and_then(Arc::into_inner).ok_or_else(gone).and_then(Writing::finish))
    }

    /// The open file; nothing if writing it has failed already.
    fn writing(
        &self,
        job: &'a Job<'_>,
        beside: &'a dyn Beside,
    ) -> Result<Option<Arc<Box<dyn Writing + 'a>>>, Failure> {
        let mut state = self.state();
        if state.failed.is_some() {
            return Ok(None);
        }
        if state.writing.is_none() {
            let entry = &job.contents.listing().entries()[self.file.1];
            state.writing = Some(Arc::new(beside.file(self.file.0, entry)?));
        }
        Ok(state.writing.clone())
    }
}

fn write_whole(
    job: &Job<'_>,
    beside: &dyn Beside,
    (part, item): (usize, usize),
) -> Result<Finished, Failure> {
    let entry = &job.contents.listing().entries()[item];
    let writing = beside.file(part, entry)?;
    write_stretch(job, &*writing, item, 0..entry.meta.size.0)?;
    writing.finish()
}

fn write_content(
    job: &Job<'_>,
    beside: &dyn Beside,
    (part, item): (usize, usize),
    content: &[u8],
) -> Result<Finished, Failure> {
    let entry = &job.contents.listing().entries()[item];
    let writing = beside.file(part, entry)?;
    let mut stretch = writing.stretch(0..entry.meta.size.0)?;
    stretch.append(content)?;
    stretch.end()?;
    job.progress.advance(Bytes(content.len() as u64));
    writing.finish()
}

fn write_stretch(
    job: &Job<'_>,
    writing: &dyn Writing,
    item: usize,
    range: Range<u64>,
) -> Result<(), Failure> {
    let mut stretch = writing.stretch(range.clone())?;
    job.contents.read(item, range, &mut |bytes| {
        stretch.append(bytes)?;
        job.progress.advance(Bytes(bytes.len() as u64));
        Ok(())
    })?;
    stretch.end()
}

#[cfg(test)]
mod tests {
    use super::{SHARE, STRETCH, shares};

    #[test]
    fn all_of_every_file_is_shared_out_and_the_last_in_smaller_parts() {
        for (sizes, threads) in [
            (vec![], 2),
            (vec![STRETCH + 1, 9 * STRETCH, 3 * STRETCH - 5], 2),
            (vec![40 * STRETCH + 7, STRETCH + 1], 6),
            (vec![STRETCH + 1], 1),
        ] {
            let all = shares(&sizes, threads);
            for (number, size) in sizes.iter().enumerate() {
                let mut at = 0;
                for (_, range) in all.iter().filter(|(of, _)| *of == number) {
                    assert_eq!((range.start, at % SHARE), (at, 0));
                    at = range.end;
                }
                assert_eq!(at, *size);
            }
            let last = all.iter().rev().take(threads);
            assert!(last.clone().all(|(_, range)| range.end - range.start <= SHARE), "{sizes:?}");
        }
        assert!(shares(&[40 * STRETCH], 6).len() < 60, "most of it is shared out in large parts");
    }
}
