//! One `[[application]]` block.
//!
//! Crash story: pure functions, no effects.

use std::path::PathBuf;

use crate::{
    id::{AppName, Relpath},
    inventory::{
        Application, Database, Directory, Hooks, Origin, PathRole, ProcessSelector, Settings,
        parse::{checked, origin},
        raw::{At, Section},
        server::{ParsedServer, archive, server},
        settings::{length_of, settings},
        values::pattern,
    },
    server::Flavor,
    undo::Hook,
};

/// Recipes that are planned; `generic` is the one there is.
const LATER_RECIPES: [&str; 8] = ["rails", "wordpress", "moinmoin", "git", "cvs", "mail", "exo", "drawmgt"];
/// Engines that are planned.
const LATER_ENGINES: [&str; 2] = ["postgres", "arangodb"];

/// An application and where its names and paths stand.
pub(super) struct Parsed {
    pub application: Application,
    pub file: PathBuf,
    pub name_line: usize,
    pub relpath_line: usize,
    /// Databases, directories and pid file.
    pub origins: Vec<Origin>,
}

/// Reads a block; nothing if it has no usable name or relpath, after reporting that.
pub(super) fn application(section: Section<'_, '_>, defaults: &Settings) -> Option<Parsed> {
    let name_at = section.required("name", "\"hydro\"");
    let relpath_at = section.required("relpath", "\"demo.example.org/hydro\"");
    let name = name_at.and_then(|found| checked(&section, found, AppName::new));
    let relpath = relpath_at.and_then(|found| checked(&section, found, Relpath::new));
    let description = section.text("description").map(|d| d.value.to_owned()).unwrap_or_default();
    recipe(&section);

    let mut origins = Vec::new();
    let mut databases = Vec::new();
    let blocks = section.sections("database", "[[application.database]]");
    let mut any_source = !blocks.is_empty();
    for block in blocks {
        databases.extend(database(block, name.as_ref(), &mut origins));
    }
    let mut directories = Vec::new();
    let blocks = section.sections("directory", "[[application.directory]]");
    any_source |= !blocks.is_empty();
    for block in blocks {
        directories.extend(directory(block, name.as_ref(), &mut origins));
    }
    if !any_source {
        let remedy = "add [[application.directory]] or [[application.database]] with its path";
        section.report(section.line(), "the application has no source", remedy);
    }
    let process = section.section("process", "[application.process]");
    let process = process.and_then(|block| process_selector(block, name.as_ref(), &mut origins));
    let hooks = section.section("hooks", "[application.hooks]").and_then(hooks);
    let settings = settings(&section, defaults);
    let file = section.page().file().to_owned();
    section.finish();

    let (name, relpath) = (name?, relpath?);
    let application =
        Application { name, relpath, description, directories, databases, process, hooks, settings };
    Some(Parsed { application, file, name_line: name_at?.line, relpath_line: relpath_at?.line, origins })
}

fn recipe(section: &Section<'_, '_>) {
    let path = section.text("path");
    let Some(At { value, line }) = section.text("recipe") else {
        if let Some(path) = path {
            let remedy = "write the path under [[application.directory]]";
            section.report(path.line, "path belongs to a recipe, and there is none here", remedy);
        }
        return;
    };
    if LATER_RECIPES.contains(&value) {
        let what = format!("recipe {value:?} is not available in this version");
        section.report(line, what, "list its directories and databases, and leave recipe out");
    } else if value != "generic" {
        let what = format!("there is no recipe {value:?}");
        section.report(line, what, "leave recipe out, or write recipe = \"generic\", which is the same");
    } else if let Some(path) = path {
        let remedy = "write the path under [[application.directory]]";
        section.report(path.line, "the recipe \"generic\" takes no path", remedy);
    }
}

