//! The one that writes the log of one source.
//!
//! Order of things in a segment's life: its head (durable), `.open`, bytes, `fdatasync`; then sync, `.open` → `.seg`, sidecar,
//! head removed. Recovery ([`Writer::resume`]) finishes or takes back whatever of this was begun.
//!
//! Crash story: what was synced stays; the open segment is cut back to the end of its last whole transaction, a segment that
//! lost its writer before its sidecar gets one. The lock ends with the process, so there is no second writer.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use model::{
    id::{EpochId, SourceId},
    logs::{
        Added, EpochRecord, LOGS_VERSION, LogKind, LogPlace, LogStatus, SegmentHead, SegmentRecord, WholePart,
    },
    port::Failure,
    port_logs::LogSink,
    server::Gtids,
};
use os::durable::{self, FileLock};
use sha2::{Digest, Sha256};

use super::{
    DIR_MODE, FILE_MODE, LogsError, Spool, Tail,
    catalogue::{self, SourceFile},
    names, scan,
};

/// Bytes are handed to the system in pieces of about this size.
const BUFFER: usize = 1 << 18;

/// Writes the log of one source. See [`super`] for what to do after an error.
pub struct Writer {
    dir: PathBuf,
    tail: Box<dyn Tail>,
    kind: LogKind,
    epoch: Option<Current>,
    open: Option<OpenSegment>,
    broken: bool,
    _lock: FileLock,
}

struct Current {
    record: EpochRecord,
    dir: PathBuf,
    last: Option<SegmentRecord>,
}

struct OpenSegment {
    head: SegmentHead,
    number: u64,
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    written: u64,
    digest: Sha256,
    whole: WholePart,
    counted: WholePart,
}

impl Writer {
    pub(super) fn open(
        spool: &Spool,
        source: &SourceId,
        kind: LogKind,
        tail: Box<dyn Tail>,
    ) -> Result<Self, LogsError> {
        let dir = spool.source_dir(source);
        durable::create_dirs(&dir, DIR_MODE).map_err(LogsError::io("made", &dir))?;
        let lock = dir.join(names::LOCK);
        let lock = FileLock::try_exclusive(&lock).map_err(LogsError::io("locked", &lock))?;
        let lock = lock.ok_or_else(|| LogsError::Busy { source_id: source.clone() })?;
        name_source(&dir, source, kind)?;
        let mut writer = Self { dir, tail, kind, epoch: None, open: None, broken: true, _lock: lock };
        writer.resume()?;
        Ok(writer)
    }

    /// The epoch that is being written; nothing before the first.
    #[must_use]
    pub fn epoch(&self) -> Option<&EpochRecord> {
        self.epoch.as_ref().map(|current| &current.record)
    }

    /// Everything of the epoch before this place is on disk.
    #[must_use]
    pub fn reached(&self) -> Option<&LogPlace> {
        let current = self.epoch.as_ref()?;
        Some(match (&self.open, &current.last) {
            (Some(open), _) => &open.counted.to,
            (None, Some(last)) => &last.to,
            (None, None) => &current.record.from,
        })
    }

    /// GTID state at [`reached`](Self::reached), if it is known.
    #[must_use]
    pub fn gtid_state(&self) -> Option<&Gtids> {
        let current = self.epoch.as_ref()?;
        match (&self.open, &current.last) {
            (Some(open), _) => open.counted.gtid_state.as_ref(),
            (None, Some(last)) => last.gtid_state.as_ref(),
            (None, None) => current.record.gtid_state.as_ref(),
        }
    }

    /// The first bytes of the segment in which [`reached`](Self::reached) is; nothing if it is not here, or shorter.
    #[must_use]
    pub fn first_bytes(&self, count: usize) -> Option<Vec<u8>> {
        let current = self.epoch.as_ref()?;
        let path = match (&self.open, &current.last) {
            (Some(open), _) => open.path.clone(),
            (None, Some(last)) => names::file(&current.dir, last.number, names::SEGMENT),
            (None, None) => return None,
        };
        let mut bytes = vec![0; count];
        File::open(path).and_then(|file| file.read_exact_at(&mut bytes, 0)).ok().map(|()| bytes)
    }

    /// The open segment's head and its bytes so far, for deciding whether it is time for another.
    #[must_use]
    pub fn segment(&self) -> Option<(&SegmentHead, u64)> {
        self.open.as_ref().map(|open| (&open.head, open.written + open.buffer.len() as u64))
    }

