//! `key show|confirm|change`: the one thing that must also be kept elsewhere.
//!
//! Crash story of `change`: the new key is admitted to every repository first, then the password file is
//! replaced, then the old key is turned away. Stopped anywhere, the password file opens every repository;
//! what is left over is the old key, or a new one that nobody knows; restic's `key remove` turns it away.
//! Keys that somebody added by hand stay.

use std::{
    io::{self, BufRead, IsTerminal},
    path::Path,
};

use jiff::Timestamp;
use model::{inventory::Inventory, pathtext, port::Failure};
use os::durable;
use serde::Serialize;
use vault::repository::{Confirmation, Password, PasswordError};

use super::Context;
use crate::{
    cli::{KeyAction, KeyArgs},
    exit::{Exit, Fault, FaultReport, Outcome},
    output::{Report, stderr},
    wire::{inventory, password, run::Run},
};

/// Does what was asked for with the key.
///
/// # Errors
/// If inventory or key cannot be read; see the actions.
pub fn run(context: &Context, args: &KeyArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let password = password::read(&inventory)?;
    match &args.action {
        KeyAction::Show { sheet } => show(context, &inventory, &password, sheet.as_deref()),
        KeyAction::Confirm => confirm(context, &inventory, &password),
        KeyAction::Change => change(context, &inventory, &password),
    }
}

/// The recovery sheet.
#[derive(Debug, Serialize)]
struct Sheet {
    server: String,
    key: String,
    password_file: String,
    /// Those that it was seen to open.
    repositories: Vec<String>,
    /// Those that it does not open, or that could not be tried.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_opened: Vec<NotOpened>,
}

/// A repository of the inventory that the key is no help with.
#[derive(Debug, Serialize)]
struct NotOpened {
    repository: String,
    why: FaultReport,
}

impl Sheet {
    /// Tries the key on every repository.
    fn tried(context: &Context, inventory: &Inventory, password: &Password) -> Outcome<Self> {
        let run = Run::begin(context, inventory, password)?;
        let (mut repositories, mut not_opened) = (Vec::new(), Vec::new());
        for application in &inventory.applications {
            context.interrupt.check()?;
            let repository = pathtext::show(&inventory.place(application).join("repository"));
            match run.open(application) {
                Ok(_) => repositories.push(repository),
                Err(failure) => {
                    context.output.warn(format!("this key is no help: {}", failure.in_full()));
                    not_opened.push(NotOpened { repository, why: Fault::from(failure).report() });
                }
            }
        }
        run.end()?;
        Ok(Self {
            server: inventory.server.to_string(),
            key: password.reveal().to_owned(),
            password_file: pathtext::show(&inventory.password_file),
            repositories,
            not_opened,
        })
    }

    fn exit(&self) -> Exit {
        self.not_opened.iter().map(|one| one.why.exit).fold(Exit::Done, Exit::worse)
    }

    fn opened(&self) -> String {
        let Some(example) = self.repositories.first() else {
            return "It opens no repository of this inventory.".to_owned();
        };
        let dirs: Vec<String> = self.repositories.iter().map(|dir| format!("    {dir}")).collect();
        format!(
            "It opens these repositories, which are in the restic format:\n\n{}\n\nWithout Stillpoint, on any \
             machine that has a copy of a repository:\n\n    restic -r {example} snapshots\n    restic -r {example} \
             restore latest --target /somewhere\n\nrestic asks for the password: type the key, dashes included.",
            dirs.join("\n"),
        )
    }
}

impl Report for Sheet {
    fn text(&self) -> String {
        let mut text = format!(
            "Recovery sheet of {}\n\nKeep this away from that machine. Whoever has it can read every backup; without it \
             nobody can.\n\n    key  {}\n\n{}",
            self.server,
            self.key,
            self.opened(),
        );
        if !self.not_opened.is_empty() {
            text.push_str("\n\nIt does NOT open these:\n");
        }
        for NotOpened { repository, why } in &self.not_opened {
            text.push_str(&format!("\n    {repository}\n        {}", why.in_full()));
        }
        text
    }
}

fn show(context: &Context, inventory: &Inventory, password: &Password, file: Option<&Path>) -> Outcome {
    let sheet = Sheet::tried(context, inventory, password)?;
    let Some(file) = file else {
        context.output.result(&sheet)?;
        return Ok(sheet.exit());
    };
    durable::write_new(file, (sheet.text() + "\n").as_bytes(), 0o600).map_err(|error| {
        let what = format!("the recovery sheet cannot be written to {}", pathtext::show(file));
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "make its directory first, or name another",
            io::ErrorKind::AlreadyExists => "name a file that does not exist yet",
            _ => "name another place",
        };
        Fault::io(what, remedy, error)
    })?;
    context.output.note(format!("written to {}; print it, then remove it here", pathtext::show(file)));
    Ok(sheet.exit())
}

