//! Tests of the inventory, from text to value.
//!
//! Crash story: tests of pure functions.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use proptest::prelude::{prop, prop_assert, proptest};

use super::{
    Archive, Database, Inventory, InventoryErrors, InventoryText, Keep, ProcessSelector, TemplateApplication,
    TemplateChoices, missing_paths, parse, template,
};
use crate::verdict::Verdict;

const TOP: &str = "partition = \"/v01/backup\"\npassword_file = \"/etc/stillpoint/password\"\n";

fn text(file: &str, text: impl Into<String>) -> InventoryText {
    InventoryText { file: PathBuf::from(file), text: text.into() }
}

fn read(body: &str) -> Result<Inventory, InventoryErrors> {
    parse(&text("main.toml", format!("{TOP}{body}")), &[], "zg-3")
}

/// The errors of a main file, as printed. The body begins at line 3.
fn errors(body: &str) -> Vec<String> {
    read(body).expect_err("no error was found").0.iter().map(ToString::to_string).collect()
}

fn app(name: &str, sources: &str) -> String {
    format!("[[application]]\nname = \"{name}\"\nrelpath = \"x.org/{name}\"\n{sources}\n")
}

fn dir(path: &str) -> String {
    format!("[[application.directory]]\npath = \"{path}\"\n")
}

fn db(path: &str) -> String {
    format!("[[application.database]]\nengine = \"sqlite\"\npath = \"{path}\"\n")
}

const WHOLE: &str = r#"
server = "zg-3.softxs.ch"
vm = "web"
partition = "/v01/backup/"
password_file = "/etc/stillpoint/password"

[defaults]
schedule = "15 3 * * *"
stall_budget = "500ms"
require = "per-source"
keep = { daily = 30, monthly = 0x0c }
point_in_time = "30d"

[[application]]
name = "hydro"
relpath = "demo.softxs.ch/hydro"
description = "Hydro demo"
recipe = "generic"
stall_budget = "2s"

[[application.directory]]
path = "/srv//hydro/./var/"
exclude = ["cache/**"]

[[application.database]]
engine = "sqlite"
path = "/srv/hydro/var/production.sqlite3"

[application.process]
unit = "hydro@1.service"

[application.hooks]
stop = { run = "systemctl stop exo", timeout = "2m" }
start = { run = "systemctl start exo", timeout = "5m" }
"#;

#[test]
fn a_whole_inventory_is_read() {
    let inventory = parse(&text("main.toml", WHOLE), &[], "unused host name").unwrap();
    assert_eq!(inventory.server.as_str(), "zg-3.softxs.ch");
    assert_eq!(inventory.partition, PathBuf::from("/v01/backup"));
    let hydro = &inventory.applications[0];
    assert_eq!(inventory.place(hydro), PathBuf::from("/v01/backup/local/web/demo.softxs.ch/hydro"));
    assert_eq!(hydro.directories[0].path.as_os_str(), "/srv/hydro/var");
    let path = PathBuf::from("/srv/hydro/var/production.sqlite3");
    assert_eq!(hydro.databases, [Database::Sqlite { path, archive: Archive::default() }]);
    assert_eq!(hydro.process, Some(ProcessSelector::Unit("hydro@1.service".into())));
    assert_eq!(hydro.hooks.as_ref().unwrap().start.timeout, Duration::from_secs(300));
    assert_eq!(hydro.settings.schedule, "15 3 * * *");
    assert_eq!(hydro.settings.stall_budget, Duration::from_secs(2), "its own wins over the default");
    assert_eq!(hydro.settings.require, Verdict::PerSource);
    let keep = Keep { last: 0, hourly: 0, daily: 30, weekly: 0, monthly: 12, yearly: 0 };
    assert_eq!(hydro.settings.keep, keep);
    assert_eq!(hydro.settings.point_in_time, Some(Duration::from_secs(30 * 86400)));
}

