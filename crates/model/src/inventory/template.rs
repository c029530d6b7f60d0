//! The commented text that `stillpoint init` writes.
//!
//! Crash story: a pure function, no effects.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

/// What `init` was told or found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateChoices {
    /// This server.
    pub server: String,
    /// Where backups are to be kept.
    pub partition: PathBuf,
    /// The file that holds the repositories' password.
    pub password_file: PathBuf,
    /// Applications to write; without any, one stands there as an example, commented out.
    pub applications: Vec<TemplateApplication>,
}

/// An application that `init` was told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateApplication {
    /// Short name.
    pub name: String,
    /// Identity.
    pub relpath: String,
    /// Its directories.
    pub directories: Vec<PathBuf>,
    /// Its SQLite databases.
    pub databases: Vec<PathBuf>,
    /// Sockets of its MariaDB servers.
    pub servers: Vec<PathBuf>,
    /// Its databases on these servers; empty if it owns them.
    pub server_databases: Vec<String>,
}

const DEFAULTS: &str = r#"
[defaults]                            # each may be set for one application, too
schedule = "nightly"                  # hourly, nightly, weekly, or cron: "15 3 * * *"
stall_budget = "2s"                   # a cut is given up before it holds writers back for longer
require = "consistent"                # a weaker backup is exit status 3; or "per-source", "incomplete"
keep = { last = 7, hourly = 168, daily = 30, weekly = 8 }   # also monthly, yearly
"#;

const EXAMPLE: &str = r#"
# One application: everything that belongs to one instant. Uncomment and adapt.
#
# [[application]]
# name = "hydro"                        # short, for people and history files
# relpath = "demo.example.org/hydro"    # its identity: virtual host, then path
# description = "Hydro demo"
#
# [[application.directory]]
# path = "/srv/hydro/var"
# exclude = ["cache/**", "**/*.tmp"]    # relative to path
#
# [[application.database]]
# engine = "sqlite"
# path = "/srv/hydro/var/production.sqlite3"
#
# [[application.database]]
# engine = "mariadb"                    # or "mysql"
# socket = "/run/mysqld/mysqld.sock"    # or host = "…", port = 3306, tls_ca = "…"
# option_file = "/etc/mysql/debian.cnf" # or user = "…" and password_file = "…"; nothing where the socket suffices
# databases = ["hydro"]                 # on a server that others use too; without it the application owns the server
"#;

const OPTIONS: &str = r#"
# An application can also name, after its sources:
#
# [application.process]                 # whom to hold while pinning, if files change outside the databases
# unit = "hydro.service"                # or pid_file = "/run/hydro.pid"
#
# [application.hooks]                   # for platforms that must be stopped
# stop = { run = "systemctl stop hydro", timeout = "2m" }
# start = { run = "systemctl start hydro", timeout = "5m" }
#
# More applications: another [[application]] here, or one in each file of applications.d beside this file.
"#;

/// The text of a new inventory file.
#[must_use]
pub fn template(choices: &TemplateChoices) -> String {
    let mut text = String::from(
        "# Stillpoint: what is backed up, and how. `stillpoint plan` shows what it comes to.\n\n",
    );
    let mut line = |key: &str, value: &str, comment: &str| {
        let setting = format!("{key} = {value}");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{setting:<37} # {comment}");
    };
    line("server", &quoted(&choices.server), "default: this host's name");
    line("partition", &quoted_path(&choices.partition), "backups are kept below this directory");
    line("password_file", &quoted_path(&choices.password_file), "keep a copy elsewhere: no key, no restore");
    text.push_str(DEFAULTS);
    for application in &choices.applications {
        push_application(&mut text, application);
    }
    if choices.applications.is_empty() {
        text.push_str(EXAMPLE);
    }
    text.push_str(OPTIONS);
    text
}

fn push_application(text: &mut String, application: &TemplateApplication) {
    let _ = writeln!(
        text,
        "\n[[application]]\nname = {}\nrelpath = {}",
        quoted(&application.name),
        quoted(&application.relpath)
    );
    for path in &application.directories {
        let _ = writeln!(text, "\n[[application.directory]]\npath = {}", quoted_path(path));
    }
    for path in &application.databases {
        let path = quoted_path(path);
        let _ = writeln!(text, "\n[[application.database]]\nengine = \"sqlite\"\npath = {path}");
    }
    for socket in &application.servers {
        let socket = quoted_path(socket);
        let _ = writeln!(text, "\n[[application.database]]\nengine = \"mariadb\"\nsocket = {socket}");
        if !application.server_databases.is_empty() {
            let names: Vec<String> = application.server_databases.iter().map(|name| quoted(name)).collect();
            let _ = writeln!(text, "databases = [{}]", names.join(", "));
        }
    }
}

/// A TOML text. A path that is not UTF-8 cannot be written in TOML; what cannot be is shown as U+FFFD.
fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