/// What a person has to type: the last group of a key of ours, all of any other password.
fn to_type(password: &Password) -> &str {
    let key = password.reveal();
    if password.is_machine_made() { key.rsplit('-').next().unwrap_or(key) } else { key }
}

/// As typed from paper: small or capital letters, O for 0, I or L for 1.
fn normal(text: &str, machine_made: bool) -> String {
    let text = text.trim();
    if !machine_made {
        return text.to_owned();
    }
    text.to_uppercase().replace('O', "0").replace(['I', 'L'], "1")
}

fn confirm(context: &Context, inventory: &Inventory, password: &Password) -> Outcome {
    let asked = if password.is_machine_made() {
        "The last group of the key, as it stands on the recovery sheet:"
    } else {
        "The password of the repositories, as you have noted it:"
    };
    if io::stdin().is_terminal() {
        stderr(asked);
    }
    let mut typed = String::new();
    io::stdin()
        .lock()
        .read_line(&mut typed)
        .map_err(|error| Fault::usage("nothing can be read from standard input", "").because(error))?;
    let machine_made = password.is_machine_made();
    if normal(&typed, machine_made) != normal(to_type(password), machine_made) {
        let remedy = "look at the recovery sheet; `stillpoint key show` prints one";
        return Err(Fault::usage("that is not what the key has there; nothing was confirmed", remedy));
    }
    let note = Confirmation::path_for(&inventory.password_file);
    Confirmation::write(&note, password, Timestamp::now()).map_err(|error| not_written(&note, error))?;
    context.output.result(&Confirmed { confirmed: true })?;
    Ok(Exit::Done)
}

fn not_written(path: &Path, error: PasswordError) -> Fault {
    let what = format!("{} cannot be written", pathtext::show(path));
    match error {
        PasswordError::Write { source, .. } => {
            Fault::io(what, "run it as the user who owns the file", source)
        }
        other => Fault::usage(what, "").because(other),
    }
}

#[derive(Debug, Serialize)]
struct Confirmed {
    confirmed: bool,
}

impl Report for Confirmed {
    fn text(&self) -> String {
        "confirmed: the key is kept elsewhere, too".to_owned()
    }
}

/// What `change` did.
#[derive(Debug, Serialize)]
struct Changed {
    changed: Vec<String>,
    /// Repositories that the old key still opens.
    old_key_left: Vec<String>,
}

impl Report for Changed {
    fn text(&self) -> String {
        let mut lines: Vec<String> =
            self.changed.iter().map(|dir| format!("the new key opens {dir}")).collect();
        lines.extend(self.old_key_left.iter().map(|left| format!("the OLD key still opens {left}")));
        lines.push("next:\n  stillpoint key show      the old recovery sheet is worthless now".to_owned());
        lines.push("  stillpoint key confirm   once you have the new one".to_owned());
        lines.join("\n")
    }
}

fn change(context: &Context, inventory: &Inventory, old: &Password) -> Outcome {
    let run = Run::begin(context, inventory, old)?;
    let new = Password::generate();
    let mut old_keys = Vec::new();
    for application in &inventory.applications {
        context.interrupt.check()?;
        let mut repository = run.open(application)?;
        let keys = repository.keys().map_err(Failure::from)?;
        repository.add_key(&new).map_err(Failure::from)?;
        old_keys.push(keys.into_iter().find(|key| key.current).map(|key| key.id));
    }
    new.replace(&inventory.password_file).map_err(|error| not_written(&inventory.password_file, error))?;
    let mut changed = Changed { changed: vec![], old_key_left: vec![] };
    let mut exit = Exit::Done;
    for (application, old_key) in inventory.applications.iter().zip(&old_keys) {
        let mut repository = run.open_with(application, &new)?;
        let dir = pathtext::show(repository.dir());
        let turned_away = old_key.iter().try_for_each(|id| repository.remove_key(id)).map_err(Failure::from);
        match turned_away {
            Ok(()) => changed.changed.push(dir),
            Err(failure) => {
                exit = exit.worse(failure.kind.into());
                changed.old_key_left.push(format!("{dir}: {}", failure.in_full()));
            }
        }
    }
    run.end()?;
    context.output.result(&changed)?;
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use vault::repository::Password;

    use super::{normal, to_type};

    #[test]
    fn the_last_group_is_asked_for_and_typing_it_is_forgiving() {
        let key = Password::generate();
        let group = to_type(&key);
        assert_eq!(group.len(), 5);
        assert!(key.reveal().ends_with(group));
        let typed = group.to_lowercase().replace('0', "o").replace('1', "l");
        assert_eq!(normal(&format!(" {typed}\n"), true), normal(group, true));
        let own = Password::new("correct Horse").unwrap();
        assert_eq!(to_type(&own), "correct Horse");
        assert_ne!(normal("correct horse", false), normal(to_type(&own), false));
    }
}
