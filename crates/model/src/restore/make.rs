//! Makes the plan, or refuses and says why and what to do.
//!
//! Crash story: pure functions, no effects.

use std::collections::BTreeMap;

use super::{
    Census, Drop, Exchange, Found, Listing, Opened, ParentFacts, Part, Path, PathBuf, Place, PlaceFacts,
    PlaceKind, Request, RestorePlan, SiteFacts, Target, Verdict, copies, databases, is_server_file, pathtext,
    places, refused, server, server_files, sidecars, still_running,
};
use crate::{
    entry::Kind,
    port::{Failure, FailureKind},
    problem::{Effect, Problem},
    reference::ReferenceFile,
    size::Bytes,
};

/// What is left free for everybody else, beside a fiftieth of what is written.
const SPARE: u64 = 16 << 20;
/// Inodes for our own directories and journals.
const SPARE_INODES: u64 = 64;

/// The plan for this request, given what the backup lists and what was found at [`places`].
///
/// # Errors
/// [`FailureKind::Refused`] or [`FailureKind::NoSpace`]; says what is in the way and what to do.
pub fn plan(request: &Request, listing: &Listing, facts: &SiteFacts) -> Result<RestorePlan, Failure> {
    let places = places(request, listing)?;
    if places.len() != facts.places.len() {
        return Err(Failure::new(FailureKind::Other, "the target was not looked at as a whole", ""));
    }
    let mut plan = empty(request, facts);
    judge_backup(request, &mut plan)?;
    if let (Target::InPlace { .. }, Some(lost)) = (&request.target, lost(listing)) {
        return Err(refused(
            format!("the repository has lost a part of this backup: {lost}"),
            "use another backup, or restore with --to DIR what there is",
        ));
    }
    for (place, found) in places.iter().zip(&facts.places) {
        match &request.target {
            Target::Directory { .. } => to_directory(request, &place.to, found)?,
            Target::InPlace { .. } => {
                in_place(place, found)?;
                server::refuse_strangers(request, place, found)?;
            }
        }
        add_part(place, found, listing, &mut plan)?;
    }
    if matches!(request.target, Target::InPlace { .. }) {
        let databases = databases(&request.backup, listing)?;
        plan.must_be_closed =
            databases.iter().flat_map(|d| [d.clone()].into_iter().chain(sidecars(d))).collect();
        server::refuse(request, &facts.open)?;
        refuse_open(&facts.open, request)?;
        plan.must_be_closed.extend(server_files(request));
    }
    plan.copies = copies::usable(&places, facts, listing);
    space(&places, facts, listing, &plan.copies)?;
    plan.files = plan.parts.iter().map(|p| p.files).sum();
    plan.bytes = plan.parts.iter().map(|p| p.bytes).sum();
    add_notes(listing, facts, &mut plan);
    Ok(plan)
}

fn empty(request: &Request, facts: &SiteFacts) -> RestorePlan {
    let record = request.backup.record.as_ref();
    RestorePlan {
        read_back: request.read_back || matches!(request.target, Target::InPlace { .. }),
        copies: Vec::new(),
        trusts_copies: copies::trusts(request),
        application: request.application.clone(),
        backup: request.backup.id.clone(),
        cut: record.map(|r| r.cut.clone()),
        time: request.backup.time,
        verdict: record.map(|r| r.verdict),
        target: request.target.clone(),
        parts: Vec::new(),
        drops: Vec::new(),
        servers: request.servers.iter().map(|server| server.part(&request.target)).collect(),
        must_be_closed: Vec::new(),
        hooks: request.has_hooks && matches!(request.target, Target::InPlace { .. }),
        privileged: facts.privileged,
        files: 0,
        bytes: Bytes(0),
        notes: Vec::new(),
    }
}

fn lost(listing: &Listing) -> Option<&Problem> {
    listing.problems.iter().find(|p| p.effect == Effect::Missing)
}

fn judge_backup(request: &Request, plan: &mut RestorePlan) -> Result<(), Failure> {
    let Some(record) = &request.backup.record else { return Ok(()) };
    if record.application != request.application {
        plan.notes.push(format!("the application was called {} then", record.application));
    }
    let missing: Vec<String> = record.problems.iter().take(3).map(ToString::to_string).collect();
    match (record.verdict, &request.target) {
        (Verdict::Incomplete, Target::InPlace { .. }) if !request.accept_incomplete => Err(refused(
            format!("backup {} is incomplete: {}", request.backup.id.short(), missing.join("; ")),
            "use another backup, restore with --to DIR, or accept that these are lost with --accept-incomplete",
        )),
        (Verdict::Incomplete, _) => {
            plan.notes.push(format!("the backup is incomplete: {}", missing.join("; ")));
            Ok(())
        }
        (Verdict::PerSource, _) => {
            let what =
                "the backup is per-source: each part is whole in itself, but not all are of one instant";
            plan.notes.push(what.to_owned());
            Ok(())
        }
        (Verdict::Consistent, _) => Ok(()),
    }
}

