//! The archiver beside restic, borg and rustic: the same data, one after the other, caches warmed alike, everything on
//! disk when the clock is stopped, keys derived from a password by each in its own way.

use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use testkit::server::{PrivateServer, Sysbench, Volume};

use super::{
    figures::{cell, column, median},
    options::Options,
    page,
    peer::{ALL, Ran, Tool},
    wiki,
};

/// InnoDB's default page size, bytes.
const PAGE: u64 = 16 * 1024;
pub const FIRST: &str = "pages, first";
pub const NIGHT: &str = "pages, a later night: 1 % changed";
const FIRST_NIGHT: &str = "pages, the first later night: 1 % changed";
pub const TINY: &str = "tiny files, first";
/// Scattered updates before the first backup.
const AGEING: Duration = Duration::from_secs(20);
/// Files in a directory.
const TOGETHER: u64 = 500;

/// Measures all cases.
pub fn run(options: &Options) {
    let volume = Volume::like_a_disk("xfs", room(options), &options.dir);
    let dir = volume.directory("all");
    let sizes: Vec<f64> = options.sizes.iter().copied().filter(|size| *size > 0.0).collect();
    for &gigabytes in &sizes {
        let server = tables(options, &dir, gigabytes);
        let besides = if options.wiki > 0 { " and a MediaWiki" } else { "" };
        pages(options, &dir, server, format!("{gigabytes} GB{besides}"));
    }
    if sizes.is_empty() && options.wiki > 0 {
        let mut server = server(&dir);
        wiki::fill(options, &server, &dir);
        server.stop();
        pages(options, &dir, server, format!("MediaWiki, {} revisions", options.wiki));
    }
    if options.small > 0 {
        small(options, &dir);
    }
    if options.million > 0 {
        many(options, &dir);
    }
}

/// So many bytes hold the data, what is restored of them, and what every tool makes of them in all nights: peers add an eighth
/// of the data each night, borg twice as much.
fn room(options: &Options) -> u64 {
    const DATA: f64 = 0.86;
    let largest = options.sizes.iter().copied().fold(1.0, f64::max);
    let (ours, peers): (Vec<_>, Vec<_>) =
        ALL.into_iter().filter(|tool| tool.is_among(&options.only)).partition(|tool| tool.is_ours());
    let first = (ours.len() + peers.len()) as f64 * 0.35;
    let heavy = (peers.len() + usize::from(peers.contains(&Tool::Borg))) as f64;
    let nights = f64::from(options.nights) * (heavy * 0.13 + ours.len() as f64 * 0.01);
    let restored = if options.restores() > 0 { DATA } else { 0.0 };
    let has_others = options.small > 0 || options.million > 0 || options.wiki > 0;
    // Of many small files all that is restored stays until the last tool has run.
    let others: u64 = if has_others { (7 + 5 * options.restores() as u64) << 30 } else { 2 << 30 };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "gigabytes of tests")]
    let pages = (largest * 1e9 * (DATA + restored + first + nights)) as u64;
    pages + others
}

/// Tables of a real server: first, some nights, restored.
fn pages(options: &Options, dir: &Path, server: PrivateServer, size: String) {
    let data = server.datadir().to_owned();
    println!("{size}: {}", super::machine::said("du", &["-sh", &data.to_string_lossy()]));
    let bench = Bench { options, dir, data: data.clone(), size, has_pages: true, is_alone: false };
    bench.first(FIRST);
    let mut random = StdRng::seed_from_u64(1);
    let mut nights = bench.tools();
    for _ in 0..options.nights {
        change_pages(&data, &mut random);
        in_turn(&mut nights, |tool, ran| ran.push(bench.backup(tool)));
    }
    bench.told(NIGHT, &nights);
    // With every night the files, and the pins that share with them, are in more pieces.
    if options.nights > 1 {
        let first = nights.iter().map(|(tool, ran)| (*tool, ran[..1].to_vec()));
        bench.told(FIRST_NIGHT, &first.collect::<Vec<_>>());
    }
    let kept = bench.tools().into_iter();
    let kept: Vec<_> = kept.map(|(tool, _)| (tool, vec![Ran::kept(bench.repository(tool))])).collect();
    bench.told(&format!("pages, repository of the first and {} nights", options.nights), &kept);
    bench.restore("pages, restore");
    bench.clear();
    drop(server);
    let _ = fs::remove_dir_all(dir.join("server"));
}

/// A server for tables that are large beside its memory.
fn server(dir: &Path) -> PrivateServer {
    let builder = PrivateServer::builder().directory(dir.join("server")).no_binlog();
    builder.option("--innodb-buffer-pool-size=512M").option("--innodb-flush-log-at-trx-commit=0").start()
}

