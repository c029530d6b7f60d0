//! The demo and a whole application under load on real filesystems: ext4, XFS and btrfs on loop devices, and
//! tmpfs. Needs root.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::{Load, Mounted, Site, below, rows_without_file, run, seed};
use serde_json::Value;

fn demo_on(at: &Path) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(["demo", "--cuts", "3", "--json", "--dir"])
        .arg(at)
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let left: Vec<_> = fs::read_dir(at)
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name())
        .filter(|name| name != "lost+found")
        .collect();
    assert_eq!(left, Vec::<std::ffi::OsString>::new(), "the demo leaves nothing behind");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn the_demo_proves_itself_on_every_filesystem() {
    for (kind, pins) in [
        ("ext4", "sqlite-transaction, two-pass-copy"),
        ("tmpfs", "sqlite-transaction, two-pass-copy"),
        ("xfs", "sqlite-reflink, two-pass-reflink"),
        ("btrfs", "sqlite-reflink, two-pass-reflink"),
    ] {
        let mounted = Mounted::new(kind);
        let report = demo_on(&mounted.at);
        assert_eq!(report["filesystem"], kind);
        assert_eq!(report["pinned_by"], pins, "{kind}");
        assert_eq!(
            (&report["proven"], &report["mismatches_ours"]),
            (&true.into(), &0.into()),
            "{kind}: {report}"
        );
    }
}

#[test]
fn an_application_in_a_btrfs_subvolume_is_pinned_by_a_snapshot() {
    let mounted = Mounted::new("btrfs");
    let root = mounted.at.join("site");
    fs::create_dir(&root).expect("a directory");
    run(Command::new("btrfs").args(["subvolume", "create"]).arg(root.join("app")));
    let site = Site::at(&root);
    let load = Load::start(&site, 3, seed());
    site.init(&site.sources_and_process());
    for round in 0..3 {
        let ran = site.run(["backup", "--json"]);
        ran.expect_status(0);
        let application = &ran.json()["applications"][0];
        assert_eq!(application["verdict"], "consistent");
        let to = site.root().join(format!("restored-{round}"));
        site.run(["restore", "guestbook", "--to", to.to_str().expect("UTF-8")]).expect_status(0);
        assert_eq!(rows_without_file(&below(&to, &site.app())), Vec::<String>::new());
    }
    site.run(["plan"]).expect_status(0).expect_text("btrfs-snapshot");
    assert_eq!(site.leftovers(), Vec::<PathBuf>::new(), "no snapshot is left");
    drop(load);
}
