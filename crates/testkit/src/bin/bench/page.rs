//! `docs/BENCHMARKS.md`: rows that were measured are put in the place of those with the same key, the page is written anew
//! around them.

use std::{collections::BTreeMap, fs, path::Path};

use super::{machine, options::Options, promised, stall};

/// A table: its name on the page, what it is about, its head, and how many cells of a row are its key.
pub struct Kind {
    pub name: &'static str,
    title: &'static str,
    text: &'static str,
    head: &'static [&'static str],
    keys: usize,
}

pub const STALL: Kind = Kind {
    name: "stall",
    title: "What clients see of a cut",
    text: "The longest commit that any client with a stopwatch saw from half a second before the freeze until half a second \
           after the thaw, beside an equal window just before without a cut; milliseconds, medians. A cut here is a \
           `backup --rehearse`: the whole cut, nothing stored. *Aged* files were written in scattered places on several \
           nights (5 % of the pages each) while a clone of the night before held the old ones.",
    head: &[
        "filesystem",
        "GB",
        "files are",
        "files",
        "extents",
        "cuts",
        "stall as the program says",
        "longest commit without a cut",
        "with a cut",
        "more by",
        "more by, worst",
        "measured",
    ],
    keys: 3,
};

pub const TOOLS: Kind = Kind {
    name: "tools",
    title: "Beside other tools",
    text: "The longest commit that any client saw while the tool ran, from its start to its end, beside an equal window \
           without it; milliseconds, medians. All ran in turn under the same load, on the same files, and wrote to the same \
           filesystem. The first backup of Stillpoint stores everything, the later ones what changed.",
    head: &[
        "filesystem",
        "GB",
        "tool",
        "runs",
        "longest commit without it",
        "with it",
        "more by",
        "took, s",
        "wrote, MB",
        "of one instant with files",
        "measured",
    ],
    keys: 3,
};

pub const LVM: Kind = Kind {
    name: "lvm",
    title: "LVM, in a virtual machine",
    text: "The same beside a bare `lvcreate -s` of the volume, nothing locked and nothing stored, in the same run. The \
           machine is emulated (`scripts/in-vm`) and computes about ten times slower: compare within a row only. \
           Milliseconds, medians.",
    head: &[
        "volume",
        "filesystem",
        "GB",
        "cuts",
        "bare `lvcreate -s` takes",
        "longest commit around it",
        "stall as the program says",
        "longest commit around a cut",
        "longest commit without either",
        "measured",
    ],
    keys: 3,
};

pub const ARCHIVE: Kind = Kind {
    name: "archive",
    title: "Archiving and restoring, beside restic, borg and rustic",
    text: "The same data for each on XFS on a loop device with direct I/O, written through once, in turn, read once before every run so that none finds them colder; medians. \
           The clock is stopped when everything is on disk; deriving the key is part of it. *Pages* are sysbench's tables \
           of a stopped MariaDB, aged by random updates, and, where it is named, those of a MediaWiki of manual pages with \
           their revisions in the same server or alone; a night writes 2000 new bytes into each of 1 % of their 16 KiB pages. borg compresses with zstd, the others as they do by default. *No pin kept* is Stillpoint without the pin of the night \
           before, so that it reads everything; *copies trusted* is its restore with `--trust-copies`, which clones what that pin has \
           and does not read it. What was restored was compared with what was backed up.",
    head: &[
        "case",
        "of",
        "tool",
        "runs",
        "took, s",
        "processor, s",
        "peak memory, MB",
        "repository grew by, MB",
        "measured",
    ],
    keys: 3,
};

pub const LOG: Kind = Kind {
    name: "log",
    title: "What the log archive costs, and how far it is behind",
    text: "A load that goes as fast as it can, in turn with and without `stillpoint log` beside it, on the same filesystem; \
           medians. Then 70 % of that for as long as all these runs, and a client that commits 20 times a second and looks \
           when its transaction is on disk in the archive (`fdatasync` has returned). The server syncs its own log at every \
           commit.",
    head: &[
        "filesystem",
        "GB",
        "pairs",
        "transactions/s without",
        "with",
        "slower by, %",
        "lag, ms: median",
        "lag, ms: 99th percentile",
        "lag, ms: worst",
        "commits",
        "measured",
    ],
    keys: 2,
};

pub const REPLAY: Kind = Kind {
    name: "replay",
    title: "Replaying logs, beside the vendor's two programs by hand",
    text: "The same backup and the same binary logs for each, in turn, the order changed from run to run; seconds, medians. \
           *By hand* is `mariadb-binlog FILES | mariadb` into a `mariadbd` that an administrator starts on the restored copy \
           with the original's sizes and without binary log; once as it is, once with \
           `innodb_flush_log_at_trx_commit=0`. The replay is these two programs alone, of `stillpoint restore --at-position` \
           as it says; *in all* is from nothing to a server that has stopped cleanly. Afterwards all tables of each were \
           compared with the original's. A ratio above 1 says that by hand it takes longer: the median of the runs' own.",
    head: &[
        "filesystem",
        "GB",
        "log, MB",
        "runs",
        "by hand",
        "by hand, not flushed",
        "stillpoint",
        "ratio",
        "ratio, not flushed",
        "by hand, in all",
        "not flushed, in all",
        "stillpoint, in all",
        "measured",
    ],
    keys: 3,
};

const KINDS: [&Kind; 6] = [&STALL, &TOOLS, &LVM, &ARCHIVE, &LOG, &REPLAY];

const HEAD: &str = "# Benchmarks

