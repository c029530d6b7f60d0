//! LVM, beside a bare snapshot: inside a virtual machine, since not every kernel has the device mapper.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{
    figures::{cell, column, median, ms},
    options::Options,
    page,
    scene::Scene,
};

/// What a line of the guest begins with that is a row.
const ROW: &str = "ROW ";
const GROUP: &str = "bench";
/// What belongs to a snapshot on both of its sides.
const MARGIN: Duration = Duration::from_millis(500);

/// Runs [`guest`] in the virtual machine, and puts what it measured on the page.
pub fn run(options: &Options) {
    let me = env::current_exe().expect("this program");
    let program = options.program.canonicalize().expect("the program is built");
    let mut command = Command::new("scripts/in-vm");
    command.arg(me).arg("lvm-guest").arg("--program").arg(program);
    let list = |values: Vec<String>| values.join(",");
    for (name, value) in [
        ("--gb", list(options.sizes.iter().map(f64::to_string).collect())),
        ("--files", options.files.to_string()),
        ("--cuts", options.cuts.to_string()),
        ("--threads", options.threads.to_string()),
        ("--rate", options.rate.to_string()),
        ("--clients", options.clients.to_string()),
    ] {
        command.args([name, &value]);
    }
    command.env("STILLPOINT_VM_DISKS", "6G 6G").env("STILLPOINT_VM_TIMEOUT", "120m");
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().expect("scripts/in-vm");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    assert!(output.status.success(), "the virtual machine: {}", output.status);
    let rows: Vec<Vec<String>> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix(ROW)?).ok())
        .map(|mut row: Vec<String>| {
            row.push(page::measured());
            row
        })
        .collect();
    assert!(!rows.is_empty(), "the virtual machine measured nothing");
    page::update(options, &page::LVM, rows);
}

/// In the machine: measures classic and thin volumes on the disks that it has.
pub fn guest(options: &Options) {
    command("vgcreate", &["-q", "-y", GROUP, "/dev/vda", "/dev/vdb"]);
    for &gigabytes in &options.sizes {
        for thin in [false, true] {
            let row = one(options, gigabytes, thin);
            println!("{ROW}{}", serde_json::to_string(&row).expect("texts"));
        }
    }
}

fn one(options: &Options, gigabytes: f64, thin: bool) -> Vec<String> {
    let size = format!("{}m", (gigabytes * 2000.0).round() + 1500.0);
    if thin {
        let pool = format!("{}m", (gigabytes * 4000.0).round() + 3000.0);
        command("lvcreate", &["-q", "-y", "--type", "thin-pool", "-L", &pool, "-n", "pool", GROUP]);
        command("lvcreate", &["-q", "-y", "-V", &size, "--thinpool", "pool", "-n", "data", GROUP]);
    } else {
        command("lvcreate", &["-q", "-y", "-L", &size, "-n", "data", GROUP]);
    }
    let device = format!("/dev/{GROUP}/data");
    command("mkfs.xfs", &["-q", &device]);
    let at = PathBuf::from("/mnt/bench");
    std::fs::create_dir_all(&at).expect("a mount point");
    command("mount", &[&device, "/mnt/bench"]);
    let row = {
        let scene = Scene::new(options, &at.join("all"), at.join("site"), gigabytes, 0);
        measure(options, &scene, gigabytes, thin)
    };
    command("umount", &["/mnt/bench"]);
    let removed = if thin { format!("{GROUP}/pool") } else { format!("{GROUP}/data") };
    command("lvremove", &["-q", "-f", "-y", &removed]);
    row
}

fn measure(options: &Options, scene: &Scene, gigabytes: f64, thin: bool) -> Vec<String> {
    let mut bare: Vec<(f64, f64)> = vec![];
    let (cuts, given_up) = scene.cuts(options.cuts, |number| {
        let (took, longest) = snapshot(scene, thin);
        println!("bare {number}: {took:.1} ms, longest commit {longest:.1} ms");
        if number > 0 {
            bare.push((took, longest));
        }
    });
    let name = if thin { "thin" } else { "classic" };
    vec![
        name.to_owned(),
        "xfs".to_owned(),
        gigabytes.to_string(),
        page::count(cuts.len(), given_up),
        cell(median(&column(&bare, |bare| bare.0))),
        cell(median(&column(&bare, |bare| bare.1))),
        cell(median(&column(&cuts, |cut| cut.stall))),
        cell(median(&column(&cuts, |cut| cut.with))),
        cell(median(&column(&cuts, |cut| cut.without))),
    ]
}

/// A snapshot by LVM alone: how long that takes, and the longest commit around it.
fn snapshot(scene: &Scene, thin: bool) -> (f64, f64) {
    thread::sleep(Duration::from_secs(2));
    let origin = format!("{GROUP}/data");
    let size: &[&str] = if thin { &["-kn"] } else { &["-L", "256m"] };
    let begun = Instant::now();
    command("lvcreate", &[&["-q", "-y", "-s", "-n", "bare", &origin], size].concat());
    let ended = Instant::now();
    thread::sleep(MARGIN);
    let longest = scene.longest(begun - MARGIN, ended + MARGIN);
    command("lvremove", &["-q", "-f", "-y", &format!("{GROUP}/bare")]);
    (ms(ended - begun), longest)
}

fn command(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", super::scene::text(&output));
}
