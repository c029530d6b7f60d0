//! How a database server is held and pinned.
//!
//! In this order, the first that is possible:
//! 1. dumps, for an application that names its databases on a server that others use too;
//! 2. one atomic snapshot, if everything the server owns lies on one volume: a commit block is lock enough;
//! 3. snapshots of several volumes with the server's process held across all: a commit block stops neither page
//!    writes nor checkpoints;
//! 4. clones in two passes, the last with the server's process held;
//! 5. a copy by mariadb-backup made before, and the binary logs from there to the cut;
//! 6. dumps of everything, from transactions opened under the lock.
//!
//! Crash story: pure functions, no effects.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::{
    inventory::{Inventory, ServerDatabase},
    pathtext,
    plan::{
        CutPlan, Facts, HoldMethod, HoldPlan, PinMethod, PinPlan, ServerLockPlan, ServerPlan, ServerRootPlan,
        TreePlan,
    },
    problem::{Effect, Problem},
    server::{Flavor, RootFacts, ServerFacts, ServerVersion},
    size::Bytes,
};

use super::refused;

/// What stands under this in a backup is of a server, but no file of it: dumps, logs to be replayed.
const BESIDE: &str = "/var/lib/stillpoint/databases";

/// Extents of database files per GiB above which `plan` advises to keep fewer clones or to defragment.
const MANY_EXTENTS: u64 = 20_000;

pub(super) fn plan_server(inventory: &Inventory, server: &ServerDatabase, facts: &Facts, plan: &mut CutPlan) {
    let source = server.id();
    let shown = PathBuf::from(server.access.address.to_string());
    let Some(found) = facts.servers.iter().find(|f| f.source == source) else {
        plan.problems.push(super::not_looked_at(&shown, &source));
        return;
    };
    if let Some(refusal) = &found.refusal {
        plan.problems.push(refused(&shown, &source, refusal));
        return;
    }
    let Some(version) = &found.version else {
        plan.problems.push(super::not_looked_at(&shown, &source));
        return;
    };
    for missing in &found.missing_privileges {
        let what = format!("its account lacks {}, needed for {}", missing.name, missing.for_what);
        plan.problems.push(Problem::new(Effect::Note, None, what, missing.grant.clone()).of(&source));
    }
    let chosen = choose(inventory, server, found, version);
    locks(server, found, version, plan);
    if chosen.held
        && let Some(who) = &found.served_by
        && let Some(method) = &who.hold.method
    {
        let method = HoldMethod::ServerProcess {
            source: source.clone(),
            process: who.process,
            method: method.clone(),
        };
        let why = "its files are pinned one after the other, and a commit block does not stop page writes";
        plan.holds.push(HoldPlan { method, why: why.to_owned() });
    }
    plan.notes.extend(found.notes.iter().map(|note| format!("{source}: {note}")));
    if !matches!(chosen.method, PinMethod::ServerDump(_)) {
        let of_files = found.file_notes.iter().cloned().chain(extents_note(found));
        plan.notes.extend(of_files.map(|note| format!("{source}: {note}")));
        plan.problems.extend(found.broken_links.iter().map(|link| broken(link).of(&source)));
    }
    let staging = match &chosen.method {
        PinMethod::ServerReflink(server) => server.roots.first().map(|root| root.staging.clone()),
        _ => None,
    };
    let staging = staging.unwrap_or_else(|| inventory.state().join("staging"));
    plan.pins.push(PinPlan { source, method: chosen.method, staging, why: chosen.why });
}

/// A server may run on with it; a copy is not opened, since nobody can tell what would be used in its place.
fn broken(link: &Path) -> Problem {
    let what = "is a link of the server that leads nowhere: what it stood for is not in the backup, and a restored copy \
                is not opened with it";
    Problem::missing(
        link,
        what,
        "bring back what it led to, or remove the link if that is not needed any more",
    )
}