This page is written by a program and never by hand. `scripts/bench` makes it again, `scripts/bench stall`, `tools`, `lvm`,
`archive`, `log` or `replay` one table of it; smaller runs by arguments (`scripts/bench stall --gb 0.5 --cuts 5`) replace only the rows that they
measure. The program is `crates/testkit/src/bin/bench/main.rs`.
";

type Rows = Vec<Vec<String>>;

/// What the page has of one table.
#[derive(Default)]
struct Section {
    told: Vec<String>,
    rows: Rows,
}

/// Puts rows on the page, in the place of those with the same key.
pub fn update(options: &Options, kind: &Kind, rows: Rows) {
    let mut page = read(&options.page);
    let section = page.entry(kind.name).or_default();
    section.told =
        vec![format!("Load: {}.", options.load()), format!("Machine: {}", machine::facts(&options.dir))];
    for row in rows {
        let same = |old: &&mut Vec<String>| old[..kind.keys] == row[..kind.keys];
        match section.rows.iter_mut().find(same) {
            Some(old) => *old = row,
            None => section.rows.push(row),
        }
    }
    write(&options.page, &page);
}

/// When and of what a row was measured.
pub fn measured() -> String {
    format!("{}, {}", machine::today(), machine::revision())
}

/// How many cuts were measured, and how many more were tried and given up.
pub fn count(cuts: usize, given_up: usize) -> String {
    if given_up == 0 { cuts.to_string() } else { format!("{cuts}, {given_up} given up") }
}

/// Writes the page again, for new words around old figures.
pub fn render_again(options: &Options) {
    write(&options.page, &read(&options.page));
}

fn marks(kind: &Kind) -> (String, String) {
    (format!("<!-- {} -->", kind.name), format!("<!-- end of {} -->", kind.name))
}

fn read(path: &Path) -> BTreeMap<&'static str, Section> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut page = BTreeMap::new();
    for kind in KINDS {
        let (begin, end) = marks(kind);
        let Some((_, rest)) = text.split_once(&begin) else { continue };
        let Some((inside, _)) = rest.split_once(&end) else { continue };
        let told = |line: &&str| line.starts_with("Load: ") || line.starts_with("Machine: ");
        let row = |line: &str| {
            let cells: Vec<String> =
                line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::to_owned).collect();
            (cells.len() == kind.head.len() && cells[0] != kind.head[0]).then_some(cells)
        };
        let section = Section {
            told: inside.lines().filter(told).map(str::to_owned).collect(),
            rows: inside.lines().filter_map(row).collect(),
        };
        page.insert(kind.name, section);
    }
    page
}

fn write(path: &Path, page: &BTreeMap<&'static str, Section>) {
    let mut text = HEAD.to_owned();
    for kind in KINDS {
        let Some(section) = page.get(kind.name) else { continue };
        let (begin, end) = marks(kind);
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let head: Vec<String> = kind.head.iter().map(|cell| (*cell).to_owned()).collect();
        let mut rows = section.rows.clone();
        rows.sort_by_key(|row| order(row, kind.keys));
        text.push_str(&format!("\n{begin}\n## {}\n\n{}\n\n", kind.title, kind.text));
        text.push_str(&line(&head));
        text.push_str(&format!("|{}\n", "---|".repeat(head.len())));
        rows.iter().for_each(|row| text.push_str(&line(row)));
        text.push('\n');
        for bound in bounds(kind.name, &rows) {
            text.push_str(&format!("- {bound}\n"));
        }
        text.push('\n');
        text.push_str(&section.told.join("\n\n"));
        text.push_str(&format!("\n{end}\n"));
    }
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).expect("the page can be written");
    fs::rename(&temporary, path).expect("the page can be replaced");
}

/// What the project promised of these figures, beside what they are.
fn bounds(table: &str, rows: &[Vec<String>]) -> Vec<String> {
    if table == ARCHIVE.name { promised::lines(rows) } else { stall::bounds(table, rows) }
}

/// Numbers in their order, words in theirs.
fn order(row: &[String], keys: usize) -> Vec<(u64, String)> {
    let cell = |cell: &String| match cell.parse::<f64>() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes of tables in GB")]
        Ok(number) => ((number * 1000.0) as u64, String::new()),
        Err(_) => (0, cell.clone()),
    };
    row[..keys].iter().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{LVM, STALL, read, update};
    use crate::options::Options;

    fn row(key: &str, size: &str, value: &str) -> Vec<String> {
        let mut row = vec![key.to_owned(), size.to_owned(), "fresh".to_owned()];
        row.resize(STALL.head.len(), value.to_owned());
        row
    }

    #[test]
    fn a_run_replaces_the_rows_that_it_measured() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::parse(&["stall".to_owned()]).unwrap();
        options.page = dir.path().join("page.md");
        update(&options, &STALL, vec![row("xfs", "8", "1"), row("xfs", "0.5", "2")]);
        let mut lvm = row("classic", "xfs", "9");
        lvm.truncate(LVM.head.len());
        update(&options, &LVM, vec![lvm]);
        update(&options, &STALL, vec![row("xfs", "8", "3")]);
        let page = read(&options.page);
        let values: Vec<&str> = page["stall"].rows.iter().map(|row| row[5].as_str()).collect();
        assert_eq!(values, ["2", "3"], "in the order of size");
        assert_eq!(page["lvm"].rows.len(), 1);
        assert_eq!(page["stall"].told.len(), 2);
        assert!(fs::read_to_string(&options.page).unwrap().starts_with("# Benchmarks"));
    }
}
