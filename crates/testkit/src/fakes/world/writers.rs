//! How the writers of a world go on, one step at a time.
//!
//! Crash story: in memory.

use std::path::{Path, PathBuf};

use model::id::SourceId;
use rand::Rng;

use super::{Change, LiveFile, Phase, Reach, State};

impl State {
    /// Runs the writers up to `until`, each at its time.
    pub(super) fn run_until(&mut self, until: u64) {
        loop {
            let due = (0..self.writers.len())
                .filter(|i| self.writers[*i].waiting_since.is_none())
                .min_by_key(|i| self.writers[*i].next);
            match due {
                Some(i) if self.writers[i].next <= until => {
                    self.now = self.now.max(self.writers[i].next);
                    if self.is_barred(i) {
                        self.writers[i].waiting_since = Some(self.now);
                    } else {
                        self.step(i);
                    }
                }
                _ => break,
            }
        }
        self.now = until;
    }

    fn is_barred(&self, writer: usize) -> bool {
        let writer = &self.writers[writer];
        self.barriers.values().filter(|b| !b.lost).any(|barrier| match &barrier.reach {
            Reach::Everybody => true,
            Reach::Database(database) => {
                writer.phase == Phase::Name && writer.database.as_ref() == Some(database)
            }
        })
    }

    pub(super) fn release_waiting(&mut self) {
        for i in 0..self.writers.len() {
            if let Some(since) = self.writers[i].waiting_since
                && !self.is_barred(i)
            {
                self.worst_wait = self.worst_wait.max(self.now - since);
                self.writers[i].waiting_since = None;
                self.writers[i].next = self.now;
            }
        }
    }

    fn step(&mut self, i: usize) {
        let now = self.now;
        let pause = self.random.random_range(200_000..12_000_000);
        let rest = self.random.random_range(1_000_000..60_000_000);
        let count = self.writers[i].count;
        let slot = format!("w{i}-{}", count % 4);
        match self.writers[i].phase {
            Phase::Store => {
                let path = self.writers[i].directory.join(format!("w{i}-{count}"));
                self.write(now, &path, format!("upload {count} of {i}").into_bytes());
                self.writers[i].stored = path;
                self.writers[i].phase = Phase::Name;
            }
            Phase::Name => {
                let stored = self.writers[i].stored.clone();
                if let Some(database) = self.writers[i].database.clone() {
                    self.writers[i].replaced = self.put(now, &database, slot, stored);
                }
                self.writers[i].phase = Phase::Remove;
            }
            Phase::Remove => {
                if let Some(replaced) = self.writers[i].replaced.take() {
                    self.remove(now, &replaced);
                }
                self.writers[i].count += 1;
                self.writers[i].phase = Phase::Store;
            }
        }
        let rests = self.writers[i].phase == Phase::Store;
        self.writers[i].next = now + pause + if rests { rest } else { 0 };
    }

    pub(super) fn write(&mut self, now: u64, path: &Path, bytes: Vec<u8>) {
        self.next_id += 1;
        let inode = self.files.get(path).map_or(self.next_id, |file| file.inode);
        self.files.insert(path.to_owned(), LiveFile { bytes: bytes.clone(), changed: now, inode });
        self.log.push((now, Change::File(path.to_owned(), Some(bytes))));
    }

    pub(super) fn remove(&mut self, now: u64, path: &Path) {
        if self.files.remove(path).is_some() {
            self.log.push((now, Change::File(path.to_owned(), None)));
        }
    }

    pub(super) fn put(
        &mut self,
        now: u64,
        database: &SourceId,
        key: String,
        names: PathBuf,
    ) -> Option<PathBuf> {
        self.log.push((now, Change::Row(database.clone(), key.clone(), names.clone())));
        self.rows.insert((database.clone(), key), names)
    }
}