/// Locks of one session, which ends by itself.
fn locks(server: &ServerDatabase, found: &ServerFacts, version: &ServerVersion, plan: &mut CutPlan) {
    let lock = ServerLockPlan {
        source: server.id(),
        access: server.access.clone(),
        flavor: version.flavor,
        end_blocking_queries: server.end_blocking_queries,
        raise_flush_log: found.flush_log_at_commit == 0,
    };
    let (slow, last) = match version.flavor {
        Flavor::MariaDb => (
            "what may have to wait for statements comes before what stops commits; reads and most writes go on",
            "commits wait while it lasts, open transactions do not matter, and it ends with its session",
        ),
        Flavor::MySql => (
            "the definitions of tables and the set of files stay as they are; writes go on",
            "MySQL has no lock of commits alone; it is given up before the stall budget is used",
        ),
    };
    let slow = HoldPlan { method: HoldMethod::ServerSlowLock(lock.clone()), why: slow.to_owned() };
    let last = HoldPlan { method: HoldMethod::ServerFinalLock(lock), why: last.to_owned() };
    plan.holds.extend([slow, last]);
}

struct Chosen {
    method: PinMethod,
    why: String,
    held: bool,
}

fn choose(
    inventory: &Inventory,
    server: &ServerDatabase,
    found: &ServerFacts,
    version: &ServerVersion,
) -> Chosen {
    let empty = empty_plan(server, found, version);
    if !server.databases.is_empty() {
        let why = "others use this server too, so only its databases are dumped, as of the cut".to_owned();
        return Chosen { method: PinMethod::ServerDump(dump(empty)), why, held: false };
    }
    match files(inventory, found, empty.clone()) {
        Ok(chosen) => chosen,
        Err(why_not) => without_files(found, version, empty, &why_not),
    }
}

/// Pins of the server's files, or why there can be none.
fn files(inventory: &Inventory, found: &ServerFacts, plan: ServerPlan) -> Result<Chosen, String> {
    if found.roots.is_empty() {
        return Err("its files are not on this machine".to_owned());
    }
    let can_hold = found.served_by.as_ref().is_some_and(|who| who.hold.method.is_some());
    let cannot_hold = || match &found.served_by {
        Some(who) => format!("its process cannot be held: {}", who.hold.why),
        None => "nobody can tell which process serves".to_owned(),
    };
    let by_snapshot = all_on_volumes(found);
    match &by_snapshot {
        Ok(1) => {
            let plan = with_roots(plan, inventory, found, false);
            let why = "everything it owns lies on one volume, whose snapshot is atomic whatever its size";
            return Ok(Chosen { method: PinMethod::ServerVolumes(plan), why: why.to_owned(), held: false });
        }
        Ok(volumes) if can_hold => {
            let plan = with_roots(plan, inventory, found, true);
            let why = format!("its files lie on {volumes} volumes, so it is held across their snapshots");
            return Ok(Chosen { method: PinMethod::ServerVolumes(plan), why, held: true });
        }
        Ok(_) | Err(_) => {}
    }
    let no_snapshot = match by_snapshot {
        Ok(volumes) => format!("its files lie on {volumes} volumes, and {}", cannot_hold()),
        Err(why) => why,
    };
    if let Some(root) = found.roots.iter().find(|root| !(root.reflink && root.staging.is_some())) {
        let path = pathtext::show(&root.path);
        return Err(format!("{no_snapshot}; {} makes no clones of {path}", root.filesystem));
    }
    if !can_hold {
        return Err(format!("{no_snapshot}; for clones {}", cannot_hold()));
    }
    let plan = with_roots(plan, inventory, found, true);
    let why = format!("{no_snapshot}; clones cost extents, not bytes, and are made with the server held");
    Ok(Chosen { method: PinMethod::ServerReflink(plan), why, held: true })
}

/// On how many volumes the server's files lie, or what stands in the way of their snapshots.
fn all_on_volumes(found: &ServerFacts) -> Result<usize, String> {
    let mut volumes = BTreeSet::new();
    for root in &found.roots {
        let path = pathtext::show(&root.path);
        if let Some(mount) = root.nested_mounts.first() {
            return Err(format!("{} is mounted inside {path}", pathtext::show(mount)));
        }
        let Some(facts) = &root.volume else {
            return Err(format!("{path} lies on no volume that makes snapshots"));
        };
        if let Some(refusal) = &facts.refusal {
            return Err(format!("{}; {}", refusal.what, refusal.remedy));
        }
        volumes.insert(&facts.volume);
    }
    Ok(volumes.len())
}

