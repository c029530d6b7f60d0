//! A log of which every transaction is known, against which routes and stops are compared.
//!
//! Crash story: tests.

use jiff::SignedDuration;
use proptest::prelude::{
    ProptestConfig, Strategy, TestCaseError, prop, prop_assert, prop_assert_eq, proptest,
};

use super::{
    super::{Asked, Base, BaseFrom, Gap, Goal, Transaction, find, runs},
    ask, at, backup_id, base, epoch, place, segment, source,
};
use crate::logs::{Beginning, Epoch, LogPlace};

/// A log of transactions, each 10 bytes long, cut into segments.
#[derive(Debug, Clone)]
struct Log {
    times: Vec<i64>,
    cuts: Vec<usize>,
    damaged: Option<usize>,
    bases: Vec<usize>,
}

impl Log {
    /// Numbers of the first transaction of each segment, and the end.
    fn borders(&self) -> Vec<usize> {
        let mut borders: Vec<usize> = self.cuts.iter().map(|cut| cut % self.times.len()).collect();
        borders.extend([0, self.times.len()]);
        borders.sort_unstable();
        borders.dedup();
        borders
    }

    fn transactions(&self, from: usize, to: usize) -> Vec<Transaction> {
        let one = |index: usize| Transaction {
            from: place(1, offset(index)),
            to: place(1, offset(index + 1)),
            time: at(self.times[index]),
            gtid: None,
        };
        (from..to).map(one).collect()
    }

    fn epoch(&self) -> Epoch {
        let mut epoch = epoch(1, Beginning::First, place(1, offset(0)));
        for (index, pair) in self.borders().windows(2).enumerate() {
            let times = &self.times[pair[0]..pair[1]];
            let span = times.iter().min().zip(times.iter().max()).map(|(a, b)| (*a, *b));
            let number = index as u64 + 1;
            epoch.segments.push(segment(
                1,
                number,
                place(1, offset(pair[0])),
                place(1, offset(pair[1])),
                span,
            ));
        }
        let damaged = self.damaged.map(|damaged| damaged % epoch.segments.len());
        epoch.damaged = damaged.map(|index| (index as u64 + 1, "is wrong".into())).into_iter().collect();
        epoch
    }

    /// The clock never ran ahead of a copy: it was made within the second of the latest transaction before it.
    fn copies(&self) -> Vec<Base> {
        let one = |(number, index): (usize, &usize)| {
            let index = index % (self.times.len() + 1);
            let time = self.times[..index].iter().max().copied().unwrap_or(0);
            let mut copy = base(number, time, place(1, offset(index)));
            copy.time += SignedDuration::from_millis(500);
            copy
        };
        self.bases.iter().enumerate().map(one).collect()
    }

    /// What is known of the log by whoever has not got the damaged segment: for each moment the number of transactions,
    /// from which copies it can be reached.
    fn oracle(&self, time: i64) -> Option<(usize, Vec<usize>)> {
        let lost = self.damaged.map(|damaged| {
            let borders = self.borders();
            let index = damaged % (borders.len() - 1);
            borders[index]..borders[index + 1]
        });
        let is_lost = |index: usize| lost.as_ref().is_some_and(|lost| lost.contains(&index));
        let stop = (0..self.times.len()).find(|index| !is_lost(*index) && self.times[*index] >= time)?;
        let copies = self.copies();
        let good = |number: &usize| {
            let start = self.bases[*number] % (self.times.len() + 1);
            start <= stop
                && copies[*number].time <= at(time)
                && !(start..stop).any(is_lost)
                && !inside(&lost, start)
        };
        let usable: Vec<usize> = (0..copies.len()).filter(good).collect();
        (!usable.is_empty()).then_some((stop, usable))
    }
}

/// Whether a copy stands inside of what is lost, so that nothing shows it to lie on this log.
fn inside(lost: &Option<std::ops::Range<usize>>, start: usize) -> bool {
    lost.as_ref().is_some_and(|lost| lost.start < start && start < lost.end)
}

fn offset(index: usize) -> u64 {
    4 + 10 * index as u64
}

fn logs() -> impl Strategy<Value = Log> {
    let times = prop::collection::vec((0i64..4, prop::bool::weighted(0.2), 0i64..30), 1..40);
    let times = times.prop_map(|steps| {
        let mut now = 0;
        let each = steps.into_iter().map(|(step, jumps, by)| {
            now += step;
            if jumps { (now - by).max(0) } else { now }
        });
        each.collect::<Vec<i64>>()
    });
    let cuts = prop::collection::vec(0usize..40, 0..6);
    let bases = prop::collection::vec(0usize..41, 1..4);
    (times, cuts, prop::option::weighted(0.4, 0usize..6), bases)
        .prop_map(|(times, cuts, damaged, bases)| Log { times, cuts, damaged, bases })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_moment_is_reached_as_the_oracle_says_or_refused(log in logs(), time in 0i64..130) {
        let (epochs, copies, goal, source) = ([log.epoch()], log.copies(), Goal::At(at(time)), source());
        let runs = runs(&epochs);
        let asked = Asked { source: &source, goal: &goal, runs: &runs, bases: &copies, caught_up_at: None };
        let borders = log.borders();
        let found = find::<Gap>(&asked, &mut |leg| {
            let index = usize::try_from(leg.segment.number).unwrap() - 1;
            Ok(log.transactions(borders[index], borders[index + 1]))
        });
        let Some((stop, usable)) = log.oracle(time) else {
            prop_assert!(found.is_err(), "{found:?}");
            return Ok(());
        };
        let plan = found.map_err(|gap| TestCaseError::fail(format!("{gap}; {stop} from {usable:?}")))?;
        prop_assert_eq!(&plan.reached.place, &place(1, offset(stop)));
        let usable: Vec<BaseFrom> = usable.iter().map(|n| BaseFrom::Backup(backup_id(*n))).collect();
        prop_assert!(usable.contains(&plan.base.from), "{:?} of {usable:?}", plan.base);
        prop_assert!(plan.base.place.order(&plan.reached.place).is_some_and(std::cmp::Ordering::is_le));
        // Whatever is replayed lies between the two, without a gap.
        if let (Some(first), Some(last)) = (plan.legs.first(), plan.legs.last()) {
            let is_le = |a: &LogPlace, b: &LogPlace| a.order(b).is_some_and(std::cmp::Ordering::is_le);
            prop_assert!(is_le(&first.segment.from, &plan.base.place));
            prop_assert!(is_le(&plan.reached.place, &last.segment.to));
            prop_assert!(plan.legs.windows(2).all(|pair| pair[0].segment.to == pair[1].segment.from));
        }
    }

    #[test]
    fn whatever_coverage_calls_restorable_has_a_route(log in logs(), step in 0i64..130) {
        let (epochs, copies) = ([log.epoch()], log.copies());
        let caught_up = at(200);
        let intervals = crate::coverage::intervals(&runs(&epochs), &copies, Some(caught_up));
        for interval in intervals {
            let time = (interval.from + SignedDuration::from_secs(step)).min(interval.to);
            let found = ask(&epochs, &copies, Goal::At(time), Some(200));
            // A clock that went back may have the moment in an earlier run: then that one has it.
            let earlier = log.times.iter().filter(|t| at(**t) >= time).count() > 0 && log.damaged.is_some();
            prop_assert!(found.is_ok() || earlier, "{time}: {:?}", found);
        }
    }
}
