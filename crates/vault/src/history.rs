//! History files: one line a backup, appended to `{place}/history/backup-{name}-{yyyymmdd}` (UTC). Written
//! form: `docs/format/history.md`.
//!
//! Crash story: a line is appended by one write, under a lock of the file, and is on disk before [`append`]
//! returns. Stopped within the write, a torn line is left without its line feed: the next [`append`] closes it
//! first, so that it spoils no other line, and [`read`] shows it as torn instead of losing it. If the disk
//! is full, what was written of the line is taken back. Other runs may append at the same time: each
//! waits for the lock, which is held for one write and ends with its holder.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use model::{
    history::{HistoryLine, file_name},
    history_log::{self, LogLine},
    id::AppName,
    pathtext,
};
use rustix::fs::{FlockOperation, OFlags, flock};

const DIR_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

/// A history file that could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("history {} cannot be {doing}", pathtext::show(path))]
pub struct HistoryFileError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl HistoryFileError {
    fn new(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { doing, path: path.to_owned(), source }
    }
}

impl From<HistoryFileError> for model::port::Failure {
    fn from(error: HistoryFileError) -> Self {
        use model::port::FailureKind;
        let kind = match error.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::NoSpace,
            _ => FailureKind::Other,
        };
        let what = error.to_string();
        Self::new(kind, what, "the backups themselves are not touched").because(error.source)
    }
}

/// What the history files of a place say, oldest file first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// The lines in the order in which they were appended.
    pub lines: Vec<HistoryLine>,
    /// What is no line: torn by a crash, or not ours.
    pub torn: Vec<TornLine>,
}

/// Something in a history file that is no line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornLine {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
    /// What is left of it; bytes that are no text are shown as U+FFFD.
    pub text: String,
}

/// Appends a line to the history of an application, whose files lie in `{place}/history`, durably. The
/// file is that of the line's own UTC day.
///
/// # Errors
/// If it cannot be written; no part of the line is left then, unless taking it back fails too.
pub fn append(place: &Path, application: &AppName, line: &HistoryLine) -> Result<(), HistoryFileError> {
    append_to(place, &file_name(application, line.time), line)
}

/// The same with a line of the log archive's history.
///
/// # Errors
/// As [`append`].
pub fn append_log(place: &Path, application: &AppName, line: &LogLine) -> Result<(), HistoryFileError> {
    append_to(place, &history_log::file_name(application, line.time), line)
}

fn append_to(place: &Path, name: &str, line: &impl fmt::Display) -> Result<(), HistoryFileError> {
    let dir = place.join("history");
    let path = dir.join(name);
    os::durable::create_dirs(&dir, DIR_MODE).map_err(HistoryFileError::new("created", &dir))?;
    let written = open(&path).and_then(|file| write(&file, &format!("{line}\n")));
    written.and_then(|()| os::durable::sync_dir(&dir)).map_err(HistoryFileError::new("written", &path))
}

fn open(path: &Path) -> io::Result<File> {
    let no_links = i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
    OpenOptions::new().read(true).append(true).create(true).mode(FILE_MODE).custom_flags(no_links).open(path)
}

fn write(mut file: &File, line: &str) -> io::Result<()> {
    flock(file, FlockOperation::LockExclusive)?;
    let end = file.seek(SeekFrom::End(0))?;
    let text = if is_torn(file, end)? { format!("\n{line}") } else { line.to_owned() };
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| {
        // The error that matters is the first; a part that stays is closed by the next append.
        match file.set_len(end) {
            Ok(()) => error,
            Err(second) => io::Error::new(error.kind(), format!("{error}; nor taken back: {second}")),
        }
    })
}

