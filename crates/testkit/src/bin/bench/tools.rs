//! Beside the tools that people use: the same load, the same files, in turn.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use testkit::server::Volume;

use super::{
    figures::{cell, column, median},
    options::Options,
    page,
    scene::Scene,
};

/// Between two runs.
const REST: Duration = Duration::from_secs(3);
const STILLPOINT: &str = "stillpoint backup";

/// One run of a tool, milliseconds and seconds.
#[derive(Clone, Copy)]
struct Ran {
    without: f64,
    with: f64,
    took: f64,
    wrote: f64,
}

/// Measures all tools on every filesystem and size.
pub fn run(options: &Options) {
    for filesystem in &options.filesystems {
        for &gigabytes in &options.sizes {
            println!("== {filesystem}, {gigabytes} GB");
            let rows = one(options, filesystem, gigabytes);
            rows.iter().for_each(|row| println!("{}", row.join(" | ")));
            page::update(options, &page::TOOLS, rows);
        }
    }
}

fn one(options: &Options, filesystem: &str, gigabytes: f64) -> Vec<Vec<String>> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "gigabytes of tests")]
    let image = (gigabytes * 4.5e9) as u64 + (6 << 30);
    let volume = Volume::new(filesystem, image, &options.dir);
    let all = volume.directory("all");
    let scene = Scene::new(options, &all, volume.path().join("site"), gigabytes, 0);
    let mut measured: Vec<(&str, Vec<Ran>)> = vec![];
    let mut add = |name: &'static str, ran: Ran| {
        println!(
            "{name}: longest commit {:.1} ms, {:.1} ms without, {:.1} s",
            ran.with, ran.without, ran.took
        );
        match measured.iter_mut().find(|(known, _)| *known == name) {
            Some((_, all)) => all.push(ran),
            None => measured.push((name, vec![ran])),
        }
    };
    add("stillpoint backup, the first", timed(&scene, backup));
    for _ in 0..options.runs {
        add(STILLPOINT, timed(&scene, backup));
        add("mariadb-dump --single-transaction", timed(&scene, dump));
        add("mariadb-backup --backup", timed(&scene, physical));
        add("mydumper", timed(&scene, mydumper));
    }
    measured.iter().map(|(name, all)| row(filesystem, gigabytes, name, all)).collect()
}

fn row(filesystem: &str, gigabytes: f64, name: &str, all: &[Ran]) -> Vec<String> {
    let of = |of: fn(&Ran) -> f64| cell(median(&column(all, of)));
    let instant = if name.starts_with("stillpoint") { "yes" } else { "no" };
    vec![
        filesystem.to_owned(),
        gigabytes.to_string(),
        name.to_owned(),
        all.len().to_string(),
        of(|ran| ran.without),
        of(|ran| ran.with),
        of(|ran| ran.with - ran.without),
        of(|ran| ran.took),
        of(|ran| ran.wrote),
        instant.to_owned(),
        page::measured(),
    ]
}

/// Runs it, and then waits as long without it.
fn timed(scene: &Scene, tool: impl FnOnce(&Scene) -> f64) -> Ran {
    thread::sleep(REST);
    let begun = Instant::now();
    let wrote = tool(scene);
    let ended = Instant::now();
    let took = ended - begun;
    drop(scene.output());
    thread::sleep(REST);
    let rested = Instant::now();
    thread::sleep(took);
    let quiet = scene.longest(rested, Instant::now());
    Ran { without: quiet, with: scene.longest(begun, ended), took: took.as_secs_f64(), wrote }
}

// Each tells how much it wrote, in megabytes.

fn backup(scene: &Scene) -> f64 {
    let ran = scene.run(&["--json", "backup"]);
    let application = &ran["applications"][0];
    assert_eq!(application["verdict"], "consistent", "{application:#}");
    application["bytes_added"].as_f64().unwrap_or(f64::NAN) / 1e6
}

fn dump(scene: &Scene) -> f64 {
    let out = scene.output();
    let file = File::create(out.join("dump.sql")).expect("a file");
    let mut command = Command::new("mariadb-dump");
    command.args(["--no-defaults", "--user=root", "--single-transaction", "--all-databases"]);
    command.arg(socket(scene)).stdout(Stdio::from(file));
    ended(&mut command);
    megabytes(&out)
}

fn physical(scene: &Scene) -> f64 {
    let out = scene.output();
    let mut command = Command::new("mariadb-backup");
    command.args(["--no-defaults", "--backup", "--user=root"]).arg(socket(scene));
    command.arg(format!("--target-dir={}", out.join("physical").display()));
    command.arg(format!("--datadir={}", scene.server.datadir().display()));
    ended(&mut command);
    megabytes(&out)
}

fn mydumper(scene: &Scene) -> f64 {
    let out = scene.output();
    let mut command = Command::new("mydumper");
    command.args(["--user", "root", "--threads", "2"]).arg(socket(scene));
    command.arg("--outputdir").arg(out.join("mydumper"));
    ended(&mut command);
    megabytes(&out)
}

fn megabytes(below: &Path) -> f64 {
    let said = super::machine::said("du", &["-s", "--block-size=1000", &below.to_string_lossy()]);
    let kilobytes: f64 = said.split_whitespace().next().and_then(|word| word.parse().ok()).expect("du tells");
    kilobytes / 1000.0
}

fn socket(scene: &Scene) -> String {
    format!("--socket={}", scene.server.socket().display())
}

fn ended(command: &mut Command) {
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().expect("the tool is installed");
    let said = super::scene::text(&output);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
}