    /// Begins an epoch, and ends the one before.
    ///
    /// # Errors
    /// If the open segment holds half a transaction, or something cannot be written.
    pub fn begin_epoch(&mut self, record: EpochRecord) -> Result<(), LogsError> {
        self.begin_epoch_with(record, |_| Ok(()))
    }

    /// The same; `fill` puts into the epoch's directory what must be there when the epoch is, such as `base.db`, and
    /// makes it durable.
    ///
    /// # Errors
    /// Those of `fill`; as [`begin_epoch`](Self::begin_epoch).
    pub fn begin_epoch_with(
        &mut self,
        record: EpochRecord,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), LogsError> {
        self.guarded(|this| {
            this.close_if_open()?;
            let dir = this.dir.join(record.epoch.as_str());
            durable::create_dirs(&dir, DIR_MODE).map_err(LogsError::io("made", &dir))?;
            fill(&dir).map_err(LogsError::io("filled", &dir))?;
            names::write_json(&dir.join(names::EPOCH), &record)?;
            this.epoch = Some(Current { record, dir, last: None });
            Ok(())
        })
    }

    /// Begins a segment with these first bytes, and closes the one before.
    ///
    /// # Errors
    /// If there is no epoch, the open segment holds half a transaction, or something cannot be written.
    pub fn begin_segment(&mut self, head: SegmentHead, lead: &[u8]) -> Result<(), LogsError> {
        self.guarded(|this| {
            this.close_if_open()?;
            let current = this.epoch.as_ref().ok_or(LogsError::Order("no epoch was begun"))?;
            let number = current.last.as_ref().map_or(1, |last| last.number + 1);
            names::write_json(&names::file(&current.dir, number, names::HEAD), &head)?;
            let path = names::file(&current.dir, number, names::OPEN);
            let mut open = OpenSegment::create(path, head, number)?;
            durable::sync_dir(&current.dir).map_err(LogsError::io("synced", &current.dir))?;
            let to = open.head.from.clone();
            open.add(lead, &Added::Whole { to, transactions: 0, commits: None })?;
            this.open = Some(open);
            Ok(())
        })
    }

    /// Appends to the open segment. Nothing counts before [`sync`](Self::sync).
    ///
    /// # Errors
    /// If there is no open segment, or it cannot be written.
    pub fn append(&mut self, bytes: &[u8], added: &Added) -> Result<(), LogsError> {
        self.guarded(|this| match &mut this.open {
            Some(open) => open.add(bytes, added),
            None => Err(LogsError::Order("no segment was begun")),
        })
    }

    /// Puts on disk what was appended; then all whole transactions of it count. `gtid_state` is the state after the last.
    ///
    /// # Errors
    /// If it cannot be written: what counted before still does, and nothing else.
    pub fn sync(&mut self, gtid_state: Option<Gtids>) -> Result<(), LogsError> {
        self.guarded(|this| match &mut this.open {
            Some(open) => open.sync(gtid_state),
            None => Ok(()),
        })
    }

    /// Closes the open segment, if there is one; it must end with a whole transaction and be synced.
    ///
    /// # Errors
    /// If it does not, or cannot be written. Bytes that count stay so.
    pub fn close_segment(&mut self) -> Result<Option<SegmentRecord>, LogsError> {
        self.guarded(Self::close_if_open)
    }

    /// Writes down how far we are, for people and other programs. It is no part of what counts, so a full disk is no error.
    ///
    /// # Errors
    /// If it cannot be written for another reason.
    pub fn status(&mut self, status: &LogStatus) -> Result<(), LogsError> {
        match names::write_json(&self.dir.join(names::STATUS), status) {
            Err(error) if error.is_no_space() => Ok(()),
            written => written,
        }
    }

