//! Reading the inventory: `stillpoint.toml` and, beside it, `applications.d/*.toml`.
//!
//! It runs hooks, so a file that others can write is refused (DESIGN.md section 6).
//!
//! Crash story: reads only.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use model::{
    id::Relpath,
    inventory::{Application, Inventory, InventoryErrors, InventoryText, parse},
    pathtext,
};
use os::durable;
use rustix::fs::OFlags;

use crate::exit::{Fault, Outcome};

/// Reads and validates the inventory whose main file is `config`.
///
/// # Errors
/// With the status for configuration: if a file is missing, unreadable, writable by others, or wrong; each
/// error names file, line and remedy.
pub fn load(config: &Path) -> Outcome<Inventory> {
    let main = read_trusted(config)?;
    let mut parts = Vec::new();
    for path in part_files(config)? {
        parts.push(read_trusted(&path)?);
    }
    parse(&main, &parts, &host()).map_err(|errors| refused(config, &errors))
}

/// The directory with one file for each further application.
#[must_use]
pub fn parts_of(config: &Path) -> PathBuf {
    config.with_file_name("applications.d")
}

/// This host's name.
#[must_use]
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn refused(config: &Path, errors: &InventoryErrors) -> Fault {
    let what = match errors.0.as_slice() {
        [one] => one.to_string(),
        several => {
            let lines: Vec<String> = several.iter().map(|error| format!("\n  {error}")).collect();
            format!("{} things are wrong with the inventory:{}", several.len(), lines.concat())
        }
    };
    let remedy =
        format!("correct it; `stillpoint --config {} plan` shows what it comes to", config.display());
    Fault::usage(what, remedy)
}

fn part_files(config: &Path) -> Outcome<Vec<PathBuf>> {
    let dir = parts_of(config);
    let unreadable = |error| {
        let what = format!("{} cannot be read", pathtext::show(&dir));
        Fault::usage(what, "make it readable, or remove it").because(error)
    };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_trusted(path: &Path) -> Outcome<InventoryText> {
    let unreadable = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "`stillpoint init` writes one, --config names another",
            _ => "make it readable for whoever runs backups",
        };
        Fault::usage(format!("{} cannot be read", pathtext::show(path)), remedy).because(error)
    };
    // Whoever opens a FIFO otherwise waits for a writer.
    let no_wait = OFlags::NONBLOCK.bits().cast_signed();
    let mut file = OpenOptions::new().read(true).custom_flags(no_wait).open(path).map_err(unreadable)?;
    // Of the open file, not of the name: the name may lead elsewhere a moment later.
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        let what = format!("{} is not a regular file", pathtext::show(path));
        return Err(Fault::usage(what, "name the inventory's file with --config"));
    }
    trusted(path, meta.mode(), meta.uid())?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(unreadable)?;
    Ok(InventoryText { file: path.to_owned(), text })
}

fn trusted(path: &Path, mode: u32, owner: u32) -> Outcome<()> {
    let name = pathtext::show(path);
    if mode & 0o022 != 0 {
        let what = format!("{name} can be written by others (mode {:04o}), and it runs hooks", mode & 0o7777);
        return Err(Fault::usage(what, format!("`chmod go-w {name}`")));
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        let what = format!("{name} belongs to user {owner}, and it runs hooks");
        return Err(Fault::usage(what, format!("`chown root {name}`, or run as its owner")));
    }
    Ok(())
}

/// The applications that `names` (short names or relpaths) mean; all of them if there are none.
///
/// # Errors
/// With the status for usage, if there is no such application, or none at all.
pub fn choose<'a>(inventory: &'a Inventory, names: &[String]) -> Outcome<Vec<&'a Application>> {
    if inventory.applications.is_empty() {
        return Err(Fault::usage("the inventory has no application", "add one: the file tells how"));
    }
    if names.is_empty() {
        return Ok(inventory.applications.iter().collect());
    }
    let mut chosen: Vec<&Application> = Vec::new();
    for name in names {
        let application = one(inventory, name)?;
        if !chosen.iter().any(|other| other.relpath == application.relpath) {
            chosen.push(application);
        }
    }
    Ok(chosen)
}

/// The application that a name means.
///
/// # Errors
/// With the status for usage, if there is none.
pub fn one<'a>(inventory: &'a Inventory, name: &str) -> Outcome<&'a Application> {
    let is_meant =
        |application: &&Application| application.name.as_str() == name || relpath(application) == name;
    inventory.applications.iter().find(is_meant).ok_or_else(|| {
        let known: Vec<&str> = inventory.applications.iter().map(|a| a.name.as_str()).collect();
        let remedy = match known.as_slice() {
            [] => "the inventory has none: add one".to_owned(),
            known => format!("there are: {}", known.join(", ")),
        };
        Fault::usage(format!("there is no application {name:?}"), remedy)
    })
}

fn relpath(application: &Application) -> &str {
    Relpath::as_str(&application.relpath)
}

/// Makes the directories of the partition that everything else lies in.
///
/// # Errors
/// If they cannot be made.
pub fn prepare_state(inventory: &Inventory) -> Outcome<PathBuf> {
    let state = inventory.state();
    durable::create_dirs(&state, 0o700).map_err(|error| {
        let what = format!("{} cannot be made", pathtext::show(&state));
        Fault::io(what, "run it as the user who owns the partition, or name another partition", error)
    })?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use super::{load, one};
    use crate::exit::Exit;

    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    const MAIN: &str = "server = \"s\"\npartition = \"/b\"\npassword_file = \"/p\"\n";

    fn part(name: &str) -> String {
        format!(
            "[[application]]\nname = \"{name}\"\nrelpath = \"x/{name}\"\n[[application.directory]]\npath = \
             \"/srv/{name}\"\n"
        )
    }

    #[test]
    fn one_application_is_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("stillpoint.toml");
        write(&config, MAIN);
        let parts = dir.path().join("applications.d");
        fs::create_dir(&parts).unwrap();
        write(&parts.join("b.toml"), &part("b"));
        write(&parts.join("a.toml"), &part("a"));
        write(&parts.join("a.toml~"), "not read");
        write(&parts.join(".c.toml"), "not read");
        let inventory = load(&config).unwrap();
        let names: Vec<&str> = inventory.applications.iter().map(|a| a.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(one(&inventory, "x/b").unwrap().name.as_str(), "b");
        let unknown = one(&inventory, "c").unwrap_err();
        assert_eq!(unknown.exit, Exit::Usage);
        assert!(unknown.to_string().contains("there are: a, b"));
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("stillpoint.toml");
        write(&config, MAIN);
        for mode in [0o664, 0o646] {
            fs::set_permissions(&config, fs::Permissions::from_mode(mode)).unwrap();
            let fault = load(&config).unwrap_err();
            assert_eq!(fault.exit, Exit::Usage);
            assert!(fault.to_string().contains("can be written by others"), "{fault}");
        }
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(load(&config).is_ok());
    }

    #[test]
    fn a_missing_file_says_what_to_do() {
        let fault = load(Path::new("/nonexistent/stillpoint.toml")).unwrap_err();
        assert_eq!(fault.exit, Exit::Usage);
        assert!(fault.to_string().contains("stillpoint init"), "{fault}");
    }
}
