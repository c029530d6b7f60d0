//! On what the figures were measured.

use std::{fs, process::Command};

use jiff::Timestamp;

/// The first line that a command prints; empty if it cannot be run.
pub fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// Today, UTC.
pub fn today() -> String {
    Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// The revision that is checked out, marked if something is changed.
pub fn revision() -> String {
    let revision = said("git", &["rev-parse", "--short=10", "HEAD"]);
    let changed = !said("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty();
    if changed { format!("{revision}+changes") } else { revision }
}

/// Processors, memory, kernel, filesystem, versions, in one paragraph.
pub fn facts(dir: &std::path::Path) -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = |name: &str| {
        let line = cpu.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim()).to_owned()
    };
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let gib = kib.unwrap_or(0) >> 20;
    let below = said("stat", &["-f", "-c", "%T", &dir.to_string_lossy()]);
    let versions = [
        said("mariadbd", &["--version"]),
        said("mydumper", &["--version"]),
        said("sysbench", &["--version"]),
        said("mkfs.xfs", &["-V"]),
        said("btrfs", &["--version"]),
        said("restic", &["version"]),
        said("borg", &["--version"]),
    ];
    let versions: Vec<String> = versions.into_iter().filter(|version| !version.is_empty()).collect();
    format!(
        "{cores} × {}, {gib} GiB of memory, kernel {}; the filesystems are loop devices on {below}. {}.",
        named("model name"),
        said("uname", &["-r"]),
        versions.join("; ")
    )
}