    /// Takes stock again, as after a crash: the open segment is cut back to what is whole of it. To be called after an
    /// error; also gives back the space of what did not count.
    ///
    /// # Errors
    /// If something cannot be read or written. It may be called again.
    pub fn resume(&mut self) -> Result<(), LogsError> {
        (self.open, self.epoch) = (None, None);
        self.broken = true;
        durable::remove_leftovers(&self.dir).map_err(LogsError::io("tidied", &self.dir))?;
        let mut damaged = Vec::new();
        let record = catalogue::records(&self.dir, &mut damaged)?.pop();
        if let Some((path, what)) = damaged.into_iter().next() {
            return Err(LogsError::Damaged { path, what });
        }
        if let Some(record) = record {
            let dir = self.dir.join(record.epoch.as_str());
            durable::remove_leftovers(&dir).map_err(LogsError::io("tidied", &dir))?;
            let (last, open) = recover(&dir, &record.epoch, self.tail.as_ref())?;
            self.epoch = Some(Current { record, dir, last });
            self.open = open;
        }
        self.broken = false;
        Ok(())
    }

    /// What it consists of.
    #[must_use]
    pub fn kind(&self) -> LogKind {
        self.kind
    }

    fn close_if_open(&mut self) -> Result<Option<SegmentRecord>, LogsError> {
        let (Some(open), Some(current)) = (&mut self.open, &mut self.epoch) else { return Ok(None) };
        if open.whole.bytes != open.written + open.buffer.len() as u64 {
            return Err(LogsError::Order("a segment ends with a whole transaction"));
        }
        open.sync(open.whole.gtid_state.clone())?;
        let record = seal(&current.dir, &current.record.epoch, open)?;
        current.last = Some(record.clone());
        self.open = None;
        Ok(Some(record))
    }

    fn guarded<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, LogsError>) -> Result<T, LogsError> {
        if self.broken {
            return Err(LogsError::Order("it was not resumed after an error"));
        }
        let done = run(self);
        self.broken = done.is_err();
        done
    }
}

impl OpenSegment {
    fn create(path: PathBuf, head: SegmentHead, number: u64) -> Result<Self, LogsError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path);
        let file = file.map_err(LogsError::io("made", &path))?;
        let nothing = WholePart {
            bytes: 0,
            to: head.from.clone(),
            transactions: 0,
            commits: None,
            gtid_state: head.gtid_state.clone(),
        };
        Ok(Self {
            head,
            number,
            path,
            file,
            buffer: Vec::new(),
            written: 0,
            digest: Sha256::new(),
            counted: nothing.clone(),
            whole: nothing,
        })
    }

    fn add(&mut self, bytes: &[u8], added: &Added) -> Result<(), LogsError> {
        self.digest.update(bytes);
        self.buffer.extend_from_slice(bytes);
        if let Added::Whole { to, transactions, commits } = added {
            let before = &self.whole;
            let commits = match (before.commits, *commits) {
                (Some(before), Some(added)) => Some(before.with(added)),
                (before, added) => before.or(added),
            };
            self.whole = WholePart {
                bytes: self.written + self.buffer.len() as u64,
                to: to.clone(),
                transactions: before.transactions + transactions,
                commits,
                gtid_state: before.gtid_state.clone(),
            };
        }
        if self.buffer.len() >= BUFFER { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<(), LogsError> {
        let written = self.file.write_all_at(&self.buffer, self.written);
        written.map_err(LogsError::io("written", &self.path))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn sync(&mut self, gtid_state: Option<Gtids>) -> Result<(), LogsError> {
        self.write_out()?;
        self.file.sync_data().map_err(LogsError::io("synced", &self.path))?;
        self.whole.gtid_state = gtid_state;
        self.counted = self.whole.clone();
        Ok(())
    }
}

/// Gives a segment that is whole and synced its final name and its sidecar.
fn seal(dir: &Path, epoch: &EpochId, open: &OpenSegment) -> Result<SegmentRecord, LogsError> {
    let path = names::file(dir, open.number, names::SEGMENT);
    let last = scan::written_at(&open.path)?;
    durable::rename_to_new(&open.path, &path).map_err(LogsError::io("renamed", &open.path))?;
    let digest = open.digest.clone();
    let record = scan::record(epoch, open.number, &open.head, &open.counted, digest, last);
    finish(dir, &record)?;
    Ok(record)
}

fn finish(dir: &Path, record: &SegmentRecord) -> Result<(), LogsError> {
    names::write_json(&names::file(dir, record.number, names::SIDECAR), record)?;
    remove(&names::file(dir, record.number, names::HEAD))
}

fn remove(path: &Path) -> Result<(), LogsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LogsError::io("removed", path)(error)),
        _ => Ok(()),
    }
}

