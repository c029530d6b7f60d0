//! Whether the log archive goes on from what it has, and where: a pure function of what it holds and what the server is like.
//!
//! Crash story: pure.

use crate::{
    gtid::GtidState,
    id::EpochId,
    logs::{Beginning, HoleCause, LogServer, binlog_order},
    port_logs::{Seen, Start},
    server::{BinlogPosition, Flavor, Gtids},
};

/// Offset of the first event of a file.
pub const FIRST: u64 = 4;
/// Servers cannot be asked to begin beyond this offset.
pub const LAST_START: u64 = u32::MAX as u64;

/// What the archive holds of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The epoch.
    pub epoch: EpochId,
    /// Whose log it is.
    pub server: LogServer,
    /// Up to where.
    pub reached: BinlogPosition,
    /// Which GTIDs, if that is known.
    pub gtid_state: Option<Gtids>,
}

/// Where the newest backup stands: the archive that is begun begins there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// `@@server_id` of the server.
    pub server_id: u32,
    /// Where it stood.
    pub place: BinlogPosition,
    /// State of GTIDs there.
    pub gtid_state: Option<Gtids>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Go {
    /// Go on in the same epoch.
    On {
        /// From here.
        from: BinlogPosition,
    },
    /// Begin an epoch.
    Begin {
        /// Why.
        beginning: Beginning,
        /// Where.
        start: Start,
        /// State of GTIDs there, if it is known.
        gtid_state: Option<Gtids>,
    },
    /// This is not the server whose log is held.
    Refuse {
        /// Why not.
        what: String,
        /// What a person can do.
        remedy: String,
    },
}

/// Decides. `cut` counts only if nothing is held.
#[must_use]
pub fn decide(held: Option<&Held>, cut: Option<&Cut>, seen: &Seen) -> Go {
    let Some(held) = held else { return first(cut, seen) };
    if held.server.version.flavor != seen.server.version.flavor {
        return refuse(held, seen);
    }
    if held.server.server_id == seen.server.server_id && held.server.uuid == seen.server.uuid {
        same_server(held, seen)
    } else {
        other_server(held, seen)
    }
}

fn first(cut: Option<&Cut>, seen: &Seen) -> Go {
    let there = |cut: &&Cut| {
        cut.server_id == seen.server.server_id
            && seen.files.iter().any(|(file, size)| *file == cut.place.file && cut.place.offset <= *size)
    };
    let (place, gtid_state) = match cut.filter(there) {
        Some(cut) => (cut.place.clone(), cut.gtid_state.clone()),
        None => (oldest(seen), None),
    };
    Go::Begin { beginning: Beginning::First, start: Start::Place(place), gtid_state }
}

fn same_server(held: &Held, seen: &Seen) -> Go {
    let reached = &held.reached;
    let Some(at) = seen.files.iter().position(|(file, _)| *file == reached.file) else {
        return file_is_gone(held, seen);
    };
    let (file, size) = &seen.files[at];
    if reached.offset <= *size {
        return match (state(held, held.gtid_state.as_ref()), state(held, seen.before_reached.as_ref())) {
            // The numbers of transactions are given again after `RESET MASTER`: they prove nothing on the same server.
            (Some(ours), Some(theirs)) if ours.position() != theirs.position() => {
                let detail = format!(
                    "{reached} is another place in the server's log: {} lie before it, the archive has {}",
                    theirs.position(),
                    ours.position()
                );
                hole(held, HoleCause::Reset, detail, oldest(seen))
            }
            _ => Go::On { from: startable(reached, *size, seen.files.get(at + 1)) },
        };
    }
    let detail = format!("the archive has {file} up to {}, the server only up to {size}", reached.offset);
    match seen.files.get(at + 1) {
        Some((next, _)) => hole(held, HoleCause::Diverged, detail, begin_of(next)),
        // Nothing follows a file that a restart has left short: it is a new one of the same name.
        None => hole(held, HoleCause::Reset, detail, oldest(seen)),
    }
}

/// Where to go on from a place: at the next file if nothing follows in this one and it is too long to begin there.
fn startable(reached: &BinlogPosition, size: u64, next: Option<&(String, u64)>) -> BinlogPosition {
    match next {
        Some((next, _)) if reached.offset > LAST_START && reached.offset == size => begin_of(next),
        _ => reached.clone(),
    }
}

fn file_is_gone(held: &Held, seen: &Seen) -> Go {
    let oldest = oldest(seen);
    if binlog_order(&oldest, &held.reached).is_le() {
        let detail =
            format!("the server's log has no {} any more and begins with {}", held.reached.file, oldest.file);
        return hole(held, HoleCause::Reset, detail, oldest);
    }
    match (state(held, held.gtid_state.as_ref()), state(held, seen.before_oldest.as_ref())) {
        (Some(ours), Some(theirs)) if ours.position() == theirs.position() => Go::On { from: oldest },
        _ => {
            let detail =
                format!("{} was reached, the oldest that the server has is {}", held.reached, oldest.file);
            hole(held, HoleCause::Purged, detail, oldest)
        }
    }
}