fn is_torn(mut file: &File, end: u64) -> io::Result<bool> {
    if end == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(end - 1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Reads all history files of a place, also those from before an application got another name. A place
/// without any has an empty history.
///
/// # Errors
/// If a file or the directory cannot be read.
pub fn read(place: &Path) -> Result<History, HistoryFileError> {
    let dir = place.join("history");
    let mut files = match list(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(History::default()),
        listed => listed.map_err(HistoryFileError::new("listed", &dir))?,
    };
    files.sort();
    let mut history = History::default();
    for (_, path) in files {
        let bytes = fs::read(&path).map_err(HistoryFileError::new("read", &path))?;
        read_lines(&path, &bytes, &mut history);
    }
    Ok(history)
}

/// The history files of a directory with their days.
fn list(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let day = name.to_str().and_then(|n| n.strip_prefix("backup-")).and_then(|n| n.rsplit_once('-'));
        if let Some((_, day)) = day
            && day.len() == 8
            && day.bytes().all(|b| b.is_ascii_digit())
        {
            files.push((day.to_owned(), entry.path()));
        }
    }
    Ok(files)
}

fn read_lines(file: &Path, bytes: &[u8], history: &mut History) {
    let text = String::from_utf8_lossy(bytes);
    for (index, line) in text.split('\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        match line.parse() {
            Ok(line) => history.lines.push(line),
            Err(_) => {
                let text = line.to_owned();
                history.torn.push(TornLine { file: file.to_owned(), line: index + 1, text });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path, thread};

    use model::{
        history::{HistoryLine, Status},
        id::AppName,
        port::{Failure, FailureKind},
    };

    use super::{append, read};

    fn name() -> AppName {
        AppName::new("hydro").unwrap()
    }

    fn line(time: &str, message: &str) -> HistoryLine {
        HistoryLine {
            time: time.parse().unwrap(),
            cut: None,
            backup: None,
            files: Some(7),
            bytes: None,
            bytes_read: None,
            bytes_added: None,
            stall_ms: None,
            verdict: None,
            status: Status::Failed,
            duration_s: 2.5,
            message: message.to_owned(),
        }
    }

    fn file(place: &Path) -> std::path::PathBuf {
        place.join("history/backup-hydro-20261120")
    }

    #[test]
    fn lines_come_back_in_order_over_days() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(read(place.path()).unwrap(), super::History::default());
        let lines = [
            line("2026-11-19T23:59:59Z", "first"),
            line("2026-11-20T00:00:00Z", "second"),
            line("2026-11-20T12:00:00Z", "third\nof two lines"),
        ];
        for line in &lines {
            append(place.path(), &name(), line).unwrap();
        }
        let history = read(place.path()).unwrap();
        assert_eq!(history.lines, lines);
        assert_eq!(history.torn, []);
        let day = fs::read_to_string(file(place.path())).unwrap();
        assert_eq!(day.lines().count(), 2);
        assert_eq!(fs::metadata(file(place.path())).unwrap().permissions().mode() & 0o027, 0);
    }

    #[test]
    fn a_torn_line_is_closed_and_shown_and_spoils_no_other() {
        let (first, second) = (line("2026-11-20T01:00:00Z", "one"), line("2026-11-20T02:00:00Z", "two"));
        let whole = format!("{first}\n");
        for end in 1..whole.len() {
            let place = tempfile::tempdir().unwrap();
            append(place.path(), &name(), &first).unwrap();
            let torn = fs::OpenOptions::new().write(true).open(file(place.path())).unwrap();
            torn.set_len(u64::try_from(end).unwrap()).unwrap();
            append(place.path(), &name(), &second).unwrap();
            let history = read(place.path()).unwrap();
            // Without its line feed only, the line is whole.
            let missing_feed_only = end == whole.len() - 1;
            assert_eq!(history.lines.len(), 1 + usize::from(missing_feed_only), "cut at {end}");
            assert_eq!(history.lines.last(), Some(&second));
            if !missing_feed_only {
                assert_eq!((history.torn[0].line, history.torn[0].text.as_str()), (1, &whole[..end]));
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_torn_lines_too() {
        let place = tempfile::tempdir().unwrap();
        append(place.path(), &name(), &line("2026-11-20T01:00:00Z", "")).unwrap();
        let mut bytes = fs::read(file(place.path())).unwrap();
        bytes.extend([0, 0, 0xff]);
        fs::write(file(place.path()), bytes).unwrap();
        append(place.path(), &name(), &line("2026-11-20T02:00:00Z", "")).unwrap();
        let history = read(place.path()).unwrap();
        assert_eq!((history.lines.len(), history.torn.len()), (2, 1));
    }

    #[test]
    fn runs_that_append_at_once_lose_nothing() {
        let place = tempfile::tempdir().unwrap();
        thread::scope(|scope| {
            for thread in 0..8 {
                let place = place.path();
                scope.spawn(move || {
                    for number in 0..10 {
                        let line = line("2026-11-20T01:00:00Z", &format!("{thread}/{number}"));
                        append(place, &name(), &line).unwrap();
                    }
                });
            }
        });
        let history = read(place.path()).unwrap();
        let mut messages: Vec<_> = history.lines.iter().map(|l| l.message.clone()).collect();
        messages.sort();
        messages.dedup();
        assert_eq!((messages.len(), history.torn.len()), (80, 0));
    }

    #[test]
    fn a_link_in_place_of_the_file_is_not_followed_and_the_error_names_it() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("history")).unwrap();
        std::os::unix::fs::symlink("/dev/null", file(place.path())).unwrap();
        let error = append(place.path(), &name(), &line("2026-11-20T01:00:00Z", "")).unwrap_err();
        let failure = Failure::from(error);
        assert!(failure.what.ends_with("backup-hydro-20261120 cannot be written"), "{failure}");
        assert_eq!(failure.kind, FailureKind::Other);
    }
}