fn name_source(dir: &Path, source: &SourceId, kind: LogKind) -> Result<(), LogsError> {
    let path = dir.join(names::SOURCE);
    let ours = SourceFile { version: LOGS_VERSION, source: source.clone(), kind };
    match names::read_json::<SourceFile>(&path)? {
        None => names::write_json(&path, &ours),
        Some(there) if there == ours => Ok(()),
        Some(there) => Err(LogsError::damaged(&path, format!("belongs to {}", there.source))),
    }
}

/// Finishes or takes back what was begun with the segments of an epoch.
fn recover(
    dir: &Path,
    epoch: &EpochId,
    tail: &dyn Tail,
) -> Result<(Option<SegmentRecord>, Option<OpenSegment>), LogsError> {
    let files = names::list(dir)?;
    let mut open = None;
    for number in names::numbers(&files, names::HEAD) {
        let path = |kind| names::file(dir, number, kind);
        let head: Option<SegmentHead> = names::read_json(&path(names::HEAD))?;
        let Some(head) = head else { continue };
        if path(names::SIDECAR).exists() {
            remove(&path(names::HEAD))?;
        } else if path(names::SEGMENT).exists() {
            let segment = reopen(path(names::SEGMENT), head, number, tail)?;
            let last = scan::written_at(&segment.path)?;
            let record =
                scan::record(epoch, number, &segment.head, &segment.counted, segment.digest.clone(), last);
            finish(dir, &record)?;
        } else {
            let segment = reopen(path(names::OPEN), head, number, tail)?;
            if segment.counted.bytes > segment.head.lead {
                open = Some(segment);
            } else {
                remove(&path(names::OPEN))?;
                remove(&path(names::HEAD))?;
            }
        }
    }
    durable::sync_dir(dir).map_err(LogsError::io("synced", dir))?;
    let last = names::numbers(&names::list(dir)?, names::SIDECAR).pop();
    let last = last.map(|number| names::file(dir, number, names::SIDECAR));
    Ok((last.map(|path| names::read_json(&path)).transpose()?.flatten(), open))
}

/// Opens a segment for going on with what is whole of it; the rest is cut off.
fn reopen(path: PathBuf, head: SegmentHead, number: u64, tail: &dyn Tail) -> Result<OpenSegment, LogsError> {
    let whole = scan::whole(&path, &head, tail)?;
    let digest = scan::digest(&path, whole.bytes)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(&path);
    let file = file.map_err(LogsError::io("opened", &path))?;
    file.set_len(whole.bytes).and_then(|()| file.sync_all()).map_err(LogsError::io("cut", &path))?;
    let written = whole.bytes;
    Ok(OpenSegment {
        head,
        number,
        path,
        file,
        buffer: Vec::new(),
        written,
        digest,
        counted: whole.clone(),
        whole,
    })
}

impl LogSink for Writer {
    fn epoch(&self) -> Option<EpochRecord> {
        Self::epoch(self).cloned()
    }

    fn reached(&self) -> Option<LogPlace> {
        Self::reached(self).cloned()
    }

    fn gtid_state(&self) -> Option<Gtids> {
        Self::gtid_state(self).cloned()
    }

    fn first_bytes(&self, count: usize) -> Option<Vec<u8>> {
        Self::first_bytes(self, count)
    }

    fn segment(&self) -> Option<(SegmentHead, u64)> {
        Self::segment(self).map(|(head, bytes)| (head.clone(), bytes))
    }

    fn begin_epoch(&mut self, record: EpochRecord) -> Result<(), Failure> {
        Ok(Self::begin_epoch(self, record)?)
    }

    fn begin_segment(&mut self, head: SegmentHead, lead: &[u8]) -> Result<(), Failure> {
        Ok(Self::begin_segment(self, head, lead)?)
    }

    fn append(&mut self, bytes: &[u8], added: &Added) -> Result<(), Failure> {
        Ok(Self::append(self, bytes, added)?)
    }

    fn sync(&mut self, gtid_state: Option<Gtids>) -> Result<(), Failure> {
        Ok(Self::sync(self, gtid_state)?)
    }

    fn close_segment(&mut self) -> Result<(), Failure> {
        Self::close_segment(self)?;
        Ok(())
    }

    fn status(&mut self, status: &LogStatus) -> Result<(), Failure> {
        Ok(Self::status(self, status)?)
    }

    fn resume(&mut self) -> Result<(), Failure> {
        Ok(Self::resume(self)?)
    }
}
