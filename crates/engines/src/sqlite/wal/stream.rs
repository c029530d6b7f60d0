//! Telling the main process what was committed.
//!
//! Crash story: a transaction that is told only in part is worthless, and told again by the next helper.

use std::{fs::File, io, io::Write};

use jiff::Timestamp;
use model::logs::WalPosition;
use sha2::{Digest, Sha256};

use super::{
    frames::{self, LogHeader, Transaction, Unreadable},
    index::Index,
    record::RecordHead,
};
use crate::sqlite::{helper::say, protocol::Reply};

/// Bytes are handed on in pieces of about this size.
const PIECE: usize = 1 << 18;

/// Tells all transactions from `place` to the end that the index names, and moves `place` on. Says how many there were.
///
/// # Errors
/// If the log does not go on from `place`, or cannot be read, or the main process cannot be reached.
pub(super) fn tell(
    log: &File,
    place: &mut WalPosition,
    index: &Index,
    captured: Timestamp,
) -> Result<u64, Unreadable> {
    // A log that was emptied, and a new one without a transaction, have nothing to tell.
    if index.frames == 0 {
        return Ok(0);
    }
    if index.salts == place.salts && index.frames == place.frame && index.checksum == place.checksum {
        return Ok(0);
    }
    let header = frames::header(log)?;
    let Some(header) = header.filter(|header| header.salts == index.salts) else {
        return Err(Unreadable::Wrong("its log is not the one that its index is of".into()));
    };
    if header.salts != place.salts {
        let generation = place.generation + 1;
        *place = WalPosition { generation, salts: header.salts, frame: 0, checksum: header.checksum };
    }
    if place.frame == 0 {
        place.checksum = header.checksum;
    }
    if index.frames < place.frame {
        return Err(Unreadable::Wrong("its log has become shorter".into()));
    }
    let mut told = 0;
    while let Some(transaction) = header.next(log, place, index.frames)? {
        send(log, &header, &transaction, captured)?;
        *place = transaction.to;
        told += 1;
    }
    if place.checksum == index.checksum {
        Ok(told)
    } else {
        Err(Unreadable::Wrong("the end of its log is not what was committed".into()))
    }
}

fn send(
    log: &File,
    header: &LogHeader,
    transaction: &Transaction,
    captured: Timestamp,
) -> Result<(), Unreadable> {
    let head = RecordHead {
        captured,
        to: transaction.to,
        page_size: header.page_size,
        database_pages: transaction.database_pages,
        pages: u32::try_from(transaction.frames.len()).map_err(io::Error::other)?,
    };
    say(&Reply::Transaction { bytes: head.bytes(), to: head.to, captured })?;
    let mut out = io::stdout().lock();
    let mut digest = Sha256::new();
    let mut piece = head.to_bytes();
    let mut page = vec![0; header.page_size as usize];
    for (number, frame) in &transaction.frames {
        piece.extend(number.to_be_bytes());
        header.page(log, *frame, &mut page)?;
        piece.extend_from_slice(&page);
        if piece.len() >= PIECE {
            digest.update(&piece);
            out.write_all(&piece)?;
            piece.clear();
        }
    }
    digest.update(&piece);
    piece.extend(digest.finalize());
    out.write_all(&piece)?;
    out.flush()?;
    Ok(())
}