/// Another server: GTIDs tell whether it goes on from what is held.
fn other_server(held: &Held, seen: &Seen) -> Go {
    match (state(held, held.gtid_state.as_ref()), state(held, seen.gtid_state.as_ref())) {
        (Some(ours), Some(theirs)) if !ours.is_empty() && theirs.contains(&ours) => Go::Begin {
            beginning: Beginning::Continues { after: held.epoch.clone() },
            start: Start::After(ours.position()),
            gtid_state: held.gtid_state.clone(),
        },
        (Some(ours), Some(theirs)) if is_related(&ours, &theirs) => {
            let detail = format!("the archive has {}, the server {}", ours.position(), theirs.position());
            hole(held, HoleCause::Diverged, detail, newest(seen))
        }
        _ => refuse(held, seen),
    }
}

/// Whether two states have transactions of the same origin.
fn is_related(a: &GtidState, b: &GtidState) -> bool {
    match (a, b) {
        (GtidState::MariaDb(a), GtidState::MariaDb(b)) => a.iter().any(|(id, domain)| {
            b.get(id)
                .is_some_and(|other| domain.servers.keys().any(|server| other.servers.contains_key(server)))
        }),
        (GtidState::MySql(a), GtidState::MySql(b)) => a.keys().any(|uuid| b.contains_key(uuid)),
        _ => false,
    }
}

fn state(held: &Held, text: Option<&Gtids>) -> Option<GtidState> {
    let flavor: Flavor = held.server.version.flavor;
    text.and_then(|text| GtidState::parse(flavor, text))
}

fn hole(held: &Held, cause: HoleCause, detail: String, from: BinlogPosition) -> Go {
    let beginning = Beginning::Hole { after: held.epoch.clone(), cause, detail };
    Go::Begin { beginning, start: Start::Place(from), gtid_state: None }
}

/// The server began anew, or what it needs to go on is gone from it.
#[must_use]
pub fn purged(held: &Held, seen: &Seen, said: &str) -> Go {
    hole(held, HoleCause::Purged, said.to_owned(), oldest(seen))
}

/// The file that was reached is another one of the same name.
#[must_use]
pub fn begun_anew(held: &Held, seen: &Seen) -> Go {
    let detail = format!("{} is another file of the same name", held.reached.file);
    hole(held, HoleCause::Reset, detail, oldest(seen))
}

fn refuse(held: &Held, seen: &Seen) -> Go {
    let name = |server: &LogServer| match &server.uuid {
        Some(uuid) => format!("{} {} ({uuid})", server.version.flavor, server.server_id),
        None => format!("{} with server_id {}", server.version.flavor, server.server_id),
    };
    Go::Refuse {
        what: format!(
            "the archive is of {}, but {} answers, and its GTIDs show no common history",
            name(&held.server),
            name(&seen.server)
        ),
        remedy: "correct the address in the inventory; if this server is meant, move the source's directory in logs/ away"
            .into(),
    }
}

fn begin_of(file: &str) -> BinlogPosition {
    BinlogPosition { file: file.to_owned(), offset: FIRST }
}

fn oldest(seen: &Seen) -> BinlogPosition {
    begin_of(seen.files.first().map_or("", |(file, _)| file))
}

fn newest(seen: &Seen) -> BinlogPosition {
    begin_of(seen.files.last().map_or("", |(file, _)| file))
}

#[cfg(test)]
mod tests {
    use super::{Cut, Go, Held, LAST_START, decide};
    use crate::{
        id::EpochId,
        logs::{Beginning, HoleCause, LogServer},
        port_logs::{Seen, Start},
        server::{BinlogPosition, Flavor, Gtids, ServerVersion},
    };

    fn place(file: &str, offset: u64) -> BinlogPosition {
        BinlogPosition { file: file.into(), offset }
    }

    fn server(server_id: u32) -> LogServer {
        let version = ServerVersion { flavor: Flavor::MariaDb, number: (10, 11, 0), text: "10.11.0".into() };
        LogServer { server_id, version, uuid: None }
    }

    fn held(file: &str, offset: u64, gtids: &str) -> Held {
        let epoch = EpochId::new("20261120T031500Z-5be2a1").unwrap();
        Held { epoch, server: server(1), reached: place(file, offset), gtid_state: Some(Gtids(gtids.into())) }
    }

    fn seen(server_id: u32, files: &[(&str, u64)], gtids: &str) -> Seen {
        Seen {
            server: server(server_id),
            files: files.iter().map(|(name, size)| ((*name).into(), *size)).collect(),
            gtid_state: Some(Gtids(gtids.into())),
            before_reached: None,
            before_oldest: None,
        }
    }

