//! The arguments.

use std::path::PathBuf;

pub const USAGE: &str = "usage: bench stall|tools|lvm|archive|log|replay|page [--dir DIR] [--program FILE] [--page FILE] [--fs xfs,btrfs] \
                         [--gb 0.5,2.4,8] [--age fresh,aged] [--files 230] [--cuts 20] [--runs 3] [--nights 10] \
                         [--threads 4] [--rate 200] [--clients 4] [--small 100000] [--million 1000000] [--mb 400] [--rustic FILE] \
                         [--wiki 6000] [--mediawiki DIR] [--only stillpoint,rustic] [--restores 5]";

/// What is to be measured, and how often.
#[derive(Clone, Debug)]
pub struct Options {
    /// `stall`, `tools`, `lvm`, `archive`, `log`, `replay`, `page`.
    pub command: String,
    /// Where filesystem images are made.
    pub dir: PathBuf,
    /// The program under test.
    pub program: PathBuf,
    /// The page.
    pub page: PathBuf,
    /// Kinds of filesystems.
    pub filesystems: Vec<String>,
    /// Sizes of the tables, in units of 10⁹ bytes.
    pub sizes: Vec<f64>,
    /// `fresh`, `aged`.
    pub ages: Vec<String>,
    /// Tables, each in a file of its own.
    pub files: u32,
    /// Cuts of each row.
    pub cuts: usize,
    /// Runs of each tool.
    pub runs: usize,
    /// Nights of ageing.
    pub nights: u32,
    /// Threads of sysbench.
    pub threads: u32,
    /// Transactions of sysbench a second; 0 for as many as go.
    pub rate: u32,
    /// Clients with a stopwatch.
    pub clients: u32,
    /// Small files of the archiver's cases.
    pub small: u64,
    /// Tiny files, for its memory; none if 0.
    pub million: u64,
    /// Binary logs that are replayed, in units of 10⁶ bytes.
    pub megabytes: u64,
    /// Revisions of a MediaWiki of the archiver's cases; none if 0.
    pub wiki: usize,
    /// Its programs.
    pub mediawiki: PathBuf,
    /// Another tool's program, which no distribution has.
    pub rustic: PathBuf,
    /// The archivers that are measured, all if there are none; without the others nothing is written on the page.
    pub only: Vec<String>,
    /// How often each tool restores, as often as it is run if it is not said; pages are not restored if 0, for there has to be
    /// room for them.
    pub restores: Option<usize>,
}

impl Options {
    /// Reads the arguments.
    pub fn parse(arguments: &[String]) -> Result<Self, String> {
        let (command, rest) = arguments.split_first().ok_or("what is to be measured?")?;
        let mut options = Self {
            command: command.clone(),
            dir: PathBuf::from("/var/tmp"),
            program: PathBuf::from("target/release/stillpoint"),
            page: PathBuf::from("docs/BENCHMARKS.md"),
            filesystems: words("xfs,btrfs"),
            sizes: vec![0.5, 2.4, 8.0],
            ages: words("fresh,aged"),
            files: 230,
            cuts: 20,
            runs: 3,
            nights: 10,
            threads: 4,
            rate: 200,
            clients: 4,
            small: 100_000,
            million: 1_000_000,
            megabytes: 400,
            wiki: 6_000,
            mediawiki: PathBuf::from("target/mediawiki"),
            rustic: PathBuf::from("target/rustic/bin/rustic"),
            only: Vec::new(),
            restores: None,
        };
        if command == "lvm" || command == "lvm-guest" {
            // The virtual machine computes about ten times slower.
            (options.sizes, options.files, options.rate, options.clients) = (vec![0.2], 20, 20, 2);
        } else if command == "archive" {
            (options.sizes, options.files, options.nights) = (vec![2.1], 16, 30);
        } else if command == "log" {
            (options.filesystems, options.sizes, options.files) = (words("xfs"), vec![0.5], 16);
            options.runs = 7;
        } else if command == "replay" {
            (options.filesystems, options.sizes, options.files) = (words("xfs"), vec![0.5], 16);
            options.runs = 3;
        } else if command == "tools" {
            options.sizes = vec![2.4];
        }
        for pair in rest.chunks(2) {
            let [name, value] = pair else { return Err(format!("{} needs a value", pair[0])) };
            options.set(name, value)?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "--dir" => self.dir = value.into(),
            "--program" => self.program = value.into(),
            "--page" => self.page = value.into(),
            "--fs" => self.filesystems = words(value),
            "--gb" => self.sizes = words(value).iter().map(|word| number(word)).collect::<Result<_, _>>()?,
            "--age" => self.ages = words(value),
            "--files" => self.files = number(value)?,
            "--cuts" => self.cuts = number(value)?,
            "--runs" => self.runs = number(value)?,
            "--nights" => self.nights = number(value)?,
            "--threads" => self.threads = number(value)?,
            "--rate" => self.rate = number(value)?,
            "--clients" => self.clients = number(value)?,
            "--small" => self.small = number(value)?,
            "--million" => self.million = number(value)?,
            "--mb" => self.megabytes = number(value)?,
            "--wiki" => self.wiki = number(value)?,
            "--mediawiki" => self.mediawiki = value.into(),
            "--rustic" => self.rustic = value.into(),
            "--only" => self.only = words(value),
            "--restores" => self.restores = Some(number(value)?),
            other => return Err(format!("{other} is not known")),
        }
        Ok(())
    }

    /// How often each tool restores.
    pub fn restores(&self) -> usize {
        self.restores.unwrap_or(self.runs)
    }

    /// The load in words.
    pub fn load(&self) -> String {
        if self.command == "archive" {
            return "none but the tool that is measured".to_owned();
        }
        if self.command == "replay" {
            return format!("the logs are of sysbench `oltp_write_only`, {} threads", self.threads);
        }
        if self.command == "log" {
            return format!("sysbench `oltp_write_only`, {} threads", self.threads);
        }
        let rate = if self.rate == 0 {
            "as many transactions as go".to_owned()
        } else {
            format!("{} transactions/s", self.rate)
        };
        format!(
            "sysbench `oltp_write_only`, {} threads, {rate}, and {} clients with a stopwatch",
            self.threads, self.clients
        )
    }
}

fn words(value: &str) -> Vec<String> {
    value.split(',').map(|word| word.trim().to_owned()).collect()
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{value} is no number"))
}
