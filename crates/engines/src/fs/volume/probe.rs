//! The volume under a path, and what it can do now.
//!
//! Crash story: reads only, by the programs of LVM and ZFS too.

use std::{path::Path, thread, time::Duration};

use model::{
    pathtext,
    plan::Refusal,
    port::{Clock, Failure},
    server::{Volume, VolumeFacts},
    size::Bytes,
};
use os::{
    clock::SystemClock,
    lvm::{self, LogicalVolume},
    mounted::options_beside,
    mounts::{Mount, Mounts},
    subvolume::is_subvolume,
    tree::{resolve, said},
    zfs,
};

use super::{
    super::probe::may_snapshot,
    size::{Load, planned},
};

/// How long it is looked how much is written.
const LOOKING: Duration = Duration::from_millis(250);
/// The share of a thin pool's data that may be used for a snapshot to be made.
const POOL_DATA: f64 = 0.90;
/// The same of its metadata, which cannot be freed by removing one snapshot.
const POOL_METADATA: f64 = 0.80;

/// The volume under `path` that makes snapshots, or would if what its refusal says were mended. `None` if there is no
/// such volume, or if the path cannot be looked at, which others say better.
#[must_use]
pub fn volume_of(path: &Path) -> Option<VolumeFacts> {
    let real = resolve(path).ok()?.real;
    let mounts = Mounts::read().ok()?;
    let mount = mounts.of(&real)?;
    match mount.filesystem.as_str() {
        "btrfs" => Some(on_btrfs(&real, mount)),
        "zfs" => Some(on_zfs(&mounts, mount)),
        _ => on_lvm(&real, &mounts, mount),
    }
}

fn refused(volume: Volume, what: impl Into<String>, remedy: impl Into<String>) -> VolumeFacts {
    let refusal = Refusal { what: what.into(), remedy: remedy.into() };
    VolumeFacts { volume, size: None, free: None, refusal: Some(refusal) }
}

fn failed(volume: Volume, failure: impl Into<Failure>) -> VolumeFacts {
    let failure = failure.into();
    let causes = Failure { remedy: String::new(), ..failure };
    refused(volume, causes.in_full(), "run as root; see that the volume's programs are installed and work")
}

/// The innermost subvolume that holds the path.
fn on_btrfs(real: &Path, mount: &Mount) -> VolumeFacts {
    let volume = |path: &Path| Volume::Btrfs { subvolume: path.to_owned() };
    let mut inside = real.ancestors().take_while(|above| above.starts_with(&mount.point));
    let Some(root) = inside.find(|above| is_subvolume(above).unwrap_or(false)) else {
        let point = pathtext::show(&mount.point);
        let what = format!("only a part of its subvolume is mounted at {point}");
        return refused(
            volume(&mount.point),
            what,
            "name the directory by a path inside the whole subvolume",
        );
    };
    match may_snapshot(root, Some(mount)) {
        Ok(true) => VolumeFacts { volume: volume(root), size: None, free: free_at(root), refusal: None },
        Ok(false) => {
            let what = format!("the subvolume {} belongs to another user", pathtext::show(root));
            refused(volume(root), what, "run as root")
        }
        Err(error) => {
            let what = format!("{} cannot be looked at: {}", pathtext::show(root), said(&error));
            refused(volume(root), what, "run as a user that may read it")
        }
    }
}

fn on_zfs(mounts: &Mounts, mount: &Mount) -> VolumeFacts {
    let name = mount.device.to_string_lossy().into_owned();
    let Some(dataset) = zfs::dataset(mounts, mount) else {
        let volume = Volume::Zfs { dataset: name.clone(), mounted: mount.point.clone() };
        let what =
            format!("the dataset {name} is nowhere mounted as a whole, so its snapshots cannot be read");
        return refused(volume, what, format!("mount it: `zfs mount {name}`"));
    };
    let volume = Volume::Zfs { dataset: dataset.name.clone(), mounted: dataset.mounted };
    match zfs::available(&dataset.name) {
        Ok(free) => VolumeFacts { volume, size: None, free: Some(Bytes(free)), refusal: None },
        Err(error) => failed(volume, error),
    }
}