#[test]
fn what_is_not_said_has_a_default() {
    let inventory = read(&app("a", &dir("/srv/a"))).unwrap();
    assert_eq!((inventory.server.as_str(), inventory.vm.as_str()), ("zg-3", "host"));
    assert_eq!(inventory.applications[0].settings, super::Settings::default());
}

#[test]
fn applications_come_from_files_of_their_own_and_inherit_too() {
    let main = text("main.toml", format!("{TOP}[defaults]\nstall_budget = \"1s\"\n"));
    let parts = [text("d/b.toml", app("b", &dir("/srv/b"))), text("d/c.toml", app("c", &dir("/srv/c")))];
    let inventory = parse(&main, &parts, "h").unwrap();
    let names: Vec<_> = inventory.applications.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["b", "c"]);
    assert!(inventory.applications.iter().all(|a| a.settings.stall_budget == Duration::from_secs(1)));
}

#[test]
fn a_file_of_applications_d_holds_one_application_and_nothing_else() {
    let of = |body: String| {
        let found = parse(&text("main.toml", TOP), &[text("d/x.toml", body)], "h").unwrap_err();
        found.to_string()
    };
    assert_eq!(
        of(String::new()),
        "d/x.toml:1: no [[application]] in this file; write one, or remove the file"
    );
    let two = of(app("a", &dir("/a")) + &app("b", &dir("/b")));
    assert!(two.starts_with("d/x.toml:7: 2 applications in one file of applications.d; "), "{two}");
    let more = of(format!("vm = \"web\"\n{}", app("a", &dir("/a"))));
    assert!(more.starts_with("d/x.toml:1: unknown key \"vm\" in a file of applications.d; "), "{more}");
    assert!(more.contains("belongs at the top of the main file"), "{more}");
}

#[test]
fn every_error_names_file_line_fault_and_remedy() {
    assert_eq!(
        errors("[defaults]\npasword_file = \"/x\"\n"),
        ["main.toml:4: unknown key \"pasword_file\" in [defaults]; \
          \"password_file\" belongs at the top of the main file"]
    );
    assert_eq!(
        errors("[defaults]\nscheduel = \"nightly\"\n"),
        ["main.toml:4: unknown key \"scheduel\" in [defaults]; did you mean \"schedule\"?"]
    );
    assert_eq!(
        errors("[defaults]\ncolour = 1\n"),
        ["main.toml:4: unknown key \"colour\" in [defaults]; \
          allowed here: schedule, stall_budget, require, point_in_time, changed_extents_only, read_all_every, local_window, \
          read_limit, io_class, keep"]
    );
}