fn to_directory(request: &Request, dir: &Path, found: &PlaceFacts) -> Result<(), Failure> {
    let shown = pathtext::show(dir);
    if let Some(source) = request.keep_out.iter().find(|s| found.real.starts_with(s) || dir.starts_with(s)) {
        let what = format!("{shown} lies inside {}", pathtext::show(source));
        return Err(refused(what, "choose a directory outside of what is backed up and of the backups"));
    }
    match (&found.found, found.parent) {
        (_, ParentFacts::Missing) => {
            let above = dir.parent().map(pathtext::show).unwrap_or_default();
            Err(refused(
                format!("{above}, the directory above {shown}, does not exist"),
                "make it first, or name another place with --to",
            ))
        }
        (_, ParentFacts::ReadOnly) => Err(refused(
            format!("this user cannot write into the directory above {shown}"),
            "choose another directory, or run as root",
        )),
        (Found::Dir(0) | Found::Absent, _) if found.fixed.is_none() || found.found == Found::Absent => Ok(()),
        (Found::Dir(0), _) => Err(refused(
            format!("{shown} cannot be replaced: {}", found.fixed.as_deref().unwrap_or_default()),
            format!("restore to a new directory below it: {shown}/restored"),
        )),
        (Found::Dir(names), _) => Err(refused(
            format!("{shown} is not empty: it holds {names} names"),
            "choose a directory that is empty or does not exist yet",
        )),
        _ => Err(refused(format!("{shown} exists and is not a directory"), "choose another name")),
    }
}

fn in_place(place: &Place, found: &PlaceFacts) -> Result<(), Failure> {
    let shown = pathtext::show(&place.to);
    let elsewhere = "restore with --to DIR and copy what is needed";
    if found.parent == ParentFacts::Missing {
        return Err(refused(format!("the directory above {shown} does not exist any more"), "make it first"));
    }
    if let Some(inner) = found.nested.first() {
        let inner = pathtext::show(inner);
        let what = format!(
            "{inner} lies below {shown} and is a filesystem or a btrfs subvolume of its own, which cannot be replaced \
             along with it"
        );
        let remedy = format!(
            "if it is mounted (findmnt), unmount it; if it is a subvolume, move it out of {shown} (mv); or {elsewhere}"
        );
        return Err(refused(what, remedy));
    }
    let whole = found.parent == ParentFacts::Writable && found.fixed.is_none();
    match (place.kind, &found.found) {
        (PlaceKind::Tree, Found::Dir(_)) if !whole && !found.writable => Err(refused(
            format!("this user can neither replace {shown} nor write into it"),
            format!("run as root, or {elsewhere}"),
        )),
        (PlaceKind::Link, _) | (PlaceKind::Tree, Found::Dir(_)) => Ok(()),
        (_, Found::Symlink(target)) => Err(refused(
            format!(
                "{shown} is a symbolic link to {} now, but was none in the backup",
                pathtext::show(target)
            ),
            format!("remove the link, or {elsewhere}"),
        )),
        (PlaceKind::Database | PlaceKind::File, Found::Dir(_)) => {
            Err(refused(format!("{shown} is a directory now, but was a file"), elsewhere))
        }
        _ if whole => Ok(()),
        _ => Err(refused(
            format!("{shown} cannot be replaced: {}", found.fixed.as_deref().unwrap_or(READ_ONLY)),
            format!("run as root, or {elsewhere}"),
        )),
    }
}

const READ_ONLY: &str = "this user cannot write into the directory above it";

