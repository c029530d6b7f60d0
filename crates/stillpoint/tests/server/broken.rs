//! Connections and servers that go away in the middle of a cut.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use mysql::prelude::Queryable;
use testkit::server::{Latency, Ledger};

use crate::{
    common::seed,
    site::{Backup, Kind, ServerSite},
    watch::{STAGES, Watch},
};

struct Scene {
    site: ServerSite,
    log: PathBuf,
    clients: [Latency; 2],
    _ledger: Ledger,
}

impl Scene {
    fn new(kind: Kind) -> Self {
        let site = ServerSite::new(kind, |server| server);
        let ledger = site.ledger(seed());
        let clients = site.clients();
        let log = site.log_statements();
        Self { site, log, clients, _ledger: ledger }
    }

    /// One backup; when a connection of the program says this, `act` is done to it, once.
    fn backup(&self, text: &str, act: impl FnOnce(u64) + Send) -> (Backup, bool) {
        let (watch, over) = (Watch::of(&self.log), AtomicBool::new(false));
        thread::scope(|scope| {
            let over = &over;
            let acting = scope.spawn(move || match watch.wait_for(text, over) {
                Some(id) => {
                    act(id);
                    true
                }
                None => false,
            });
            let backup = self.site.backup();
            over.store(true, Ordering::Relaxed);
            (backup, acting.join().expect("it acts"))
        })
    }
}

/// Either another attempt succeeded, and the copy proves it; or it is not called consistent.
fn assert_honest(site: &ServerSite, backup: &Backup) {
    match backup.ran.status() {
        Some(0) => {
            backup.expect_verdict("consistent");
            site.assert_whole(&site.restore());
        }
        Some(3) => assert_ne!(backup.application()["verdict"], "consistent"),
        Some(1) => {}
        other => panic!("status {other:?}: {}{}", backup.ran.out(), backup.ran.err()),
    }
}

#[test]
fn a_connection_lost_in_any_stage_lets_everybody_go_and_no_copy_lies() {
    for kind in [Kind::Btrfs, Kind::Xfs] {
        lose_connections(&Scene::new(kind));
    }
}

fn lose_connections(scene: &Scene) {
    let site = &scene.site;
    for stage in STAGES {
        let mut killer = site.server.connect();
        let (backup, met) = scene.backup(stage, |id| {
            let _ = killer.query_drop(format!("KILL {id}"));
        });
        assert!(met, "the program never said {stage:?}: {}", backup.ran.err());
        println!("{stage}: status {:?}: {}", backup.ran.status(), backup.ran.err());
        for all in &scene.clients {
            all.wait_for_commits(Duration::from_secs(3)).expect("clients go on");
        }
        site.assert_budget(&scene.clients, &backup);
        assert_honest(site, &backup);
        site.assert_left_as_it_was();
    }
    site.backup().expect_verdict("consistent");
    site.assert_left_as_it_was();
}

#[test]
fn a_server_killed_in_the_middle_of_a_cut_fails_it_and_is_cut_when_it_is_back() {
    for kind in [Kind::Btrfs, Kind::Xfs] {
        let mut scene = Scene::new(kind);
        let pid = scene.site.server.pid().to_string();
        let (backup, met) = scene.backup("BACKUP STAGE BLOCK_COMMIT", |_| {
            let killed = std::process::Command::new("kill").args(["-9", &pid]).status();
            assert!(killed.expect("kill").success());
        });
        assert!(met);
        println!("status {:?}: {}{}", backup.ran.status(), backup.ran.out(), backup.ran.err());
        assert_ne!(backup.ran.status(), Some(0), "a dead server proves nothing");
        assert!(backup.ended - backup.begun < Duration::from_secs(60));
        scene.site.server.kill();
        let down = Instant::now();
        scene.site.server.start();
        for all in &scene.clients {
            all.wait_for_commits(Duration::from_secs(10)).expect("clients go on");
        }
        println!("back after {:?}", down.elapsed());
        let again = scene.site.backup();
        again.expect_verdict("consistent");
        scene.site.assert_whole(&scene.site.restore());
        scene.site.assert_left_as_it_was();
    }
}

/// Its kernel takes the connection, and nobody ever says a word on it.
#[test]
fn a_server_that_accepts_and_never_answers_is_given_up_and_named() {
    let site = ServerSite::new(Kind::Btrfs, |server| server);
    let pid = site.server.pid().to_string();
    let signal = |name: &str| {
        let sent = std::process::Command::new("kill").args([name, &pid]).status();
        assert!(sent.expect("kill").success());
    };
    signal("-STOP");
    let backup = site.backup();
    signal("-CONT");
    println!("{:?}: {}{}", backup.ended - backup.begun, backup.ran.out(), backup.ran.err());
    backup.expect_verdict("incomplete");
    backup
        .ran
        .expect_text(&format!("the server at {} did not answer a login", site.server.socket().display()));
    backup.ran.expect_text("whether it hangs");
    assert!(backup.ended - backup.begun < Duration::from_secs(40));
    site.assert_left_as_it_was();
    site.backup().expect_verdict("consistent");
}