/// What is wrong with one application block, and a part of what must be said of it, with the line.
fn cases() -> Vec<(String, &'static str)> {
    let a = |sources: &str| app("a", sources);
    let src = dir("/srv/a");
    let src = src.as_str();
    vec![
        ("[[application]]\nrelpath = \"x\"\n".to_owned() + src, ":3: name is missing in [[application]]"),
        ("[[application]]\nname = \"x\"\n".to_owned() + src, ":3: relpath is missing"),
        (a(""), ":3: the application has no source"),
        (a("[[application.directory]]\nexclude = []"), ":6: path is missing in [[application.directory]]"),
        (a(&dir("srv/a")), ":7: path \"srv/a\" is not an absolute path"),
        (a(&dir("/srv/../a")), ":7: path \"/srv/../a\" has a component `..`"),
        (a("[[application.directory]]\npath = 3"), ":7: path is a number, not a text in quotes"),
        (a("[application.directory]\npath = \"/a\""), "directory is a table, not a list of tables; write [["),
        (a(&format!("{src}exclude = [\"[x\"]")), ":8: \"[x\" is no pattern"),
        (a(&format!("{src}exclude = [\n\"a\",\n\"/x\"]")), ":10: \"/x\" is no pattern: it begins with /"),
        (a(&format!("{src}exclude = \"x\"")), ":8: exclude is a text, not a list"),
        (a(&format!("schedule = \"daily\"\n{src}")), ":6: schedule \"daily\" is neither"),
        (a(&format!("schedule = \"0 0 31 2 *\"\n{src}")), ":6: schedule \"0 0 31 2 *\" never comes"),
        (a(&format!("stall_budget = \"2\"\n{src}")), ":6: stall_budget = \"2\" is no length of time"),
        (a(&format!("stall_budget = \"0s\"\n{src}")), ":6: stall_budget = \"0s\" is no length"),
        (a(&format!("point_in_time = 30\n{src}")), ":6: point_in_time is a number"),
        (
            a(&format!("require = \"perfect\"\n{src}")),
            ":6: require = \"perfect\" is no verdict; write consist",
        ),
        (a(&format!("keep = {{ daily = -1 }}\n{src}")), ":6: daily is a number, not a whole number, 0"),
        (
            a(&format!("keep = {{ dayly = 1 }}\n{src}")),
            "unknown key \"dayly\" in keep; did you mean \"daily\"?",
        ),
        (a(&format!("keep = {{ daily = 0 }}\n{src}")), ":6: keep keeps nothing"),
        (a(&format!("recipe = \"rails\"\n{src}")), ":6: recipe \"rails\" is not available in this version"),
        (a(&format!("recipe = \"rials\"\n{src}")), ":6: there is no recipe \"rials\""),
        (a(&format!("path = \"/srv/a\"\n{src}")), ":6: path belongs to a recipe"),
        (
            a("[[application.database]]\nengine = \"postgres\"\nsocket = \"/run/x\""),
            ":7: engine \"postgres\" is not supported in this version",
        ),
        (a("[[application.database]]\nengine = \"dbase\""), ":7: there is no engine \"dbase\""),
        (a("[[application.database]]\npath = \"/a\""), ":6: engine is missing"),
        (a(&format!("{src}[application.process]")), ":8: neither unit nor pid_file"),
        (
            a(&format!("{src}[application.process]\nunit = \"hydro\"")),
            ":9: \"hydro\" is no name of a systemd",
        ),
        (
            a(&format!("{src}[application.process]\nunit = \"h.service\"\npid_file = \"/p\"")),
            ":8: both unit and pid_file",
        ),
        (
            a(&format!("{src}[application.hooks]\nstop = {{ run = \"x\", timeout = \"1m\" }}")),
            ":8: [application.hooks] needs both",
        ),
        (a(&format!("{src}hooks.stop.run = 1")), "unknown key \"hooks\" in [[application.directory]]"),
        (
            a(&format!(
                "{src}[application.hooks]\nstop = {{ run = \" \", timeout = \"1m\" }}\nstart = {{ run = \"x\" }}"
            )),
            ":9: run is empty",
        ),
        (app("a b", src), ":4: \"a b\" is not a valid application name; it must be 1 to 64"),
        ("[[application]]\nname = \"a\"\nrelpath = \"a/logs\"\n".to_owned() + src, ":5: \"a/logs\" is not"),
        ("[[application]]\nname = \"a\"\nname = \"b\"\n".to_owned() + src, ":5: not valid TOML: "),
        ("x = \n".to_owned(), ":3: not valid TOML: "),
    ]
}

#[test]
fn what_is_wrong_with_an_application_is_said() {
    for (body, expected) in cases() {
        let found = errors(&body);
        assert!(found.iter().any(|e| e.contains(expected)), "{body}\nwanted {expected:?}, found {found:#?}");
    }
}

#[test]
fn all_errors_of_all_files_are_found_at_once_in_order() {
    let main = text("main.toml", format!("{TOP}vmm = \"x\"\n[defaults]\nrequire = \"x\"\n"));
    let parts = [
        text("d/a.toml", "[[application]]\nname = \"a\"\nrelpath = \"a\"\n"),
        text("d/b.toml", "[[application"),
        text("d/c.toml", app("c", "[[application.directory]]\npth = \"x\"\n")),
    ];
    let found = parse(&main, &parts, "h").unwrap_err().0;
    let places: Vec<_> = found.iter().map(|e| format!("{}:{}", e.file.display(), e.line)).collect();
    assert_eq!(
        places,
        ["d/a.toml:1", "d/b.toml:1", "d/c.toml:4", "d/c.toml:5", "main.toml:3", "main.toml:5"]
    );
    assert!(found.iter().all(|e| !e.what.is_empty() && !e.remedy.is_empty()), "{found:#?}");
}

