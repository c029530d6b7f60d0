//! What the demo found out, in numbers.
//!
//! Crash story: plain values, no effects.

use model::{size::Bytes, time::Millis, verdict::Verdict};
use serde::Serialize;

use super::checker::Tally;
use crate::output::{Align, Report, Table};

/// The share of naive copies that must be wrong, in percent: below it the load proves nothing.
pub const WEAK_LOAD_PERCENT: u64 = 20;

/// One cut and one naive copy under the same load.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// Counted from 1.
    pub cut: u32,
    /// The verdict of our backup.
    pub verdict: Verdict,
    /// How long any writer could be held back.
    pub stall_ms: Millis,
    /// How often the cut was tried before it held.
    pub attempts: u32,
    /// What the repository grew by.
    pub bytes_added: Bytes,
    /// What our restore holds.
    pub ours: Tally,
    /// What the naive copy holds.
    pub naive: Tally,
    /// How long our backup took from start to end, in seconds.
    pub seconds: f64,
}

/// The whole demo.
#[derive(Debug, Clone, Serialize)]
pub struct DemoReport {
    /// The seed of the load.
    pub seed: u64,
    /// How many processes wrote.
    pub writers: u32,
    /// The filesystem it ran on, such as `ext4`.
    pub filesystem: String,
    /// How the files were pinned, such as `two-pass-copy`.
    pub pinned_by: String,
    /// One for each cut.
    pub rounds: Vec<Round>,
    /// Wrong rows, files or databases in all our restores.
    pub mismatches_ours: u64,
    /// The same in all naive copies.
    pub mismatches_naive: u64,
    /// Naive copies with at least one mismatch, in percent.
    pub naive_wrong_percent: u64,
    /// What the demo shows.
    pub proven: bool,
    /// Why, in a sentence.
    pub conclusion: String,
}

impl DemoReport {
    /// Sums the rounds up and draws the conclusion.
    #[must_use]
    pub fn new(seed: u64, writers: u32, filesystem: String, pinned_by: String, rounds: Vec<Round>) -> Self {
        let mismatches_ours = rounds.iter().map(|round| round.ours.mismatches()).sum();
        let mismatches_naive = rounds.iter().map(|round| round.naive.mismatches()).sum();
        let wrong = rounds.iter().filter(|round| round.naive.mismatches() > 0).count() as u64;
        let naive_wrong_percent = wrong * 100 / (rounds.len() as u64).max(1);
        let (proven, conclusion) = conclude(&rounds, mismatches_ours, naive_wrong_percent);
        Self {
            seed,
            writers,
            filesystem,
            pinned_by,
            rounds,
            mismatches_ours,
            mismatches_naive,
            naive_wrong_percent,
            proven,
            conclusion,
        }
    }
}

fn conclude(rounds: &[Round], ours: u64, naive_wrong_percent: u64) -> (bool, String) {
    let cuts = rounds.len();
    if ours > 0 {
        return (
            false,
            format!("Stillpoint is wrong: {ours} mismatches in {cuts} restores; please report this"),
        );
    }
    if let Some(weak) = rounds.iter().find(|round| round.verdict != Verdict::Consistent) {
        let text = format!("cut {} is only {}: the demo shows nothing about it", weak.cut, weak.verdict);
        return (false, text);
    }
    if naive_wrong_percent < WEAK_LOAD_PERCENT {
        let text = format!(
            "the load was too weak to prove anything: only {naive_wrong_percent} % of the naive copies are \
             wrong; try --writers 8"
        );
        return (false, text);
    }
    let text = format!(
        "{cuts} of {cuts} restores are of one instant; {naive_wrong_percent} % of the copies that take the \
         database first and then the files are not"
    );
    (true, text)
}

impl Report for DemoReport {
    fn text(&self) -> String {
        let mut table = Table::new(&[
            ("cut", Align::Right),
            ("stall", Align::Right),
            ("files", Align::Right),
            ("bytes added", Align::Right),
            ("rows", Align::Right),
            ("mismatches ours", Align::Right),
            ("naive", Align::Right),
        ]);
        for round in &self.rounds {
            table.row([
                round.cut.to_string(),
                round.stall_ms.to_string(),
                round.ours.files.to_string(),
                round.bytes_added.to_string(),
                round.ours.rows.to_string(),
                round.ours.mismatches().to_string(),
                round.naive.mismatches().to_string(),
            ]);
        }
        format!("{}\n\n{}", table.text(), self.conclusion)
    }
}

#[cfg(test)]
mod tests {
    use model::{size::Bytes, time::Millis, verdict::Verdict};

    use super::{DemoReport, Round};
    use crate::{demo::checker::Tally, output::Report};

    fn round(cut: u32, ours: u64, naive: u64) -> Round {
        let tally = |rows_without_file| Tally {
            rows: 9,
            files: 9,
            rows_without_file,
            database_whole: true,
            ..Tally::default()
        };
        Round {
            cut,
            verdict: Verdict::Consistent,
            stall_ms: Millis(4.2),
            attempts: 1,
            bytes_added: Bytes(2048),
            ours: tally(ours),
            naive: tally(naive),
            seconds: 0.5,
        }
    }

    fn report(rounds: Vec<Round>) -> DemoReport {
        DemoReport::new(1, 3, "ext4".into(), "two-pass-copy".into(), rounds)
    }

    #[test]
    fn it_is_proven_only_if_ours_are_right_and_the_naive_are_wrong() {
        assert!(report(vec![round(1, 0, 3), round(2, 0, 0)]).proven);
        assert!(!report(vec![round(1, 1, 3)]).proven);
        assert!(report(vec![round(1, 0, 0)]).conclusion.contains("too weak"));
        let mut weaker = round(1, 0, 3);
        weaker.verdict = Verdict::PerSource;
        assert!(!report(vec![weaker]).proven);
        assert!(!report(vec![]).proven, "nothing done proves nothing");
    }

    #[test]
    fn the_table_is_short() {
        let text = report(vec![round(1, 0, 3)]).text();
        assert_eq!(
            text.lines().take(2).collect::<Vec<_>>(),
            [
                "cut   stall  files  bytes added  rows  mismatches ours  naive",
                "  1  4.2 ms      9      2.0 KiB     9                0      3",
            ]
        );
    }
}