/// What is left where files cannot be pinned.
fn without_files(found: &ServerFacts, version: &ServerVersion, plan: ServerPlan, why_not: &str) -> Chosen {
    let physical = found.can_run_backup_tool
        && version.flavor == Flavor::MariaDb
        && found.binlog.is_some()
        && !found.roots.is_empty();
    if physical {
        let roots = found.roots.iter().map(|root| root_plan(root, Path::new("/"), false)).collect();
        let plan = ServerPlan { roots, ..dump(plan) };
        let why = format!(
            "{why_not}; so mariadb-backup copies before the cut, and the binary logs bring the copy to it"
        );
        return Chosen { method: PinMethod::ServerPhysical(plan), why, held: false };
    }
    let why = format!("{why_not}; so transactions are opened under the lock and dumped after it");
    Chosen { method: PinMethod::ServerDump(dump(plan)), why, held: false }
}

fn empty_plan(server: &ServerDatabase, found: &ServerFacts, version: &ServerVersion) -> ServerPlan {
    ServerPlan {
        access: server.access.clone(),
        version: version.clone(),
        server_id: found.server_id,
        roots: vec![],
        databases: server.databases.clone(),
        settings: found.settings.clone(),
        engines: found.engines.clone(),
        beside: None,
        server_held: false,
    }
}

fn dump(plan: ServerPlan) -> ServerPlan {
    let name: String = plan
        .access
        .address
        .to_string()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' })
        .collect();
    let name = name.trim_matches('_');
    let beside = Path::new(BESIDE).join(format!("{}-{name}", plan.version.flavor));
    ServerPlan { beside: Some(beside), ..plan }
}

fn with_roots(plan: ServerPlan, inventory: &Inventory, found: &ServerFacts, server_held: bool) -> ServerPlan {
    let state = inventory.state();
    let roots = found.roots.iter().map(|root| root_plan(root, &state, true)).collect();
    ServerPlan { roots, server_held, ..plan }
}

fn root_plan(root: &RootFacts, state: &Path, with_volume: bool) -> ServerRootPlan {
    let tree = TreePlan {
        root: root.path.clone(),
        exclude: root.exclude.clone(),
        carved: vec![],
        nested_mounts: root.nested_mounts.clone(),
    };
    let volume = root.volume.as_ref().filter(|_| with_volume);
    ServerRootPlan {
        role: root.role,
        tree,
        volume: volume.map(|facts| facts.volume.clone()),
        size: volume.and_then(|facts| facts.size),
        staging: root.staging.clone().unwrap_or_else(|| state.join("staging")),
    }
}

/// Clones cost extents, so a person should know how many there are.
fn extents_note(found: &ServerFacts) -> Option<String> {
    let extents = found.extents?;
    let per_gib = per_gib(extents, found.bytes);
    let advice = if per_gib > MANY_EXTENTS {
        "; that is fragmented: OPTIMIZE TABLE, or a copy of the files with the server stopped, makes cuts shorter"
    } else {
        ""
    };
    Some(format!(
        "{} in {} files, {extents} extents, {per_gib} for each GiB{advice}",
        found.bytes, found.files
    ))
}