#[test]
fn the_main_file_needs_partition_and_password() {
    let found = parse(&text("main.toml", ""), &[], "h").unwrap_err().0;
    let said: Vec<_> = found.iter().map(|e| e.what.as_str()).collect();
    assert_eq!(said, ["partition is missing in the main file", "password_file is missing in the main file"]);
    let host = parse(&text("main.toml", TOP), &[], "bad name").unwrap_err().to_string();
    assert!(host.contains("add server ="), "{host}");
}

#[test]
fn applications_do_not_share_names_or_sources() {
    let two = |a: &str, b: &str| errors(&(app("a", a) + &app("b", b)));
    let same = errors(&(app("a", &dir("/srv/a")) + &app("a", &dir("/srv/b"))));
    assert!(same[0].contains(":10: name a is taken by the application at main.toml:4;"), "{same:?}");
    assert!(same[1].contains(":11: relpath x.org/a is taken by application a at main.toml:5;"), "{same:?}");
    let shared = two(&dir("/srv/a"), &dir("/srv/a/"));
    assert!(shared[0].contains("/srv/a is the same source as /srv/a of application a at main.toml:7"));
    let inside = two(&dir("/srv"), &dir("/srv/b"));
    assert!(inside[0].contains(":13: /srv/b lies inside /srv of application a at main.toml:7"), "{inside:?}");
    assert!(two(&dir("/srv/a/x"), &dir("/srv/a"))[0].contains("/srv/a contains /srv/a/x"));
    assert!(two(&dir("/srv"), &db("/srv/x.db"))[0].contains("/srv/x.db lies inside /srv of application a"));
    assert!(two(&db("/srv/x.db"), &dir("/srv"))[0].contains("/srv contains /srv/x.db of application a"));
    assert!(two(&db("/x.db"), &db("/x.db"))[0].contains("is the same source as"));
}

#[test]
fn neighbours_and_excluded_directories_are_no_overlap() {
    for (a, b) in [
        (dir("/srv/a"), dir("/srv/ab")),
        (db("/srv/a/x.db"), db("/srv/a/y.db")),
        (dir("/srv") + "exclude = [\"b\"]\n", dir("/srv/b/deep")),
        (dir("/srv") + "exclude = [\"b/**\"]\n", dir("/srv/b")),
        (dir("/srv") + "exclude = [\"**/*.db\"]\n", db("/srv/b/x.db")),
    ] {
        read(&(app("a", &a) + &app("b", &b))).unwrap_or_else(|e| panic!("{a}{b}: {e}"));
    }
    let not = errors(&(app("a", &(dir("/srv") + "exclude = [\"b/c/**\"]\n")) + &app("b", &dir("/srv/b"))));
    assert!(not[0].contains("lies inside"), "{not:?}");
}

#[test]
fn one_application_may_nest_its_sources_but_not_repeat_them() {
    read(&app("a", &(dir("/srv") + &dir("/srv/a") + &db("/srv/x.db")))).unwrap();
    let twice = errors(&app("a", &(dir("/srv") + &dir("/srv"))));
    assert!(twice[0].contains(":9: /srv is listed twice, first at main.toml:7;"), "{twice:?}");
}

#[test]
fn backups_do_not_back_up_themselves() {
    assert!(errors(&app("a", &dir("/v01")))[0].contains("/v01 contains the partition /v01/backup"));
    assert!(errors(&app("a", &dir("/v01/backup/local/x")))[0].contains("lies among the backups"));
    read(&app("a", &(dir("/v01") + "exclude = [\"backup/**\"]\n"))).unwrap();
}

