//! `init`: the inventory, the key, the partition, a repository for each application. Whatever is there
//! already stays as it is, so it can be run again whenever something is missing.
//!
//! Crash story: each file is complete or absent, and made in an order in which a second run goes on: the
//! inventory, then the key, then the repositories that are opened with it.

use std::{
    io,
    path::{Path, PathBuf},
};

use model::{
    inventory::{Inventory, TemplateApplication, TemplateChoices, template},
    pathtext,
};
use os::durable;
use serde::Serialize;
use vault::repository::{Opening, Password, Repository, RepositoryError};

use super::Context;
use crate::{
    cli::InitArgs,
    exit::{Exit, Fault, Outcome},
    output::Report,
    wire::{inventory, password},
};

/// Makes what is missing.
///
/// # Errors
/// If the inventory is wrong, something else lies where a repository should be, or a file cannot be written.
pub fn run(context: &Context, args: &InitArgs) -> Outcome {
    let config = absolute(&context.global.config)?;
    let mut report = InitReport::new(&config);
    write_inventory(&config, args, &mut report)?;
    let inventory = inventory::load(&config)?;
    let password = write_password(&inventory, &mut report)?;
    inventory::prepare_state(&inventory)?;
    for application in &inventory.applications {
        make_repository(&inventory.place(application).join("repository"), &password, &mut report)?;
    }
    report.confirmed = password::is_confirmed(&inventory, &password)?;
    report.applications = inventory.applications.iter().map(|a| a.name.to_string()).collect();
    context.output.result(&report)?;
    Ok(Exit::Done)
}

fn absolute(path: &Path) -> Outcome<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Fault::usage(format!("{} is no path", pathtext::show(path)), "").because(error))
}

fn write_inventory(config: &Path, args: &InitArgs, report: &mut InitReport) -> Outcome<()> {
    if config.exists() {
        if args.app.is_some() {
            let what = format!("{} is there already", pathtext::show(config));
            let parts = pathtext::show(&inventory::parts_of(config));
            return Err(Fault::usage(
                what,
                format!("add the application to it, or to a file of its own in {parts}"),
            ));
        }
        report.kept.push(pathtext::show(config));
        return Ok(());
    }
    let text = inventory_text(config, args)?;
    if let Some(dir) = config.parent() {
        durable::create_dirs(dir, 0o755).map_err(|error| not_made(dir, error))?;
    }
    durable::write_new(config, text.as_bytes(), 0o644).map_err(|error| not_made(config, error))?;
    report.made.push(pathtext::show(config));
    Ok(())
}

fn not_made(path: &Path, error: io::Error) -> Fault {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run it as root, or name places of your own with --config and --partition"
        }
        _ => "",
    };
    Fault::io(format!("{} cannot be made", pathtext::show(path)), remedy, error)
}

fn inventory_text(config: &Path, args: &InitArgs) -> Outcome<String> {
    let password_file = match &args.password_file {
        Some(file) => absolute(file)?,
        None => config.with_file_name("password"),
    };
    let mut applications = Vec::new();
    if let Some(name) = &args.app {
        applications.push(TemplateApplication {
            name: name.clone(),
            relpath: args.relpath.clone().unwrap_or_else(|| name.clone()),
            directories: all_absolute(&args.directory)?,
            databases: all_absolute(&args.sqlite)?,
            servers: all_absolute(&args.mariadb)?,
            server_databases: args.database.clone(),
        });
    }
    let choices = TemplateChoices {
        server: inventory::host(),
        partition: absolute(&args.partition)?,
        password_file,
        applications,
    };
    let process = process_text(args)?;
    Ok(template(&choices) + &process)
}

fn all_absolute(paths: &[PathBuf]) -> Outcome<Vec<PathBuf>> {
    paths.iter().map(|path| absolute(path)).collect()
}

/// Whom to hold while pinning; at the end of the file it belongs to the application above it.
fn process_text(args: &InitArgs) -> Outcome<String> {
    let (key, value) = match (&args.unit, &args.pid_file) {
        (Some(unit), _) => ("unit", unit.clone()),
        (None, Some(file)) => ("pid_file", absolute(file)?.to_string_lossy().into_owned()),
        (None, None) => return Ok(String::new()),
    };
    Ok(format!("\n[application.process]\n{key} = {}\n", toml::Value::String(value)))
}

fn write_password(inventory: &Inventory, report: &mut InitReport) -> Outcome<Password> {
    let file = &inventory.password_file;
    if file.exists() {
        report.kept.push(pathtext::show(file));
        return password::read(inventory);
    }
    let old =
        inventory.applications.iter().map(|a| inventory.place(a).join("repository")).find(|dir| dir.exists());
    if let Some(old) = old {
        let what = format!(
            "{} is missing, but there is a repository at {} already",
            pathtext::show(file),
            pathtext::show(&old)
        );
        return Err(Fault::usage(what, "put the key of that repository back: a new one does not open it"));
    }
    if let Some(dir) = file.parent() {
        durable::create_dirs(dir, 0o755).map_err(|error| not_made(dir, error))?;
    }
    let password = Password::generate();
    password.write_new(file).map_err(|error| {
        Fault::usage(format!("the key cannot be written to {}", pathtext::show(file)), "").because(error)
    })?;
    report.made.push(pathtext::show(file));
    Ok(password)
}

fn make_repository(dir: &Path, password: &Password, report: &mut InitReport) -> Outcome<()> {
    if let Some(parent) = dir.parent() {
        durable::create_dirs(parent, 0o700).map_err(|error| not_made(parent, error))?;
    }
    let opening = Opening { dir: dir.to_owned(), password: password.clone() };
    match Repository::init(&opening) {
        Ok(()) => report.made.push(pathtext::show(dir)),
        Err(RepositoryError::Exists { .. }) => report.kept.push(pathtext::show(dir)),
        Err(error) => return Err(model::port::Failure::from(error).into()),
    }
    Ok(())
}

/// What was made.
#[derive(Debug, Serialize)]
struct InitReport {
    config: String,
    made: Vec<String>,
    kept: Vec<String>,
    applications: Vec<String>,
    /// Whether a person has confirmed that the key is kept elsewhere.
    confirmed: bool,
}

impl InitReport {
    fn new(config: &Path) -> Self {
        let config = pathtext::show(config);
        Self { config, made: vec![], kept: vec![], applications: vec![], confirmed: false }
    }

    fn hints(&self) -> Vec<String> {
        let mut hints = Vec::new();
        if self.applications.is_empty() {
            hints.push(format!("edit {}, then run `stillpoint init` again", self.config));
        }
        if !self.confirmed {
            hints.push(
                "stillpoint key show      print the recovery sheet; keep it away from this machine"
                    .to_owned(),
            );
            hints.push("stillpoint key confirm   once you have it".to_owned());
        }
        if !self.applications.is_empty() {
            hints.push("stillpoint plan          what a backup would do".to_owned());
            hints.push("stillpoint backup        do it".to_owned());
        }
        hints
    }
}

impl Report for InitReport {
    fn text(&self) -> String {
        let made = self.made.iter().map(|path| format!("made  {path}"));
        let kept = self.kept.iter().map(|path| format!("kept  {path}"));
        let mut lines: Vec<String> = made.chain(kept).collect();
        lines.push("next:".to_owned());
        lines.extend(self.hints().into_iter().map(|hint| format!("  {hint}")));
        lines.join("\n")
    }
}
