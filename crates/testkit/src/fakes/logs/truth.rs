//! What the archive holds in the end, compared with what the server did.
//!
//! Crash story: in memory.

use std::collections::BTreeSet;

use model::{
    id::EpochId,
    logs::{Beginning, Epoch, LogPlace},
    logs_store::{United, Whence, unite},
};

use super::{
    State, World,
    spool::{DiskState, unique},
};

impl State {
    /// What spool and repository have together.
    fn united(&self) -> Vec<United> {
        let is_here = |epoch: &EpochId, number| {
            let epoch = self.disk.epochs.iter().find(|it| it.record.epoch == *epoch);
            epoch.and_then(|epoch| epoch.segment(number)).is_some_and(|segment| segment.bytes.is_some())
        };
        let there = self.repository.snapshots.last().map(|newest| &newest.epochs);
        let stored = there.into_iter().flatten().map(|stored| Epoch {
            record: stored.record.clone(),
            segments: stored.segments.values().map(|(record, _)| record.clone()).collect(),
            damaged: Vec::new(),
        });
        unite(&DiskState::catalogue(self), &stored.collect::<Vec<_>>(), &is_here)
    }

    /// What counted at some time and is worth something: all of it without a backup; else what follows a backup that stays
    /// without a gap.
    fn needed(&self) -> impl Iterator<Item = u64> {
        let counted = &self.disk.counted;
        let all = counted.iter().copied().filter(|_| self.anchors.is_empty());
        let after = self.anchors.iter().flat_map(|(_, stand)| self.server.after(*stand));
        all.chain(after.flat_map(|after| after.iter().copied().take_while(|id| counted.contains(id))))
    }

    /// The transactions of an epoch, from where each segment is to be read.
    fn transactions(&self, one: &United) -> Vec<u64> {
        let id = &one.epoch.record.epoch;
        let bytes = |(number, whence): (&u64, &Whence)| match whence {
            Whence::Spool => {
                let epoch = self.disk.epochs.iter().find(|it| it.record.epoch == *id)?;
                epoch.segment(*number)?.bytes.clone()
            }
            Whence::Repository => self.repository.bytes(id, *number).cloned(),
        };
        one.whence.iter().filter_map(bytes).flat_map(|bytes| unique(&bytes)).collect()
    }
}

impl World {
    /// What is wrong with the archive, spool and repository together: within an epoch, and from one to the next that
    /// continues, transactions follow one another as they did in the server's log; all that ever counted is there
    /// as far as it follows a backup that stays; nothing is damaged.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let state = self.lock();
        let mut wrong = state.complaints.clone();
        let united = state.united();
        let mut all = BTreeSet::new();
        let mut last: Option<(EpochId, Option<u64>)> = None;
        for one in &united {
            let epoch = &one.epoch;
            for (number, what) in &epoch.damaged {
                wrong.push(format!("segment {number} of {}: {what}", epoch.record.epoch));
            }
            let numbers: Vec<u64> = epoch.segments.iter().map(|segment| segment.number).collect();
            if numbers.windows(2).any(|pair| pair[1] != pair[0] + 1) {
                wrong.push(format!("{} has the segments {numbers:?}", epoch.record.epoch));
            }
            let held = state.transactions(one);
            let mut run = held.clone();
            if let (Beginning::Continues { after }, Some((before, Some(tail)))) =
                (&epoch.record.beginning, &last)
                && before == after
            {
                run.insert(0, *tail);
            }
            let is_a_stretch = |timeline: &Vec<u64>| {
                run.is_empty() || timeline.windows(run.len()).any(|stretch| stretch == run)
            };
            if !state.server.timelines.iter().any(is_a_stretch) {
                wrong.push(format!("{} holds {run:?}, which the server's log never did", epoch.record.epoch));
            }
            all.extend(held);
            last = Some((epoch.record.epoch.clone(), run.last().copied()));
        }
        let lost: Vec<u64> = state.needed().filter(|id| !all.contains(id)).collect();
        if !lost.is_empty() {
            wrong.push(format!("{lost:?} were in the archive and are not, though a backup needs them"));
        }
        wrong
    }

    /// Whether the newest epoch ends where the server's log does.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        let state = self.lock();
        let end = state.server.end();
        state.united().last().is_some_and(|one| *one.epoch.reached() == LogPlace::Binlog(end))
    }

    /// Whether the newest epoch holds a transaction, by which a server can be known.
    #[must_use]
    pub fn knows_its_server(&self) -> bool {
        let newest = DiskState::catalogue(&self.lock()).pop();
        newest.is_some_and(|epoch| epoch.segments.iter().any(|segment| segment.transactions > 0))
    }

    /// How the epochs that are held begin.
    #[must_use]
    pub fn beginnings(&self) -> Vec<Beginning> {
        self.lock().united().into_iter().map(|one| one.epoch.record.beginning).collect()
    }
}