#[test]
fn missing_paths_are_named_with_their_lines() {
    let sources = dir("/srv/a") + &db("/srv/x.db") + "[application.process]\npid_file = \"/run/a.pid\"\n";
    let inventory = read(&app("a", &sources)).unwrap();
    assert_eq!(missing_paths(&inventory, &|_| true), []);
    let all: Vec<_> = missing_paths(&inventory, &|_| false).iter().map(ToString::to_string).collect();
    assert_eq!(all.len(), 4, "{all:#?}");
    assert!(all[0].starts_with("main.toml:1: partition /v01/backup does not exist; "));
    assert!(all[1].starts_with("main.toml:2: password_file /etc/stillpoint/password does not exist; "));
    assert!(
        all.iter().any(|e| e.starts_with("main.toml:7: directory /srv/a of application a does not exist; "))
    );
    assert!(all.iter().any(|e| e.starts_with("main.toml:10: database /srv/x.db of application a does not")));
}

fn choices(applications: Vec<TemplateApplication>) -> TemplateChoices {
    let (partition, password_file) = (PathBuf::from("/v01/back up"), PathBuf::from("/etc/stillpoint/\"p\""));
    TemplateChoices { server: "zg-3.softxs.ch".into(), partition, password_file, applications }
}

#[test]
fn the_template_reads_back_with_and_without_applications() {
    let one = TemplateApplication {
        name: "hydro".into(),
        relpath: "demo.softxs.ch/hydro".into(),
        directories: vec!["/srv/hydro/var".into()],
        databases: vec!["/srv/hydro/var/it's \"x\".sqlite3".into()],
        servers: vec!["/run/mysqld/mysqld.sock".into()],
        server_databases: vec!["hydro".into()],
    };
    for (applications, count) in [(vec![], 0), (vec![one], 1)] {
        let choices = choices(applications);
        let inventory = parse(&text("t", template(&choices)), &[], "unused").unwrap();
        assert_eq!(inventory.applications.len(), count);
        assert_eq!(inventory.partition, choices.partition);
        assert_eq!(inventory.password_file, choices.password_file);
        for (read, chosen) in inventory.applications.iter().zip(&choices.applications) {
            assert_eq!(read.directories[0].path, chosen.directories[0]);
            assert_eq!(read.settings, super::Settings::default());
        }
    }
}

#[test]
fn what_the_template_comments_out_is_valid_too() {
    let whole = template(&choices(vec![]));
    let uncommented: String = whole
        .lines()
        .filter(|l| !l.starts_with("# ") || l.contains(" = ") || l.starts_with("# ["))
        .map(|l| l.trim_start_matches("# ").to_owned() + "\n")
        .filter(|l| l.trim() != "#")
        .collect();
    let inventory =
        parse(&text("t", uncommented.clone()), &[], "h").unwrap_or_else(|e| panic!("{e}\n{uncommented}"));
    let hydro = &inventory.applications[0];
    assert!(hydro.process.is_some() && hydro.hooks.is_some() && hydro.databases.len() == 2);
}

proptest! {
    /// Whatever is done to a valid file, it is read or refused with lines that exist; nothing panics.
    #[test]
    fn a_damaged_file_is_read_or_refused(
        at in 0..WHOLE.len(), cut in 0usize..30, junk in prop::collection::vec("[ -~\n]", 0..6)
    ) {
        let end = (at + cut).min(WHOLE.len());
        let damaged = format!("{}{}{}", &WHOLE[..at], junk.concat(), &WHOLE[end..]);
        let lines = damaged.lines().count() + 1;
        if let Err(InventoryErrors(found)) = parse(&text("x", damaged), &[], "h") {
            prop_assert!(!found.is_empty());
            prop_assert!(found.iter().all(|e| (1..=lines).contains(&e.line) && !e.remedy.is_empty()));
            let distinct: BTreeSet<_> = found.iter().map(ToString::to_string).collect();
            prop_assert!(distinct.len() == found.len(), "{found:#?}");
        }
    }
}
