//! Keeps the shape of the project (DESIGN: the crates are cut by what they may touch): arrows between crates,
//! sizes of files and functions, heads of modules, glob imports, who may start processes, and that documents
//! name only files that exist.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Which workspace crates each crate may depend on.
const ARROWS: [(&str, &[&str]); 8] = [
    ("lanes", &[]),
    ("model", &[]),
    ("os", &["model"]),
    ("engines", &["model", "os"]),
    ("vault", &["lanes", "model", "os"]),
    ("orchestrate", &["model"]),
    ("testkit", &["model"]),
    ("stillpoint", &["model", "os", "engines", "vault", "orchestrate"]),
];

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 80;
const MOST_FUNCTIONS_LINES: usize = 35;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/stillpoint lies two levels down")
        .into()
}

fn files(below: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).expect("the tree is readable") {
        let path = entry.expect("the tree is readable").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "testdata" {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&root().join("crates"), "rs", &mut found);
    found
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).expect("sources are UTF-8")))
        .collect()
}

fn short(path: &Path) -> String {
    path.strip_prefix(root()).expect("below the root").display().to_string()
}

fn is_product(path: &Path) -> bool {
    short(path).contains("/src/")
}

/// The lines before the tests of a file.
fn product_lines(text: &str) -> usize {
    text.lines().take_while(|line| *line != "#[cfg(test)]").count()
}

fn report(what: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{what}:\n  {}", faults.join("\n  "));
}

#[test]
fn crates_depend_only_downwards() {
    let mut faults = Vec::new();
    for (name, allowed) in ARROWS {
        let manifest = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).expect(name);
        let table: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
        for dependency in table["dependencies"].as_table().expect("a table").keys() {
            if ARROWS.iter().any(|(other, _)| other == dependency) && !allowed.contains(&dependency.as_str())
            {
                faults.push(format!("{name} -> {dependency}"));
            }
        }
    }
    report("arrows that DESIGN does not draw", &faults);
}

#[test]
fn every_crate_is_in_the_picture() {
    let mut there: Vec<String> = fs::read_dir(root().join("crates"))
        .expect("crates")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    there.sort();
    let mut drawn: Vec<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    drawn.sort_unstable();
    assert_eq!(there, drawn);
}

/// A crate that is not in the list is optimised in debug builds: compiled for long, each time.
#[test]
fn every_crate_is_built_fast_or_is_fast() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace");
    let table: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
    let built_fast: Vec<&String> =
        table["profile"]["dev"]["package"].as_table().expect("a table").keys().collect();
    let expected: Vec<&str> = ARROWS.iter().map(|(name, _)| *name).filter(|name| *name != "lanes").collect();
    assert_eq!(built_fast.len(), expected.len(), "{built_fast:?}");
    assert!(expected.iter().all(|name| built_fast.iter().any(|there| there == name)), "{built_fast:?}");
}

#[test]
fn files_stay_readable() {
    let faults: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| is_product(path))
        .map(|(path, text)| (short(path), product_lines(text)))
        .filter(|(_, lines)| *lines > FILE_LINES)
        .map(|(path, lines)| format!("{path}: {lines} lines before its tests"))
        .collect();
    report(&format!("files over {FILE_LINES} lines"), &faults);
}

/// Names and lengths of the functions of a file: from `fn` to the closing brace of the same indentation. A trait's
/// declaration without a body is one line.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().take(product_lines(text)).collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        let words = words.trim_start_matches("pub(super) ").trim_start_matches("const ");
        let Some(rest) = words.trim_start_matches("unsafe ").strip_prefix("fn ") else { continue };
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let closing = format!("{}}}", " ".repeat(indent));
        let length = lines[start..].iter().position(|l| **l == closing);
        let signature = lines[start..].iter().find(|l| l.ends_with(['{', '}', ';']));
        if line.ends_with('}') || signature.is_some_and(|l| l.ends_with(';')) {
            found.push((name, 1));
        } else if let Some(length) = length {
            found.push((name, length + 1));
        }
    }
    found
}