/// A stopped server with tables that are aged by random updates, and a wiki's, aged by its edits, if one is asked for;
/// its files are there until it is dropped.
fn tables(options: &Options, dir: &Path, gigabytes: f64) -> PrivateServer {
    let mut server = server(dir);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "gigabytes of tests")]
    let tables = Sysbench::sized(options.files, (gigabytes * 1e9) as u64);
    println!("making {} tables of {} rows", tables.tables, tables.rows);
    tables.prepare(&server);
    let load = tables.start(&server, options.threads, 0, AGEING);
    std::thread::sleep(AGEING);
    drop(load);
    if options.wiki > 0 {
        wiki::fill(options, &server, dir);
    }
    server.stop();
    server
}

/// Every tool once; whoever was first is the last the next time.
fn in_turn(all: &mut [(Tool, Vec<Ran>)], mut run: impl FnMut(Tool, &mut Vec<Ran>)) {
    all.iter_mut().for_each(|(tool, ran)| run(*tool, ran));
    all.rotate_left(1);
}

/// Many small files: first, unchanged, a little changed, restored.
fn small(options: &Options, dir: &Path) {
    let data = dir.join("small");
    make_small(&data, options.small);
    let bench = Bench {
        options,
        dir,
        data: data.clone(),
        size: format!("{} files", options.small),
        has_pages: false,
        is_alone: false,
    };
    bench.first("small files, first");
    bench.each("small files, unchanged", |_| {});
    let mut random = StdRng::seed_from_u64(3);
    bench.each("small files, 1 % changed", |run| change_small(&data, options.small, run, &mut random));
    bench.restore("small files, restore");
    bench.clear();
    let _ = fs::remove_dir_all(&data);
}

/// So many files that the memory for them shows; before that, by Stillpoint alone, a quarter of them, for how the time
/// grows.
fn many(options: &Options, dir: &Path) {
    let data = dir.join("many");
    let once = Options { runs: 1, ..options.clone() };
    let mut made = 0;
    for (count, is_alone) in [(options.million / 4, true), (options.million, false)] {
        make_tiny(&data, made..count);
        made = count;
        let bench = Bench {
            options: &once,
            dir,
            data: data.clone(),
            size: format!("{count} files"),
            has_pages: false,
            is_alone,
        };
        bench.first(TINY);
        bench.clear();
    }
    let _ = fs::remove_dir_all(&data);
}

/// One set of data, and a repository of each tool.
struct Bench<'a> {
    options: &'a Options,
    dir: &'a Path,
    data: PathBuf,
    size: String,
    has_pages: bool,
    /// The others are not measured, only how Stillpoint's own figures grow.
    is_alone: bool,
}

impl Bench<'_> {
    /// All, with no figures yet; only with large files a pin that is kept makes a difference.
    fn tools(&self) -> Vec<(Tool, Vec<Ran>)> {
        let is_here = |tool: &Tool| {
            let is_asked_for = tool.is_among(&self.options.only);
            let is_of_pages = *tool == Tool::StillpointReading;
            is_asked_for && (self.has_pages || !is_of_pages) && (!self.is_alone || *tool == Tool::Stillpoint)
        };
        ALL.into_iter().filter(is_here).map(|tool| (tool, vec![])).collect()
    }

    fn repository(&self, tool: Tool) -> PathBuf {
        self.dir.join("repositories").join(tool.owner().name())
    }

    fn backup(&self, tool: Tool) -> Ran {
        warm(&self.data);
        tool.backup(self.options, &self.repository(tool), &self.data)
    }

    /// Into new repositories, of which the last ones stay.
    fn first(&self, case: &str) {
        self.each(case, |_| {
            let _ = fs::remove_dir_all(self.dir.join("repositories"));
            let all = self.tools().into_iter();
            all.for_each(|(tool, _)| tool.init(self.options, &self.repository(tool), &self.data));
        });
    }

    /// Every tool in turn, again and again.
    fn each(&self, case: &str, mut before: impl FnMut(usize)) {
        let mut all = self.tools();
        for run in 0..self.options.runs {
            before(run);
            in_turn(&mut all, |tool, ran| ran.push(self.backup(tool)));
        }
        self.told(case, &all);
    }

    fn restore(&self, case: &str) {
        if self.options.restores() == 0 {
            return;
        }
        // Many files stay until the last tool has run: a filesystem that still frees the inodes of the tool before makes the next
        // one's creating of others many times slower. Of large ones there is no room for what all runs restore.
        let all_out = self.dir.join("restored");
        fs::create_dir(&all_out).expect("a directory");
        let mut all = self.tools();
        let keeps_pin = self.has_pages && all.iter().any(|(tool, _)| *tool == Tool::Stillpoint);
        all.extend(keeps_pin.then(|| (Tool::StillpointTrusting, vec![])));
        for run in 0..self.options.restores() {
            in_turn(&mut all, |tool, ran| {
                let out = all_out.join(format!("{}-{run}", tool.name().replace([',', ' '], "-")));
                warm(&self.repository(tool));
                ran.push(tool.restore(self.options, &self.repository(tool), &out));
                let there = found(&out, &self.data);
                let told =
                    ["-rq", "--no-dereference", &self.data.to_string_lossy(), &there.to_string_lossy()]
                        .map(str::to_owned);
                let said = super::machine::said("diff", &told.each_ref().map(String::as_str));
                assert_eq!(said, "", "{} restored something else", tool.name());
                if self.has_pages {
                    fs::remove_dir_all(&out).expect("what was restored can be removed");
                }
            });
        }
        fs::remove_dir_all(&all_out).expect("what was restored can be removed");
        self.told(case, &all);
    }

    fn clear(&self) {
        let _ = fs::remove_dir_all(self.dir.join("repositories"));
    }

    fn told(&self, case: &str, all: &[(Tool, Vec<Ran>)]) {
        let rows: Vec<Vec<String>> = all.iter().map(|(tool, ran)| self.row(case, *tool, ran)).collect();
        rows.iter().for_each(|row| println!("{}", row.join(" | ")));
        // What is not measured beside the others is not comparable with them.
        if self.options.only.is_empty() {
            page::update(self.options, &page::ARCHIVE, rows);
        }
    }

    fn row(&self, case: &str, tool: Tool, all: &[Ran]) -> Vec<String> {
        let of = |of: fn(&Ran) -> f64| cell(median(&column(all, of)));
        vec![
            case.to_owned(),
            self.size.clone(),
            tool.name().to_owned(),
            all.len().to_string(),
            of(|ran| ran.wall),
            of(|ran| ran.processor),
            of(|ran| ran.memory),
            of(|ran| ran.added),
            page::measured(),
        ]
    }
}

