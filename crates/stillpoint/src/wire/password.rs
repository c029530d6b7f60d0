//! The key of the repositories, and whether a person has confirmed that it is kept elsewhere too.
//!
//! Crash story: reads only; [`vault::repository::Password`] tells how the files are written.

use std::io;

use model::{inventory::Inventory, pathtext};
use vault::repository::{Confirmation, Password, PasswordError};

use crate::exit::{Fault, Outcome};

/// Reads the password file that the inventory names.
///
/// # Errors
/// With the status for configuration: if it is missing, unreadable, or others can read it.
pub fn read(inventory: &Inventory) -> Outcome<Password> {
    Password::read(&inventory.password_file).map_err(|error| refused(error, inventory))
}

fn refused(error: PasswordError, inventory: &Inventory) -> Fault {
    let file = pathtext::show(&inventory.password_file);
    let remedy = match &error {
        PasswordError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            "`stillpoint init` makes one; if there are backups already, put the file they were made with back"
                .to_owned()
        }
        PasswordError::Read { .. } => "run it as the user who owns the file".to_owned(),
        PasswordError::Shape => format!("write the key into {file}, on one line"),
        PasswordError::Mistyped => "compare it with the recovery sheet".to_owned(),
        PasswordError::Write { .. } | PasswordError::Exposed { .. } | PasswordError::Foreign { .. } => {
            String::new()
        }
    };
    let fault = Fault::usage(error.to_string(), remedy);
    match error {
        PasswordError::Read { source, .. } | PasswordError::Write { source, .. } => fault.because(source),
        _ => fault,
    }
}

/// Whether this very password was confirmed by a person.
///
/// # Errors
/// If the note is there and cannot be read.
pub fn is_confirmed(inventory: &Inventory, password: &Password) -> Outcome<bool> {
    let note = Confirmation::path_for(&inventory.password_file);
    let read = Confirmation::read(&note, password).map_err(|error| refused(error, inventory))?;
    Ok(read.is_some())
}