#[test]
fn functions_stay_readable() {
    let mut faults = Vec::new();
    let mut lengths = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| is_product(path)) {
        for (name, length) in functions(text) {
            lengths.push(length);
            if length > FUNCTION_LINES {
                faults.push(format!("{}: {name} has {length} lines", short(path)));
            }
        }
    }
    report(&format!("functions over {FUNCTION_LINES} lines"), &faults);
    lengths.sort_unstable();
    assert!(lengths.len() > 100, "the scan finds functions");
    let p90 = lengths[lengths.len() * 9 / 10];
    assert!(p90 <= MOST_FUNCTIONS_LINES, "nine in ten functions have at most {p90} lines");
}

#[test]
fn every_module_tells_its_crash_story() {
    let faults: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| is_product(path) && !short(path).starts_with("crates/testkit"))
        .filter(|(_, text)| {
            let head: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
            !head.iter().any(|line| line.contains("Crash story"))
        })
        .map(|(path, _)| short(path))
        .collect();
    report("modules without a crash story at their head (//! Crash story: ...)", &faults);
}

#[test]
fn nothing_is_imported_by_glob() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if (line.starts_with("use ") || line.starts_with("pub use "))
                && (line.contains("::*") || line.contains("{*"))
            {
                faults.push(format!("{}:{}: {line}", short(&path), number + 1));
            }
        }
    }
    report("glob imports", &faults);
}

#[test]
fn only_one_module_starts_processes() {
    let mut faults = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| is_product(path)) {
        let name = short(path);
        if name.starts_with("crates/os/src/command") || name.starts_with("crates/testkit") {
            continue;
        }
        let product: Vec<&str> = text.lines().take(product_lines(text)).collect();
        if product.iter().any(|line| line.contains("process::Command") || line.contains("Command::new(")) {
            faults.push(name);
        }
    }
    report("processes started outside os::command", &faults);
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[ign", "ore"),
        concat!("FIX", "ME"),
        "(in the making)",
    ];
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if !path.ends_with("tests/tidy.rs") && marks.iter().any(|mark| line.contains(mark)) {
                faults.push(format!("{}:{}: {}", short(&path), number + 1, line.trim()));
            }
        }
    }
    report("stubs, ignored tests, open marks", &faults);
}

/// Words in backticks that name a file of this repository.
fn named_files(text: &str) -> Vec<String> {
    const TOPS: [&str; 5] = ["crates/", "docs/", "scripts/", ".ci/", "testdata/"];
    text.split('`')
        .skip(1)
        .step_by(2)
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches([',', '.', ':', ';']))
        .filter(|word| TOPS.iter().any(|top| word.starts_with(top)) && !word.contains(['*', '{', '<', '…']))
        .map(str::to_owned)
        .collect()
}

#[test]
fn documents_name_only_what_exists() {
    let mut documents = Vec::new();
    files(&root(), "md", &mut documents);
    let mut faults = Vec::new();
    let mut checked = BTreeMap::new();
    for path in documents {
        let text = fs::read_to_string(&path).expect("documents are UTF-8");
        for name in named_files(&text) {
            if !checked.entry(name.clone()).or_insert_with(|| root().join(&name).exists()).to_owned() {
                faults.push(format!("{} names {name}", short(&path)));
            }
        }
    }
    report("documents that name files which do not exist", &faults);
}

#[test]
fn every_format_page_has_its_sample() {
    let mut pages = Vec::new();
    files(&root().join("docs/format"), "md", &mut pages);
    assert!(pages.len() >= 5, "inventory, history, journal, records and repository have pages");
    let faults: Vec<String> = pages
        .iter()
        .filter(|page| !fs::read_to_string(page).expect("UTF-8").contains("testdata/"))
        .map(|page| short(page))
        .collect();
    report("format pages that name no frozen sample", &faults);
}
