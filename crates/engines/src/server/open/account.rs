//! An account of ours in a copy, for as long as logs are replayed into it: with `skip-grant-tables` a server refuses
//! `CREATE USER` and `CREATE EVENT` (seen on MariaDB 10.11: errors 1290 and 1577), and a log may hold both.
//!
//! Crash story: the account is made by the starting server from a file in its journalled directory, and removed before the
//! server is stopped. A copy whose server was killed meanwhile is restored again, or opened again, which makes it anew.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    time::Duration,
};

use model::{port::Failure, server::ServerAccess};

use super::{super::connect::Connection, copy::cannot};

/// Its name.
pub(super) const NAME: &str = "stillpoint-replay";
/// How long removing it may take.
const WITHIN: Duration = Duration::from_secs(60);

/// Where the account comes from.
pub(super) struct Account {
    /// What the server runs when it starts.
    pub(super) init_file: PathBuf,
    /// Its password.
    pub(super) password_file: PathBuf,
}

impl Account {
    /// Writes both files to a directory that only we and the server can enter.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn make(dir: &Path, owner: (u32, u32)) -> Result<Self, Failure> {
        let account = Self { init_file: dir.join("account.sql"), password_file: dir.join("password") };
        let password = password().map_err(|e| cannot("written", &account.password_file, e))?;
        let sql = format!(
            "DROP USER IF EXISTS '{NAME}'@'localhost';\nCREATE USER '{NAME}'@'localhost' IDENTIFIED BY '{password}';\n\
             GRANT ALL PRIVILEGES ON *.* TO '{NAME}'@'localhost' WITH GRANT OPTION;\n"
        );
        write(&account.password_file, &password, None)
            .map_err(|e| cannot("written", &account.password_file, e))?;
        write(&account.init_file, &sql, Some(owner)).map_err(|e| cannot("written", &account.init_file, e))?;
        Ok(account)
    }
}

/// Removes the account from the copy.
///
/// # Errors
/// If the server does not do it.
pub(super) fn remove(access: &ServerAccess) -> Result<(), Failure> {
    let mut open = Connection::open(access, WITHIN)?;
    Ok(open.run(&format!("DROP USER '{NAME}'@'localhost'"), WITHIN)?)
}

fn password() -> io::Result<String> {
    let mut bytes = [0; 20];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    // Whatever rules of passwords the copy has: letters of both kinds, digits, a sign.
    Ok(bytes.iter().fold("Aa1-".to_owned(), |text, byte| format!("{text}{byte:02x}")))
}

fn write(path: &Path, text: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    match owner {
        Some((user, group)) if rustix::process::geteuid().is_root() => fchown(&file, Some(user), Some(group)),
        _ => Ok(()),
    }
}
