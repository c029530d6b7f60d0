//! What restores in place that died have left in a server: [`recover`], [`undo_exchange`].
//!
//! Crash story: the server itself tells what was done and what is to be put back, see [`super::swap`]; all of it may be done
//! again. Two at once would be in each other's way: the journal of a dead run, and the lock of the application, let in
//! only one.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path};

use model::{
    pathtext,
    port::{Failure, FailureKind},
    undo::Undo,
};
use os::staging;

use super::{
    super::connect::Connection,
    load::{Client, STEP, Target},
    session::{bound, rows},
    swap::{NEW, Names, OLD, drop_both, drop_database, put_programs_back, put_tables_back, state},
};

/// Puts back what restores of these databases, or of all, that died have left beside the live ones, or drops it if they had
/// finished. Returns the names of the live databases.
///
/// # Errors
/// What the server says.
pub fn recover(target: &Target<'_>, databases: &[String]) -> Result<Vec<String>, Failure> {
    let client = Client::new(Path::new("/"), target)?;
    let found = recover_by(&client, databases)?;
    client.end()?;
    Ok(found)
}

/// Undoes an [`Undo::ServerExchange`].
///
/// # Errors
/// What the server says, such as that it does not run.
pub fn undo_exchange(undo: &Undo) -> Result<(), Failure> {
    let Undo::ServerExchange { access, databases, staging } = undo else { return Ok(()) };
    make(staging)?;
    let done = Client::undoing(access, staging).and_then(|client| recover_by(&client, databases));
    staging::remove(staging)?;
    // What to do is the same whatever it is, and whoever undoes says it.
    done.map(drop).map_err(|failure| Failure { remedy: String::new(), ..failure })
}

/// It may have gone with the run that is dead.
fn make(dir: &Path) -> Result<(), Failure> {
    let name = dir.file_name().unwrap_or_default().as_encoded_bytes();
    if !name.starts_with(staging::PREFIX.as_bytes()) {
        return Err(staging::StagingError::NotOurs(dir.to_owned()).into());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        let what = format!("{} cannot be made", pathtext::show(dir));
        Failure::new(FailureKind::Other, what, "run it as the user who owns the partition").because(error)
    })
}

fn recover_by(client: &Client<'_>, databases: &[String]) -> Result<Vec<String>, Failure> {
    let mut conn = client.connect()?;
    bound(&mut conn, STEP)?;
    let mut found = Vec::new();
    for old in left_behind(&mut conn, OLD, databases)? {
        let new = format!("{NEW}{}", old.trim_start_matches(OLD));
        let Some((live, done)) = state(&mut conn, &old)? else {
            // Made, and nothing else yet; or dropped in part, after the end.
            drop_both(&mut conn, &Names { live: String::new(), old, new })?;
            continue;
        };
        let names = Names { live: live.clone(), old, new };
        if done {
            drop_both(&mut conn, &names)?;
        } else {
            put_tables_back(&mut conn, std::slice::from_ref(&names))?;
            put_programs_back(&mut conn, client, &names)?;
        }
        found.push(live);
    }
    for new in left_behind(&mut conn, NEW, databases)? {
        drop_database(&mut conn, &new)?;
    }
    Ok(found)
}

fn left_behind(conn: &mut Connection, prefix: &str, databases: &[String]) -> Result<Vec<String>, Failure> {
    let all = rows(conn, "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA")?;
    let is_one = |name: &String| {
        name.strip_prefix(prefix).is_some_and(|rest| databases.is_empty() || Names::is_of(rest, databases))
    };
    Ok(all.iter().map(|row| row.text(0)).filter(is_one).collect())
}