fn add_part(
    place: &Place,
    found: &PlaceFacts,
    listing: &Listing,
    plan: &mut RestorePlan,
) -> Result<(), Failure> {
    if place.kind == PlaceKind::Link && !link_is_missing(place, found, listing)? {
        return Ok(());
    }
    let above = found.real.parent().unwrap_or(Path::new("/")).to_owned();
    let exchange = match (&found.fixed, found.parent) {
        (Some(why), _) => Exchange::Children(why.clone()),
        (None, ParentFacts::ReadOnly) => Exchange::Children(READ_ONLY.to_owned()),
        (None, _) => Exchange::Whole,
    };
    let beside = if exchange == Exchange::Whole { above.clone() } else { found.real.clone() };
    let part = |from: &Path, to: PathBuf, replaces: Census| {
        let weight = listing.weigh(from);
        Part {
            from: from.to_owned(),
            to,
            beside: beside.clone(),
            exchange: exchange.clone(),
            entries: weight.entries,
            files: weight.files,
            bytes: weight.bytes,
            replaces,
        }
    };
    plan.parts.push(part(&place.from, found.real.clone(), found.census.clone()));
    if place.kind == PlaceKind::Database {
        for (stored, live) in sidecars(&place.from).iter().zip(sidecars(&found.real)) {
            if listing.find(stored).is_some_and(|e| e.kind == Kind::File) {
                plan.parts.push(part(stored, live, Census::default()));
            } else {
                plan.drops.push(Drop { path: live, beside: above.clone() });
            }
        }
    }
    Ok(())
}

fn link_is_missing(place: &Place, found: &PlaceFacts, listing: &Listing) -> Result<bool, Failure> {
    let stored = listing.find(&place.from).map(|e| &e.kind);
    match (&found.found, stored) {
        (Found::Absent, _) => Ok(true),
        (Found::Symlink(now), Some(Kind::Symlink(then))) if now == then => Ok(false),
        _ => Err(refused(
            format!("{} is not the symbolic link that it was in the backup", pathtext::show(&place.to)),
            "put the link back first, or restore with --to DIR",
        )),
    }
}

/// Files of servers have been looked at by then.
fn refuse_open(open: &[Opened], request: &Request) -> Result<(), Failure> {
    let of_servers = server_files(request);
    match open.iter().find(|opened| !of_servers.contains(&opened.path)) {
        Some(first) if !request.has_hooks => Err(still_open(first)),
        _ => Ok(()),
    }
}

/// The refusal to replace a database that somebody has open.
#[must_use]
pub fn still_open(opened: &Opened) -> Failure {
    if is_server_file(&opened.path) {
        return still_running(opened);
    }
    let program = if opened.program.is_empty() { "a process" } else { &opened.program };
    refused(
        format!("{program} (process {}) has {} open", opened.pid, pathtext::show(&opened.path)),
        "stop it first, or give the application [application.hooks] that stop and start it",
    )
}

/// What is cloned takes no space.
fn space(
    places: &[Place],
    facts: &SiteFacts,
    listing: &Listing,
    copies: &[ReferenceFile],
) -> Result<(), Failure> {
    let mut needs: BTreeMap<u64, (u64, u64, &PlaceFacts)> = BTreeMap::new();
    for (place, found) in places.iter().zip(&facts.places) {
        let weight = listing.weigh(&place.from);
        let here = copies.iter().filter(|copy| copy.path.starts_with(&place.from));
        let cloned: Bytes = here.map(|copy| listing.weigh(&copy.path).disk).sum();
        let need = needs.entry(found.device).or_insert((0, 0, found));
        need.0 = need.0.saturating_add(weight.disk.0.saturating_sub(cloned.0));
        need.1 += weight.entries;
    }
    for (bytes, names, found) in needs.into_values() {
        let bytes = bytes.saturating_add(bytes / 50).saturating_add(SPARE);
        let shown = pathtext::show(&found.real);
        if bytes > found.free.0 {
            return Err(Failure::new(
                FailureKind::NoSpace,
                format!("{shown} needs {} beside what is there, but {} are free", Bytes(bytes), found.free),
                "free some space, or restore with --to DIR on another filesystem",
            ));
        }
        if found.free_inodes.is_some_and(|free| names + SPARE_INODES > free) {
            return Err(Failure::new(
                FailureKind::NoSpace,
                format!("{shown} needs {names} inodes, but {} are free", found.free_inodes.unwrap_or(0)),
                "remove some files, or restore with --to DIR on another filesystem",
            ));
        }
    }
    Ok(())
}

fn add_notes(listing: &Listing, facts: &SiteFacts, plan: &mut RestorePlan) {
    if !facts.privileged {
        let what = "not run as root: files will belong to this user, and what only root may set is left out";
        plan.notes.push(what.to_owned());
    }
    plan.notes.extend(listing.problems.iter().map(ToString::to_string));
    for opened in facts.open.iter().take(5) {
        let program = if opened.program.is_empty() { "a process" } else { &opened.program };
        let path = pathtext::show(&opened.path);
        plan.notes
            .push(format!("{program} (process {}) has {path} open; the stop hook must end it", opened.pid));
    }
    if let Target::InPlace { .. } = plan.target {
        let what = "whoever runs during the restore keeps seeing the old files until restarted; so does a \
                    container that has one of the directories mounted";
        plan.notes.push(what.to_owned());
    }
}