fn on_lvm(real: &Path, mounts: &Mounts, mount: &Mount) -> Option<VolumeFacts> {
    let device = lvm::mapped_as(real)?;
    // One volume may be mounted at several places: always the same one is named.
    let whole = |m: &&Mount| m.device == mount.device && m.root == Path::new("/");
    let mounted = mounts.all().iter().find(whole).unwrap_or(mount).point.clone();
    let filesystem = mount.filesystem.clone();
    let unknown = || Volume::Lvm {
        group: String::new(),
        name: device.clone(),
        pool: None,
        mounted: mounted.clone(),
        filesystem: filesystem.clone(),
    };
    let found = match lvm::find(real) {
        Ok(found) => found?,
        Err(error) => return Some(failed(unknown(), error)),
    };
    let volume = Volume::Lvm {
        group: found.group.clone(),
        name: found.name.clone(),
        pool: found.thin_pool().map(str::to_owned),
        mounted: mounted.clone(),
        filesystem: filesystem.clone(),
    };
    if let Some((what, remedy)) = unfit(&found, mount) {
        return Some(refused(volume, what, remedy));
    }
    Some(match found.thin_pool() {
        Some(pool) => thin(volume, &found.group, pool),
        None => classic(volume, &found, real),
    })
}

/// What keeps a snapshot from being made, or from being read.
fn unfit(found: &LogicalVolume, mount: &Mount) -> Option<(String, &'static str)> {
    let name = found.full_name();
    if options_beside(&mount.filesystem).is_none() {
        let what =
            format!("a snapshot of {name} with {} is not mounted beside the original", mount.filesystem);
        return Some((what, "XFS and ext4 are known to bear it"));
    }
    if mount.has_option("logdev") || mount.has_option("rtdev") {
        let what = format!("the filesystem on {name} has its log or data on another device too");
        return Some((what, "no snapshot of both at one instant can be made"));
    }
    if found.origin.is_some() && found.thin_pool().is_none() {
        return Some((format!("{name} is itself a snapshot"), "merge it, or copy it to a volume of its own"));
    }
    None
}

fn thin(volume: Volume, group: &str, pool: &str) -> VolumeFacts {
    let found = match lvm::look_at_pool(group, pool) {
        Ok(found) => found,
        Err(error) => return failed(volume, lvm::LvmError::from(error)),
    };
    if found.data > POOL_DATA || found.metadata > POOL_METADATA {
        let what = format!(
            "the thin pool {group}/{pool} is too full for a snapshot: data {:.0} %, metadata {:.0} %",
            found.data * 100.0,
            found.metadata * 100.0
        );
        let remedy = format!(
            "extend it with `lvextend --size +10G {group}/{pool}`, or its metadata with `--poolmetadatasize +1G`"
        );
        return VolumeFacts { free: Some(found.free()), ..refused(volume, what, remedy) };
    }
    VolumeFacts { volume, size: None, free: Some(found.free()), refusal: None }
}

fn classic(volume: Volume, found: &LogicalVolume, real: &Path) -> VolumeFacts {
    let load = Load { size: found.size, used: used_at(real).unwrap_or(found.size), rate: rate(real) };
    let free = Some(found.group_free);
    match planned(&found.group, &load, found.group_free) {
        Ok(size) => VolumeFacts { volume, size: Some(size), free, refusal: None },
        Err(refusal) => VolumeFacts { volume, size: None, free, refusal: Some(refusal) },
    }
}

/// Bytes written in a second: now, or on average since the volume came up, whichever is more.
fn rate(path: &Path) -> Bytes {
    let (before, since) = (lvm::bytes_written(path), SystemClock.moment());
    thread::sleep(LOOKING);
    let (after, now) = (lvm::bytes_written(path), SystemClock.moment());
    let (Ok(before), Ok(after)) = (before, after) else { return Bytes(0) };
    let lately = now.since(since).as_millis().max(1);
    let ever = (now.0 / 1_000_000).max(1);
    let new = u128::from(after.0.saturating_sub(before.0)) * 1000 / lately;
    let average = u128::from(after.0) * 1000 / u128::from(ever);
    Bytes(u64::try_from(new.max(average)).unwrap_or(u64::MAX))
}

fn used_at(path: &Path) -> Option<Bytes> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(Bytes(found.f_blocks.saturating_sub(found.f_bfree).saturating_mul(found.f_frsize)))
}

fn free_at(path: &Path) -> Option<Bytes> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(Bytes(found.f_bavail.saturating_mul(found.f_frsize)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::volume_of;

    #[test]
    fn what_is_on_no_volume_has_none() {
        assert_eq!(volume_of(Path::new("/proc")), None);
        assert_eq!(volume_of(Path::new("/nonexistent")), None);
    }
}
