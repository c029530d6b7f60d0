//! Reading all of the log archive: whether every closed segment is what its sidecar says.
//!
//! Crash story: reads only. A segment that is discarded meanwhile is in a backup, and passed over.

use std::{fmt, io};

use model::id::{EpochId, SourceId};
use sha2::Digest as _;

use super::{Catalogue, LogsError, names, scan};

/// A segment that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Whose log.
    pub source: SourceId,
    /// In which epoch.
    pub epoch: EpochId,
    /// Which segment.
    pub number: u64,
    /// What was found.
    pub what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, epoch {}, segment {}: {}", self.source, self.epoch, self.number, self.what)
    }
}

pub(super) fn all(catalogue: &Catalogue, each: &mut dyn FnMut(u64)) -> Result<Vec<Wrong>, LogsError> {
    let mut wrong = Vec::new();
    let mut read = 0;
    for log in &catalogue.sources {
        for epoch in &log.epochs {
            let id = &epoch.record.epoch;
            let mut found = |number, what| {
                wrong.push(Wrong { source: log.source.clone(), epoch: id.clone(), number, what });
            };
            epoch.damaged.iter().for_each(|(number, what)| found(*number, what.clone()));
            let damaged = |number| epoch.damaged.iter().any(|(known, _)| *known == number);
            for segment in epoch.segments.iter().filter(|segment| !damaged(segment.number)) {
                let path = names::file(&log.epoch_dir(id), segment.number, names::SEGMENT);
                if !path.exists() {
                    continue;
                }
                let digest = scan::digest(&path, segment.bytes.0);
                match digest.map(|digest| hex::encode(digest.finalize())) {
                    Ok(digest) if digest == segment.sha256 => {}
                    Ok(_) => found(segment.number, "its bytes are not what was written (SHA-256)".into()),
                    Err(LogsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => found(segment.number, error.to_string()),
                }
                read += segment.bytes.0;
                each(read);
            }
        }
    }
    Ok(wrong)
}