fn per_gib(extents: u64, bytes: Bytes) -> u64 {
    extents.saturating_mul(1 << 30) / bytes.0.max(1)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf, time::Duration};

    use crate::{
        decide::decide,
        id::{AppName, Relpath, ServerName, VmName},
        inventory::{Application, Database, Directory, Inventory, ServerDatabase, Settings},
        plan::{CutPlan, DirectoryFacts, Facts, HoldClass, PinMethod, ProcessFacts, ProcessMethod, Refusal},
        problem::Effect,
        server::{
            Binlog, Flavor, RootFacts, RootRole, ServerAccess, ServerAddress, ServerFacts, ServerVersion,
            Volume, VolumeFacts, WhoServes,
        },
        size::Bytes,
        undo::ProcessRef,
    };

    fn server(databases: &[&str]) -> ServerDatabase {
        ServerDatabase {
            access: ServerAccess {
                flavor: Flavor::MariaDb,
                address: ServerAddress::Socket("/run/mysqld/mysqld.sock".into()),
                user: None,
                password_file: None,
                option_file: None,
                tls_ca: None,
            },
            databases: databases.iter().map(|d| (*d).to_owned()).collect(),
            service: None,
            end_blocking_queries: false,
            archive: Default::default(),
        }
    }

    fn inventory(databases: &[&str]) -> Inventory {
        let application = Application {
            name: AppName::new("hydro").unwrap(),
            relpath: Relpath::new("example.org/hydro").unwrap(),
            description: String::new(),
            directories: vec![Directory { path: "/srv/hydro".into(), exclude: vec![] }],
            databases: vec![Database::Server(Box::new(server(databases)))],
            process: None,
            hooks: None,
            settings: Settings { stall_budget: Duration::from_secs(2), ..Settings::default() },
        };
        Inventory {
            server: ServerName::new("zg-3").unwrap(),
            vm: VmName::new("host").unwrap(),
            partition: "/backup".into(),
            password_file: "/etc/stillpoint/password".into(),
            applications: vec![application],
            origins: vec![],
        }
    }

    fn volume(path: &str) -> VolumeFacts {
        let volume = Volume::Lvm {
            group: "vg".into(),
            name: path.trim_matches('/').into(),
            pool: None,
            mounted: path.into(),
            filesystem: "xfs".into(),
        };
        VolumeFacts { volume, size: Some(Bytes(1 << 30)), free: Some(Bytes(4 << 30)), refusal: None }
    }

    fn root(role: RootRole, path: &str, volume: Option<VolumeFacts>, reflink: bool) -> RootFacts {
        RootFacts {
            role,
            path: path.into(),
            exclude: vec!["binlog.*".into()],
            filesystem: "xfs".into(),
            nested_mounts: vec![],
            volume,
            reflink,
            staging: reflink.then(|| PathBuf::from("/srv/staging")),
        }
    }

    fn facts(databases: &[&str], roots: Vec<RootFacts>) -> Facts {
        let process = ProcessFacts {
            pids: vec![7],
            method: Some(ProcessMethod::Ptrace),
            why: "ptrace is allowed".into(),
            unknown: false,
        };
        let server = ServerFacts {
            source: server(databases).id(),
            version: Some(ServerVersion {
                flavor: Flavor::MariaDb,
                number: (10, 11, 19),
                text: "10.11.19-MariaDB".into(),
            }),
            server_id: 1,
            served_by: Some(WhoServes { process: ProcessRef { pid: 7, start: 9 }, hold: process }),
            roots,
            engines: vec![],
            binlog: Some(Binlog {
                basename: "/var/lib/mysql/binlog".into(),
                sync: 1,
                format: "MIXED".into(),
            }),
            replicas: vec![],
            flush_log_at_commit: 1,
            doublewrite: true,
            missing_privileges: vec![],
            can_run_backup_tool: false,
            settings: BTreeMap::new(),
            bytes: Bytes(1 << 30),
            files: 100,
            extents: Some(1000),
            broken_links: vec![],
            notes: vec![],
            file_notes: vec![],
            refusal: None,
        };
        let directory = DirectoryFacts {
            source: inventory(&[]).applications[0].directories[0].id(),
            path: "/srv/hydro".into(),
            filesystem: "xfs".into(),
            subvolume: false,
            reflink: true,
            staging: Some("/srv/staging".into()),
            nested_mounts: vec![],
            nested_subvolumes: vec![],
            entries: 10,
            volume: Some(volume("/srv")),
            refusal: None,
        };
        Facts { directories: vec![directory], sqlite: vec![], servers: vec![server], process: None }
    }

    fn plan(databases: &[&str], facts: &Facts) -> CutPlan {
        let inventory = inventory(databases);
        let plan = decide(&inventory, &inventory.applications[0], facts);
        assert!(plan.refused.is_none() && plan.problems.is_empty(), "{:?}", plan.problems);
        plan
    }

    fn classes(plan: &CutPlan) -> Vec<HoldClass> {
        plan.holds.iter().map(|hold| hold.method.class()).collect()
    }

    const LOCKS: [HoldClass; 2] = [HoldClass::SlowLock, HoldClass::FinalLock];
    const LOCKS_AND_PROCESS: [HoldClass; 3] =
        [HoldClass::SlowLock, HoldClass::FinalLock, HoldClass::ServerFreezer];

    #[test]
    fn files_on_one_volume_need_no_more_than_the_lock_and_share_the_snapshot() {
        let roots = vec![
            root(RootRole::Data, "/srv/mysql", Some(volume("/srv")), true),
            root(RootRole::Redo, "/srv/redo", Some(volume("/srv")), true),
        ];
        let plan = plan(&[], &facts(&[], roots));
        assert_eq!(classes(&plan), LOCKS);
        assert!(matches!(&plan.pins[0].method, PinMethod::ServerVolumes(p) if !p.server_held));
        assert!(matches!(&plan.pins[1].method, PinMethod::VolumeSnapshot(_)), "{:?}", plan.pins[1].method);
    }

    #[test]
    fn files_on_two_volumes_need_the_server_held() {
        let roots = vec![
            root(RootRole::Data, "/srv/mysql", Some(volume("/srv")), false),
            root(RootRole::Redo, "/redo/x", Some(volume("/redo")), false),
        ];
        let mut facts = facts(&[], roots);
        let held = plan(&[], &facts);
        assert_eq!(classes(&held), LOCKS_AND_PROCESS);
        assert!(matches!(&held.pins[0].method, PinMethod::ServerVolumes(p) if p.server_held));
        facts.servers[0].served_by = None;
        let dumped = plan(&[], &facts);
        assert_eq!(classes(&dumped), LOCKS);
        assert!(matches!(&dumped.pins[0].method, PinMethod::ServerDump(p) if p.databases.is_empty()));
        assert!(
            dumped.pins[0].why.contains("nobody can tell which process serves"),
            "{}",
            dumped.pins[0].why
        );
    }

    #[test]
    fn without_snapshots_clones_are_made_with_the_server_held() {
        let mut refused = volume("/srv");
        refused.refusal = Some(Refusal {
            what: "volume group vg has no free extents".into(),
            remedy: "add a disk with vgextend".into(),
        });
        for volume in [None, Some(refused)] {
            let plan = plan(&[], &facts(&[], vec![root(RootRole::Data, "/srv/mysql", volume, true)]));
            assert_eq!(classes(&plan), LOCKS_AND_PROCESS);
            assert!(matches!(&plan.pins[0].method, PinMethod::ServerReflink(p) if p.server_held));
        }
    }

    #[test]
    fn where_no_pin_is_possible_a_copy_and_its_logs_or_dumps_remain() {
        let mut facts = facts(&[], vec![root(RootRole::Data, "/srv/mysql", None, false)]);
        facts.servers[0].can_run_backup_tool = true;
        let physical = plan(&[], &facts);
        assert!(matches!(&physical.pins[0].method, PinMethod::ServerPhysical(_)));
        facts.servers[0].binlog = None;
        let dumped = plan(&[], &facts);
        assert!(matches!(&dumped.pins[0].method, PinMethod::ServerDump(_)));
        assert_eq!(classes(&dumped), LOCKS);
    }

    #[test]
    fn named_databases_are_dumped_whatever_the_volume_can_do() {
        let roots = vec![root(RootRole::Data, "/srv/mysql", Some(volume("/srv")), true)];
        let plan = plan(&["hydro"], &facts(&["hydro"], roots));
        assert_eq!(classes(&plan), LOCKS);
        assert!(matches!(&plan.pins[0].method, PinMethod::ServerDump(p) if p.databases == ["hydro"]));
    }

    #[test]
    fn a_link_that_leads_nowhere_is_missing_from_files_and_of_no_matter_to_dumps() {
        let link = PathBuf::from("/srv/mysql/archive");
        for (databases, expected) in [(&[][..], 1), (&["hydro"][..], 0)] {
            let roots = vec![root(RootRole::Data, "/srv/mysql", Some(volume("/srv")), true)];
            let mut facts = facts(databases, roots);
            facts.servers[0].broken_links = vec![link.clone()];
            let inventory = inventory(databases);
            let plan = decide(&inventory, &inventory.applications[0], &facts);
            assert!(plan.refused.is_none());
            assert_eq!(plan.problems.len(), expected, "{:?}", plan.problems);
            for problem in plan.problems {
                assert_eq!((problem.effect, problem.path.as_ref()), (Effect::Missing, Some(&link)));
                assert_eq!(problem.source, Some(server(databases).id()));
                assert!(!problem.remedy.is_empty());
            }
        }
    }

    #[test]
    fn a_directory_leaves_out_the_servers_own() {
        let mut facts = facts(&[], vec![root(RootRole::Data, "/srv/hydro/mysql", None, true)]);
        facts.directories[0].volume = None;
        let plan = plan(&[], &facts);
        let PinMethod::TwoPassReflink(tree) = &plan.pins[1].method else { panic!("{:?}", plan.pins[1]) };
        assert_eq!(tree.carved, [PathBuf::from("/srv/hydro/mysql")]);
    }
}
