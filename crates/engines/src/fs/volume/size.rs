//! How large a classic LVM snapshot has to be.
//!
//! Crash story: pure functions, no effects.

use std::time::Duration;

use model::{plan::Refusal, size::Bytes};

/// How fast a backup is assumed to read, in bytes a second: on the slow side.
const READING: u64 = 50 << 20;
/// No backup is over sooner: the snapshot also waits for what is stored besides.
const SHORTEST: Duration = Duration::from_mins(2);
/// What takes longer is extended while it lasts.
const LONGEST: Duration = Duration::from_hours(6);
/// So many times what is expected to be written.
const SAFETY: u64 = 3;
/// Never smaller, however little is written: a burst must not fill it before anybody can look.
const FLOOR: u64 = 256 << 20;
/// What there must be at the least.
const LEAST: u64 = 64 << 20;

/// What is known of a volume.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Its size.
    pub size: Bytes,
    /// How much its filesystem uses.
    pub used: Bytes,
    /// Bytes written to it in a second.
    pub rate: Bytes,
}

impl Load {
    /// How long a snapshot of it is expected to be needed.
    fn time(&self) -> Duration {
        Duration::from_secs(self.used.0 / READING).clamp(SHORTEST, LONGEST)
    }

    /// What is expected to be overwritten meanwhile.
    pub fn expected(&self) -> Bytes {
        Bytes(self.rate.0.saturating_mul(self.time().as_secs()))
    }

    /// The size of a snapshot into which the whole volume fits, with 16 bytes for each chunk of 4 KiB, as
    /// Documentation/admin-guide/device-mapper/snapshot.rst of the kernel has it, rounded up generously.
    fn whole(&self) -> u64 {
        self.size.0.saturating_add(self.size.0 / 100).saturating_add(16 << 20)
    }
}

/// The size to make, or why there is not enough room in the volume group.
pub(super) fn planned(group: &str, load: &Load, free: Bytes) -> Result<Bytes, Refusal> {
    let expected = load.expected().0;
    let wanted = expected.saturating_mul(SAFETY).max(load.size.0 / 50).max(FLOOR).min(load.whole());
    let least = expected.max(load.size.0 / 100).max(LEAST).min(load.whole());
    if free.0 >= least {
        return Ok(Bytes(wanted.min(free.0)));
    }
    Err(Refusal {
        what: format!(
            "the volume group {group} has {free} free, and a snapshot needs {} at the least ({} a second are written)",
            Bytes(least),
            load.rate
        ),
        remedy: format!("add a disk with `vgextend {group}`, or free extents with `lvreduce` or `lvremove`"),
    })
}

#[cfg(test)]
mod tests {
    use model::size::Bytes;

    use super::{Load, planned};

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn load(size: u64, used: u64, rate: u64) -> Load {
        Load { size: Bytes(size), used: Bytes(used), rate: Bytes(rate) }
    }

    #[test]
    fn it_grows_with_what_is_written_while_it_is_needed() {
        // 100 GiB are read in 2048 s, in which 10 GiB are written, three times over.
        let busy = load(200 * GIB, 100 * GIB, 5 * MIB);
        assert_eq!(planned("vg", &busy, Bytes(100 * GIB)).unwrap(), Bytes(30 * GIB));
        assert_eq!(planned("vg", &busy, Bytes(12 * GIB)).unwrap(), Bytes(12 * GIB), "all there is");
        let refusal = planned("vg", &busy, Bytes(9 * GIB)).unwrap_err();
        assert!(refusal.remedy.contains("vgextend vg"), "{refusal:?}");
        assert!(refusal.what.contains("9.0 GiB free"), "{refusal:?}");
    }

    #[test]
    fn it_has_a_floor_and_a_ceiling() {
        let idle = load(GIB, GIB / 2, 0);
        assert_eq!(planned("vg", &idle, Bytes(10 * GIB)).unwrap(), Bytes(256 * MIB));
        assert_eq!(planned("vg", &idle, Bytes(100 * MIB)).unwrap(), Bytes(100 * MIB));
        assert!(planned("vg", &idle, Bytes(0)).is_err());
        let all = load(GIB, GIB, GIB);
        let ceiling = planned("vg", &all, Bytes(100 * GIB)).unwrap();
        assert!(ceiling > Bytes(GIB) && ceiling < Bytes(GIB + 32 * MIB), "{ceiling}");
    }
}