    fn cause(go: &Go) -> Option<(HoleCause, Start)> {
        match go {
            Go::Begin { beginning: Beginning::Hole { cause, .. }, start, .. } => {
                Some((*cause, start.clone()))
            }
            _ => None,
        }
    }

    #[test]
    fn it_begins_where_the_newest_backup_stands_if_the_server_still_has_that() {
        let now = seen(1, &[("b.000002", 900), ("b.000003", 400)], "0-1-9");
        let cut = |file, server_id| Cut { server_id, place: place(file, 500), gtid_state: None };
        let start = |cut: &Cut| match decide(None, Some(cut), &now) {
            Go::Begin { beginning: Beginning::First, start: Start::Place(place), .. } => place,
            other => panic!("{other:?}"),
        };
        assert_eq!(start(&cut("b.000002", 1)), place("b.000002", 500));
        assert_eq!(start(&cut("b.000003", 1)), place("b.000002", 4));
        assert_eq!(start(&cut("b.000001", 1)), place("b.000002", 4));
        assert_eq!(start(&cut("b.000002", 2)), place("b.000002", 4));
    }

    #[test]
    fn it_goes_on_in_the_same_file() {
        let mut now = seen(1, &[("b.000002", 900)], "0-1-9");
        let held = held("b.000002", 500, "0-1-5");
        assert_eq!(decide(Some(&held), None, &now), Go::On { from: place("b.000002", 500) });
        now.before_reached = Some(Gtids("0-1-5".into()));
        assert_eq!(decide(Some(&held), None, &now), Go::On { from: place("b.000002", 500) });
    }

    #[test]
    fn after_a_file_that_is_too_long_it_goes_on_with_the_next() {
        let long = LAST_START + 10;
        let held = held("b.000002", long, "0-1-5");
        let go =
            |size| decide(Some(&held), None, &seen(1, &[("b.000002", size), ("b.000003", 400)], "0-1-9"));
        assert_eq!(go(long), Go::On { from: place("b.000003", 4) });
        assert_eq!(go(long + 1), Go::On { from: place("b.000002", long) });
    }

    #[test]
    fn purged_files_are_a_hole_unless_nothing_was_in_them() {
        let mut now = seen(1, &[("b.000005", 900)], "0-1-9");
        let held = held("b.000002", 500, "0-1-5");
        let expected = (HoleCause::Purged, Start::Place(place("b.000005", 4)));
        assert_eq!(cause(&decide(Some(&held), None, &now)), Some(expected));
        now.before_oldest = Some(Gtids("0-1-5".into()));
        assert_eq!(decide(Some(&held), None, &now), Go::On { from: place("b.000005", 4) });
    }

    #[test]
    fn a_log_begun_anew_is_a_hole() {
        let held = held("b.000007", 500, "0-1-5");
        let reset = decide(Some(&held), None, &seen(1, &[("b.000001", 900)], ""));
        assert_eq!(cause(&reset), Some((HoleCause::Reset, Start::Place(place("b.000001", 4)))));
        let mut same_name = seen(1, &[("b.000007", 900)], "0-1-2");
        same_name.before_reached = Some(Gtids("0-1-1".into()));
        // Also with numbers that seem to include ours: they were given again.
        for gtids in ["0-1-2", "7-8-1", "0-1-900"] {
            same_name.gtid_state = Some(Gtids(gtids.into()));
            let expected = (HoleCause::Reset, Start::Place(place("b.000007", 4)));
            assert_eq!(cause(&decide(Some(&held), None, &same_name)), Some(expected), "{gtids}");
        }
    }

    #[test]
    fn a_server_that_lost_what_the_archive_has_has_diverged() {
        let held = held("b.000002", 950, "0-1-9");
        let now = seen(1, &[("b.000002", 900), ("b.000003", 400)], "0-1-9");
        let expected = (HoleCause::Diverged, Start::Place(place("b.000003", 4)));
        assert_eq!(cause(&decide(Some(&held), None, &now)), Some(expected));
    }

    #[test]
    fn another_server_must_have_all_that_is_held() {
        let held = held("b.000002", 500, "0-1-9");
        let go = |gtids| decide(Some(&held), None, &seen(2, &[("b.000001", 400)], gtids));
        let Go::Begin { beginning: Beginning::Continues { .. }, start: Start::After(after), .. } =
            go("0-1-9,0-2-11")
        else {
            panic!("it goes on")
        };
        assert_eq!(after.0, "0-1-9");
        assert_eq!(cause(&go("0-1-8,0-2-11")).unwrap().0, HoleCause::Diverged);
        assert!(matches!(go("4-7-100"), Go::Refuse { .. }));
        assert!(matches!(go(""), Go::Refuse { .. }));
    }
}
