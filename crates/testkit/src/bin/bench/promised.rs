//! What the project promised of the archiver, beside what was measured: ratios of rows of the same size.

use super::{
    archive::{FIRST, NIGHT, TINY},
    peer::Tool,
};

/// Cells of a row.
const CASE: usize = 0;
const SIZE: usize = 1;
const TOOL: usize = 2;
const WALL: usize = 4;
const MEMORY: usize = 6;
const GREW: usize = 7;

/// Beginnings of cases, whose run it is, and how many times as fast as the fastest peer.
const FASTER: [(&str, Tool, f64); 10] = [
    (FIRST, Tool::Stillpoint, 1.8),
    (NIGHT, Tool::Stillpoint, 30.0),
    (NIGHT, Tool::StillpointReading, 5.0),
    ("pages, restore", Tool::Stillpoint, 2.0),
    ("pages, restore", Tool::StillpointTrusting, 2.0),
    ("pages, restore", Tool::StillpointReading, 2.0),
    ("small files, first", Tool::Stillpoint, 2.5),
    ("small files, unchanged", Tool::Stillpoint, 3.5),
    ("small files, 1 % changed", Tool::Stillpoint, 3.5),
    ("small files, restore", Tool::Stillpoint, 2.0),
];
/// The same for what the repository grew by, as a part of the least that a peer needs.
const SMALLER: [(&str, Tool, f64); 4] = [
    (FIRST, Tool::Stillpoint, 1.1),
    (NIGHT, Tool::Stillpoint, 0.1),
    (NIGHT, Tool::StillpointReading, 0.1),
    ("pages, repository of the first and 30 nights", Tool::Stillpoint, 0.25),
];
/// Megabytes of memory.
const MEMORIES: [(&str, f64); 3] =
    [("pages, restore", 150.0), ("small files, restore", 150.0), (TINY, 400.0)];

/// The most time for each of many files, as a multiple of the time for each of fewer: it grows with their number and no
/// faster.
const LINEAR: f64 = 1.25;

/// Lines for the page.
pub fn lines(rows: &[Vec<String>]) -> Vec<String> {
    let mut told = vec![];
    for ours in rows {
        let is = |(case, tool): (&str, Tool)| ours[CASE].starts_with(case) && ours[TOOL] == tool.name();
        let named = format!("{}, {}, {}", ours[CASE], ours[SIZE], ours[TOOL]);
        for (case, tool, factor) in FASTER {
            if let Some(ratio) =
                least(rows, ours, WALL).map(|least| least / number(&ours[WALL])).filter(|_| is((case, tool)))
            {
                told.push(format!(
                    "{named}: {ratio:.1} times as fast as the fastest other; to reach: {factor}{}",
                    mark(ratio >= factor)
                ));
            }
        }
        for (case, tool, part) in SMALLER {
            if let Some(ratio) =
                least(rows, ours, GREW).map(|least| number(&ours[GREW]) / least).filter(|_| is((case, tool)))
            {
                told.push(format!(
                    "{named}: {ratio:.2} of the bytes of the smallest other; to reach: {part}{}",
                    mark(ratio <= part)
                ));
            }
        }
        for (case, most) in MEMORIES {
            if is((case, Tool::Stillpoint)) {
                let used = number(&ours[MEMORY]);
                told.push(format!(
                    "{named}: {used:.0} MB of memory; to reach: {most:.0}{}",
                    mark(used <= most)
                ));
            }
        }
        if is((TINY, Tool::Stillpoint)) {
            told.extend(fewest(rows, ours).map(|fewer| growth(&named, ours, fewer)));
        }
    }
    told
}

/// The row of the same case with the fewest files, if there are fewer than in this one.
fn fewest<'a>(rows: &'a [Vec<String>], ours: &[String]) -> Option<&'a Vec<String>> {
    let same = rows.iter().filter(|row| row[CASE] == ours[CASE] && row[TOOL] == ours[TOOL]);
    let least = same.min_by(|a, b| files(a).total_cmp(&files(b)))?;
    (files(least) < files(ours)).then_some(least)
}

fn growth(named: &str, ours: &[String], fewer: &[String]) -> String {
    let (times, more) = (number(&ours[WALL]) / number(&fewer[WALL]), files(ours) / files(fewer));
    format!(
        "{named}: {times:.1} times the time of {}, for {more:.1} times as many; to reach: {:.1}{}",
        fewer[SIZE],
        more * LINEAR,
        mark(times <= more * LINEAR)
    )
}

/// How many files a row is about.
fn files(row: &[String]) -> f64 {
    row[SIZE].split(' ').next().map_or(f64::NAN, number)
}

/// The least of a column among the other tools in the same case.
fn least(rows: &[Vec<String>], ours: &[String], column: usize) -> Option<f64> {
    let all_ours = [Tool::Stillpoint, Tool::StillpointTrusting, Tool::StillpointReading];
    let is_ours = |name: &str| all_ours.iter().any(|tool| tool.name() == name);
    let others = rows.iter().filter(|row| row[..TOOL] == ours[..TOOL] && !is_ours(&row[TOOL]));
    let values = others.map(|row| number(&row[column])).filter(|value| !value.is_nan());
    values.min_by(f64::total_cmp)
}

fn number(cell: &str) -> f64 {
    cell.parse().unwrap_or(f64::NAN)
}

fn mark(is_held: bool) -> &'static str {
    if is_held { "" } else { " – **not held**" }
}

#[cfg(test)]
mod tests {
    use super::lines;

    fn row(tool: &str, wall: &str, grew: &str) -> Vec<String> {
        ["pages, first", "2 GB", tool, "3", wall, "1.0", "100.0", grew, "today"].map(str::to_owned).into()
    }

    #[test]
    fn the_time_for_many_files_grows_with_their_number() {
        let row = |size: &str, wall: &str| {
            ["tiny files, first", size, "stillpoint", "1", wall, "1.0", "300.0", "0.1", "today"]
                .map(str::to_owned)
                .into()
        };
        let told = lines(&[row("1000000 files", "13.0"), row("250000 files", "3.0")]);
        let growth = "tiny files, first, 1000000 files, stillpoint: 4.3 times the time of 250000 files, for 4.0 times as many; \
                      to reach: 5.0";
        assert!(told.contains(&growth.to_owned()), "{told:?}");
        assert_eq!(told.iter().filter(|line| line.contains("the time of")).count(), 1);
    }

    #[test]
    fn ratios_are_to_the_best_of_the_others() {
        let told = lines(&[
            row("stillpoint", "10.0", "120.0"),
            row("restic", "30.0", "100.0"),
            row("borg", "20.0", "200.0"),
        ]);
        assert_eq!(
            told,
            [
                "pages, first, 2 GB, stillpoint: 2.0 times as fast as the fastest other; to reach: 1.8",
                "pages, first, 2 GB, stillpoint: 1.20 of the bytes of the smallest other; to reach: 1.1 – **not held**",
            ]
        );
    }
}