/// Where a directory lies below what was restored: some tools restore the path to it, some only what it holds.
fn found(out: &Path, data: &Path) -> PathBuf {
    let whole = out.join(data.strip_prefix("/").unwrap_or(data));
    if whole.exists() { whole } else { out.to_owned() }
}

/// Reads everything below, so that no tool finds it colder than another.
fn warm(below: &Path) {
    let begun = Instant::now();
    super::machine::said(
        "sh",
        &["-c", "sync; find \"$0\" -type f -exec cat {} + | wc -c", &below.to_string_lossy()],
    );
    if begun.elapsed() > Duration::from_secs(60) {
        println!("warming took {:.0} s", begun.elapsed().as_secs_f64());
    }
}

fn change_pages(data: &Path, random: &mut StdRng) {
    let of = |name: &str| fs::read_dir(data.join(name)).into_iter().flatten().flatten();
    let mut tables: Vec<PathBuf> =
        ["sbtest", "wiki"].into_iter().flat_map(of).map(|entry| entry.path()).collect();
    tables.sort();
    let mut page = vec![0; usize::try_from(PAGE).expect("a page is small")];
    for table in tables.iter().filter(|path| path.extension().is_some_and(|e| e == "ibd")) {
        let file = File::options().read(true).write(true).open(table).expect("a table");
        let pages = file.metadata().expect("its size").len() / PAGE;
        for _ in 0..pages.div_ceil(100) {
            let at = random.random_range(0..pages) * PAGE;
            file.read_exact_at(&mut page, at).expect("a page");
            // As an update of some rows: a part of the page is new.
            let from = random.random_range(0..page.len() - 2000);
            random.fill_bytes(&mut page[from..from + 2000]);
            file.write_all_at(&page, at).expect("the page is written");
        }
    }
}

fn make_small(data: &Path, count: u64) {
    let mut random = StdRng::seed_from_u64(2);
    for number in 0..count {
        let path = small_path(data, number);
        if number % TOGETHER == 0 {
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        }
        // Most are small and some are not: 1 to 71 kB, 9 kB on average.
        let size = 1000 + (70_000.0 * random.random::<f64>().powi(8)) as usize;
        let mut bytes = vec![b'x'; size];
        random.fill_bytes(&mut bytes[..size / 2]);
        fs::write(path, bytes).expect("a file");
    }
}

fn make_tiny(data: &Path, numbers: Range<u64>) {
    for number in numbers {
        let below = data.join((number / TOGETHER).to_string());
        if number % TOGETHER == 0 {
            fs::create_dir_all(&below).expect("a directory");
        }
        fs::write(below.join(number.to_string()), number.to_string()).expect("a file");
    }
}

fn change_small(data: &Path, count: u64, run: usize, random: &mut StdRng) {
    for _ in 0..count.div_ceil(100) {
        let path = small_path(data, random.random_range(0..count));
        fs::write(path, format!("changed before run {run}, {}", random.next_u64())).expect("a file");
    }
}

fn small_path(data: &Path, number: u64) -> PathBuf {
    data.join((number / TOGETHER).to_string()).join(number.to_string())
}
