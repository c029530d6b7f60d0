//! Tables of a real application: a MediaWiki of manual pages with their histories, written by its own programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use testkit::server::PrivateServer;

use super::options::Options;

/// Texts that one run of its importer takes.
const BATCH: usize = 400;
/// Importers side by side.
const SIDE_BY_SIDE: usize = 2;
/// Pages of the wiki; the others are later revisions of them.
const PAGES: usize = 4000;
/// Fewer texts than these would make another database.
const LEAST: usize = 300;

/// Fills a database of this server with at least so many revisions.
pub fn fill(options: &Options, server: &PrivateServer, below: &Path) {
    install(&options.mediawiki, server);
    let mut texts = texts();
    assert!(texts.len() >= LEAST, "only {} manual pages are there: install manpages-dev", texts.len());
    let mut random = StdRng::seed_from_u64(7);
    let dir = below.join("texts");
    let mut written = 0;
    while written < options.wiki {
        texts.shuffle(&mut random);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory");
        let mut files = vec![];
        for (name, text) in texts.iter_mut().take(options.wiki - written) {
            edit(text, &mut random);
            let file = dir.join(format!("{name}.txt"));
            fs::write(&file, text.as_bytes()).expect("a text");
            files.push(file);
        }
        import(&options.mediawiki, &files);
        written += files.len();
        println!("{written} revisions");
    }
    let _ = fs::remove_dir_all(&dir);
}

/// What somebody changes in an article: some of its lines.
fn edit(text: &mut String, random: &mut StdRng) {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..3 {
        let at = random.random_range(0..=lines.len());
        lines.insert(at, format!("Seen again by reader {}: as before.", random.random::<u32>()));
    }
    *text = lines.join("\n");
}

/// Manual pages of this machine, the longest ones, by name.
fn texts() -> Vec<(String, String)> {
    let mut found: Vec<(u64, PathBuf)> = vec![];
    for section in 1..=8 {
        let dir = PathBuf::from(format!("/usr/share/man/man{section}"));
        found.extend(fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| {
            let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some((meta.len(), entry.path()))
        }));
    }
    found.sort_by(|a, b| b.cmp(a));
    let text = |path: &Path| {
        let unpacked = Command::new("zcat").arg(path).output().expect("zcat runs");
        String::from_utf8_lossy(&unpacked.stdout).into_owned()
    };
    found
        .iter()
        .take(PAGES)
        .filter_map(|(_, path)| Some((path.file_stem()?.to_str()?.to_owned(), text(path))))
        .collect()
}

fn install(wiki: &Path, server: &PrivateServer) {
    let settings = wiki.join("LocalSettings.php");
    let _ = fs::remove_file(&settings);
    server.run([
        "CREATE USER wiki@localhost IDENTIFIED BY 'wiki'",
        "GRANT ALL ON *.* TO wiki@localhost WITH GRANT OPTION",
    ]);
    let mut command = php(wiki, "install.php");
    command.arg("--dbtype=mysql").arg(format!("--dbserver=localhost:{}", server.socket().display()));
    command.args([
        "--dbname=wiki",
        "--dbuser=wiki",
        "--dbpass=wiki",
        "--installdbuser=wiki",
        "--installdbpass=wiki",
    ]);
    command.args([
        "--server=http://wiki.invalid",
        "--scriptpath=/w",
        "--pass=a-long-passphrase",
        "Bench",
        "Admin",
    ]);
    done(&mut command);
    assert!(settings.is_file(), "MediaWiki is not installed");
}

fn import(wiki: &Path, files: &[PathBuf]) {
    thread::scope(|scope| {
        for part in files.chunks(files.len().div_ceil(SIDE_BY_SIDE)) {
            scope.spawn(|| {
                for batch in part.chunks(BATCH) {
                    let mut command = php(wiki, "importTextFiles.php");
                    done(command.args(["--user=Admin", "--overwrite"]).args(batch));
                }
            });
        }
    });
}

fn php(wiki: &Path, script: &str) -> Command {
    let mut command = Command::new("php");
    command.args(["-d", "memory_limit=1G"]).arg(wiki.join("maintenance").join(script)).stdin(Stdio::null());
    command
}

fn done(command: &mut Command) {
    let output = command.output().expect("php is installed");
    assert!(output.status.success(), "{command:?}: {}", super::scene::text(&output));
}