fn database(section: Section<'_, '_>, name: Option<&AppName>, origins: &mut Vec<Origin>) -> Option<Database> {
    let At { value: engine, line } = section.required("engine", "\"sqlite\"")?;
    match engine {
        "sqlite" => {}
        "mariadb" => return server_database(section, Flavor::MariaDb, name, origins),
        "mysql" => return server_database(section, Flavor::MySql, name, origins),
        _ => {
            // The other keys belong to another engine, so nothing more can be said of them.
            let (what, remedy) = if LATER_ENGINES.contains(&engine) {
                (
                    format!("engine {engine:?} is not supported in this version"),
                    "remove the entry; this version backs up sqlite, mariadb and mysql",
                )
            } else {
                (format!("there is no engine {engine:?}"), "write \"sqlite\", \"mariadb\" or \"mysql\"")
            };
            section.report(line, what, remedy);
            return None;
        }
    }
    let found = section.required("path", "\"/srv/hydro/var/production.sqlite3\"");
    let origin = found.and_then(|f| origin(&section, "path", f, PathRole::Database, name));
    let archive =
        section.section("archive", "archive").map(|block| archive(block, false)).unwrap_or_default();
    section.finish();
    let origin = origin?;
    let path = origin.path.clone();
    origins.push(origin);
    Some(Database::Sqlite { path, archive })
}

fn server_database(
    section: Section<'_, '_>,
    flavor: Flavor,
    name: Option<&AppName>,
    origins: &mut Vec<Origin>,
) -> Option<Database> {
    let ParsedServer { server, origin } = server(section, flavor, name)?;
    origins.push(origin);
    Some(Database::Server(Box::new(server)))
}

fn directory(
    section: Section<'_, '_>,
    name: Option<&AppName>,
    origins: &mut Vec<Origin>,
) -> Option<Directory> {
    let found = section.required("path", "\"/srv/hydro/var\"");
    let origin = found.and_then(|f| origin(&section, "path", f, PathRole::Directory, name));
    let mut exclude = Vec::new();
    for text in section.texts("exclude") {
        match pattern(text.value) {
            Ok(glob) => exclude.push(glob),
            Err(why) => section.report(
                text.line,
                format!("{:?} is no pattern: {why}", text.value),
                "write it relative to the directory, such as \"cache/**\" or \"**/*.tmp\"",
            ),
        }
    }
    section.finish();
    let origin = origin?;
    let path = origin.path.clone();
    origins.push(origin);
    Some(Directory { path, exclude })
}

fn process_selector(
    section: Section<'_, '_>,
    name: Option<&AppName>,
    origins: &mut Vec<Origin>,
) -> Option<ProcessSelector> {
    let unit = section.text("unit");
    let pid_file = section.text("pid_file");
    let selector = match (unit, pid_file) {
        (Some(unit), None) if is_unit(unit.value) => Some(ProcessSelector::Unit(unit.value.to_owned())),
        (Some(unit), None) => {
            let what = format!("{:?} is no name of a systemd unit", unit.value);
            section.report(unit.line, what, "write its whole name, such as \"hydro.service\"");
            None
        }
        (None, Some(found)) => origin(&section, "pid_file", found, PathRole::PidFile, name).map(|origin| {
            origins.push(origin.clone());
            ProcessSelector::PidFile(origin.path)
        }),
        (Some(_), Some(_)) => {
            section.report(section.line(), "both unit and pid_file are given", "keep one of them");
            None
        }
        (None, None) => {
            let what = "neither unit nor pid_file is given in [application.process]";
            section.report(
                section.line(),
                what,
                "add unit = \"hydro.service\" or pid_file = \"/run/hydro.pid\"",
            );
            None
        }
    };
    section.finish();
    selector
}

/// The letters of systemd.unit(5), and a suffix.
fn is_unit(text: &str) -> bool {
    let letters = text.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c));
    letters && !text.starts_with(['-', '.']) && text.rsplit_once('.').is_some_and(|(_, end)| !end.is_empty())
}

fn hooks(section: Section<'_, '_>) -> Option<Hooks> {
    let stop = section.section("stop", "stop").and_then(hook);
    let start = section.section("start", "start").and_then(hook);
    if !(section.has("stop") && section.has("start")) {
        let remedy = "add both: stop = { run = \"…\", timeout = \"2m\" }, and start likewise";
        section.report(section.line(), "[application.hooks] needs both stop and start", remedy);
    }
    section.finish();
    Some(Hooks { stop: stop?, start: start? })
}

pub(super) fn hook(section: Section<'_, '_>) -> Option<Hook> {
    let run = section.required("run", "\"systemctl stop hydro\"");
    if let Some(At { value, line }) = run
        && value.trim().is_empty()
    {
        section.report(line, "run is empty", "write the command");
        return None;
    }
    let timeout = section.required("timeout", "\"2m\"");
    let timeout = timeout.and_then(|found| length_of(&section, "timeout", found, "\"2m\""));
    section.finish();
    Some(Hook { run: run?.value.to_owned(), timeout: timeout? })
}
