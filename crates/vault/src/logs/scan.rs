//! Describing a segment from its own bytes: the open one, or a closed one whose sidecar was not written any more.
//!
//! Crash story: reads only. A segment that grows meanwhile is described up to some transaction that is whole.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use jiff::Timestamp;
use model::{
    id::EpochId,
    logs::{LOGS_VERSION, SegmentHead, SegmentRecord, Span, WholePart},
    size::Bytes,
};
use sha2::{Digest, Sha256};

use super::{LogsError, Tail};

/// What is whole of a segment. Its file may be missing, if we stopped between its head and it.
pub(super) fn whole(path: &Path, head: &SegmentHead, tail: &dyn Tail) -> Result<WholePart, LogsError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(nothing(head));
        }
        opened => opened.map_err(LogsError::io("opened", path))?,
    };
    let mut file = io::BufReader::with_capacity(1 << 18, file);
    let whole = tail.whole(head, &mut file).map_err(LogsError::io("read", path))?;
    Ok(if whole.bytes < head.lead { nothing(head) } else { whole })
}

fn nothing(head: &SegmentHead) -> WholePart {
    WholePart {
        bytes: 0,
        to: head.from.clone(),
        transactions: 0,
        commits: None,
        gtid_state: head.gtid_state.clone(),
    }
}

/// SHA-256 of the first bytes of a file.
pub(crate) fn digest(path: &Path, bytes: u64) -> Result<Sha256, LogsError> {
    let read = || -> io::Result<Sha256> {
        let mut digest = Sha256::new();
        let mut file = File::open(path)?.take(bytes);
        let mut buffer = vec![0; 1 << 18];
        let mut left = bytes;
        while left > 0 {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            digest.update(&buffer[..n]);
            left -= n as u64;
        }
        Ok(digest)
    };
    if bytes == 0 { Ok(Sha256::new()) } else { read().map_err(LogsError::io("read", path)) }
}

/// The sidecar of a segment.
pub(super) fn record(
    epoch: &EpochId,
    number: u64,
    head: &SegmentHead,
    whole: &WholePart,
    digest: Sha256,
    last: Timestamp,
) -> SegmentRecord {
    SegmentRecord {
        version: LOGS_VERSION,
        epoch: epoch.clone(),
        number,
        from: head.from.clone(),
        to: whole.to.clone(),
        lead: head.lead,
        bytes: Bytes(whole.bytes),
        sha256: hex::encode(digest.finalize()),
        transactions: whole.transactions,
        gtid_state: whole.gtid_state.clone(),
        commits: whole.commits,
        received: Span { first: head.begun_at, last: last.max(head.begun_at) },
    }
}

/// When a file was last written to.
pub(super) fn written_at(path: &Path) -> Result<Timestamp, LogsError> {
    let time = std::fs::metadata(path).and_then(|meta| meta.modified());
    let time = time.map_err(LogsError::io("looked at", path))?;
    Timestamp::try_from(time).map_err(|error| LogsError::damaged(path, error.to_string()))
}
