//! The log archive's snapshot against its own sidecars.
//!
//! Crash story: reads only, under the lock of the check.

use model::{id::SourceId, logs::Epoch, problem::Problem};

use super::{
    super::{error::RepositoryError, logs::Shelf, open::Repository},
    Depth,
};

const REMEDY: &str = "bring the segment back from the spool or another tier; the time that it covers cannot be restored \
                      otherwise, see `stillpoint coverage`";

/// Segments that the newest snapshot should hold and does not, and at full depth those that are not what their sidecars
/// say.
pub(super) fn problems(repository: &Repository, depth: Depth) -> Result<Vec<Problem>, RepositoryError> {
    let Some(shelf) = repository.log_shelf_under(None)? else { return Ok(Vec::new()) };
    let catalogue = shelf.catalogue();
    let mut problems = Vec::new();
    for (name, what) in &catalogue.strange {
        problems.push(Problem::missing(
            name,
            format!("the log archive in it is not understood: {what}"),
            REMEDY,
        ));
    }
    for log in &catalogue.sources {
        problems.extend(log.damaged.iter().map(|(path, what)| Problem::missing(path, what, REMEDY)));
        for epoch in &log.epochs {
            problems.extend(of_epoch(&shelf, &log.source, epoch, depth));
        }
    }
    Ok(problems)
}

fn of_epoch(shelf: &Shelf, source: &SourceId, epoch: &Epoch, depth: Depth) -> Vec<Problem> {
    let mut wrong = epoch.damaged.clone();
    if depth == Depth::ReadData {
        let whole = epoch.segments.iter().map(|segment| segment.number);
        for number in whole.filter(|number| !epoch.damaged.iter().any(|(damaged, _)| damaged == number)) {
            wrong.extend(shelf.segment(source, &epoch.record.epoch, number).err().map(|what| (number, what)));
        }
    }
    let problem = |(number, what)| {
        let what = format!("segment {number} of the log of {source}, epoch {}, {what}", epoch.record.epoch);
        Problem::missing(Shelf::path(source, &epoch.record.epoch, number), what, REMEDY)
    };
    wrong.into_iter().map(problem).collect()
}
