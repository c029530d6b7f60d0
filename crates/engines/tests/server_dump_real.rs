//! Dumps and physical copies of real MariaDB servers: what is pinned comes back, to the last bit.

mod server_dump_support;

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use engines::server::{
    dump::{DumpPinner, Loaded, Target, load, read_index},
    physical::{PhysicalPinner, replay_plan},
};
use model::{
    entry::Harvest,
    plan::PinMethod,
    port::{FailureKind, Journal, Pinner, Silent},
    problem::Effect,
    server::ServerForm,
    verdict::Stillness,
};
use mysql::prelude::Queryable;
use server_dump_support::{
    BESIDE, BUDGET, Bench, access, assert_same, ok, portrait, schema, thaw, within, write_out,
};
use testkit::server::PrivateServer;

fn dumper(bench: &Bench, holder: &engines::server::Holder, databases: &[&str]) -> DumpPinner {
    let plan = bench.server_plan(databases);
    let pin = bench.pin_plan(PinMethod::ServerDump(plan.clone()));
    ok(DumpPinner::new(&pin, &plan, holder.clone(), bench.means()))
}

/// Loads a harvest into a new server.
fn loaded(harvest: &Harvest, only: &[&str], server: &PrivateServer) -> Loaded {
    let bench_dir = tempfile::tempdir().expect("a directory");
    write_out(&harvest.entries, bench_dir.path());
    let journal: std::sync::Arc<dyn Journal> =
        std::sync::Arc::new(testkit::fakes::journal::MemoryJournal::default());
    let access = access(server);
    let target = Target { access: &access, journal: &journal, staging: bench_dir.path() };
    let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
    let root = bench_dir.path().join(BESIDE.trim_start_matches('/'));
    ok(load(&root, &only, &target))
}

fn worst(harvest: &Harvest) -> Option<Effect> {
    harvest.problems.iter().map(|problem| problem.effect).max()
}

#[test]
fn every_type_and_object_comes_back_as_it_was() {
    let bench = Bench::new(PrivateServer::builder().start());
    schema::make(&bench.server);
    let was = portrait(&bench.server, &["every", "other"]);
    let mut lock = bench.lock();
    let mut pinner = dumper(&bench, &lock.holder, &[]);
    let (harvest, pin) = bench.cut(&mut lock, &mut pinner, || {});
    assert_eq!(worst(&harvest), Some(Effect::Note), "{:#?}", harvest.problems);
    let other = PrivateServer::builder().no_binlog().start();
    let told = loaded(&harvest, &[], &other);
    assert_eq!(told.databases, 2);
    assert!(told.rows > 23_000, "{told:?}");
    let is = portrait(&other, &["every", "other"]);
    assert_same(&was, &is);
    for account in ["reader@'%'", "clerk"] {
        let grants = |server: &PrivateServer| {
            server.connect().query::<String, _>(format!("SHOW GRANTS FOR {account}")).expect("grants")
        };
        assert_eq!(grants(&bench.server), grants(&other));
    }
    ok(pin.release());
    drop((pinner, lock));
    bench.assert_clean();
}
