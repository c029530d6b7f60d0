//! From text to an [`Inventory`]: every key, its type and its value. What concerns several applications at
//! once is checked by the sibling module `validate`.
//!
//! Crash story: pure functions, no effects.

use std::path::{Component, Path, PathBuf};

use crate::{
    id::{AppName, IdError, ServerName, VmName},
    inventory::{
        Inventory, InventoryError, InventoryErrors, Origin, PathRole, Settings,
        application::{Parsed, application},
        raw::{At, Page, Section},
        settings::settings,
        validate::validate,
    },
};

/// One file of an inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InventoryText {
    /// Its name, for messages.
    pub file: PathBuf,
    /// What it holds.
    pub text: String,
}

/// Reads an inventory: the main file, and the files of `applications.d` in the order given, each of which
/// holds exactly one `[[application]]` as in the main file and nothing else. `host` is this host's name, for
/// an inventory that names no server.
///
/// # Errors
/// Everything that is wrong in any of the files; of a file that is no TOML, the first thing only.
pub fn parse(
    main: &InventoryText,
    parts: &[InventoryText],
    host: &str,
) -> Result<Inventory, InventoryErrors> {
    let mut errors = Vec::new();
    let mut applications = Vec::new();
    let page = Page::new(main);
    let (head, defaults) = main_file(&page, host, &mut applications);
    errors.extend(page.into_errors());
    for part in parts {
        let page = Page::new(part);
        part_file(&page, &defaults, &mut applications);
        errors.extend(page.into_errors());
    }
    finish(head, applications, errors)
}

fn finish(
    head: Option<Head>,
    applications: Vec<Parsed>,
    mut errors: Vec<InventoryError>,
) -> Result<Inventory, InventoryErrors> {
    errors.extend(validate(head.as_ref().map(|h| h.partition.as_path()), &applications));
    let Some(head) = head.filter(|_| errors.is_empty()) else {
        errors.sort_by_key(|e| e.line);
        let mut files: Vec<PathBuf> = Vec::new();
        files.extend(errors.iter().map(|e| e.file.clone()));
        files.sort();
        files.dedup();
        errors.sort_by_key(|e| files.iter().position(|f| *f == e.file));
        return Err(InventoryErrors(errors));
    };
    let mut origins = head.origins;
    let mut list = Vec::new();
    for parsed in applications {
        origins.extend(parsed.origins);
        list.push(parsed.application);
    }
    let Head { server, vm, partition, password_file, .. } = head;
    Ok(Inventory { server, vm, partition, password_file, applications: list, origins })
}

/// What stands at the top of the main file.
struct Head {
    server: ServerName,
    vm: VmName,
    partition: PathBuf,
    password_file: PathBuf,
    origins: Vec<Origin>,
}

fn main_file(page: &Page<'_>, host: &str, applications: &mut Vec<Parsed>) -> (Option<Head>, Settings) {
    let Some(table) = page.table() else { return (None, Settings::default()) };
    let top = Section::new(page, "the main file", 1, &table);
    let head = head(&top, host);
    let defaults = match top.section("defaults", "[defaults]") {
        Some(section) => {
            let found = settings(&section, &Settings::default());
            section.finish();
            found
        }
        None => Settings::default(),
    };
    for section in top.sections("application", "[[application]]") {
        applications.extend(application(section, &defaults));
    }
    top.finish();
    (head, defaults)
}

fn head(top: &Section<'_, '_>, host: &str) -> Option<Head> {
    let server = match top.text("server") {
        Some(found) => checked(top, found, ServerName::new),
        None => ServerName::new(host)
            .map_err(|error| top.report(1, format!("this host's name: {error}"), "add server = \"…\""))
            .ok(),
    };
    let vm = match top.text("vm") {
        Some(found) => checked(top, found, VmName::new),
        None => VmName::new("host").ok(),
    };
    let partition = top.required("partition", "\"/var/backups/stillpoint\"");
    let partition = partition.and_then(|found| path(top, "partition", found));
    let password_file = top.required("password_file", "\"/etc/stillpoint/password\"");
    let password_file = password_file.and_then(|found| path(top, "password_file", found));
    let (partition, password_file) = (partition?, password_file?);
    let origin = |role, at: &At<PathBuf>| Origin {
        role,
        application: None,
        path: at.value.clone(),
        file: top.page().file().to_owned(),
        line: at.line,
    };
    let origins =
        vec![origin(PathRole::Partition, &partition), origin(PathRole::PasswordFile, &password_file)];
    let (partition, password_file) = (partition.value, password_file.value);
    Some(Head { server: server?, vm: vm?, partition, password_file, origins })
}

fn part_file(page: &Page<'_>, defaults: &Settings, applications: &mut Vec<Parsed>) {
    let Some(table) = page.table() else { return };
    let top = Section::new(page, "a file of applications.d", 1, &table);
    let mut sections = top.sections("application", "[[application]]");
    if sections.is_empty() {
        top.report(1, "no [[application]] in this file", "write one, or remove the file");
    }
    if sections.len() > 1 {
        let line = sections[1].line();
        let what = format!("{} applications in one file of applications.d", sections.len());
        top.report(line, what, "give each a file of its own, so that it can be moved by moving its file");
    }
    for section in sections.drain(..) {
        applications.extend(application(section, defaults));
    }
    top.finish();
}

/// The id that a text is, or nothing after reporting why it is none.
pub(super) fn checked<T>(
    section: &Section<'_, '_>,
    found: At<&str>,
    make: impl Fn(String) -> Result<T, IdError>,
) -> Option<T> {
    make(found.value.to_owned())
        .map_err(|error| {
            let what = format!("{:?} is not a valid {}", error.text, error.kind);
            section.report(found.line, what, format!("it must be {}", error.rule));
        })
        .ok()
}

/// The absolute path that a text is, without repeated or trailing slashes.
pub(super) fn path(section: &Section<'_, '_>, key: &str, found: At<&str>) -> Option<At<PathBuf>> {
    let path = Path::new(found.value);
    if !path.is_absolute() {
        let what = format!("{key} {:?} is not an absolute path", found.value);
        section.report(found.line, what, "write it from the root, beginning with /");
        return None;
    }
    if path.components().any(|part| part == Component::ParentDir) || found.value.contains('\0') {
        let what = format!("{key} {:?} has a component `..` or a zero byte", found.value);
        section.report(found.line, what, "write the path that it leads to");
        return None;
    }
    Some(At { value: path.components().collect(), line: found.line })
}

/// As [`path`], with where it stands.
pub(super) fn origin(
    section: &Section<'_, '_>,
    key: &str,
    found: At<&str>,
    role: PathRole,
    application: Option<&AppName>,
) -> Option<Origin> {
    let At { value, line } = path(section, key, found)?;
    let file = section.page().file().to_owned();
    Some(Origin { role, application: application.cloned(), path: value, file, line })
}
