//! The demo's world: one temporary directory with the guestbook, an inventory for it, a key and a repository.
//!
//! Crash story: dropping it removes all of it; so does nobody else after a `kill -9`, and nothing but disk
//! space is lost then.

use std::{
    fs::{self, DirBuilder},
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use model::{inventory::Inventory, pathtext, port::Failure};
use os::durable;
use tempfile::TempDir;
use vault::repository::{Opening, Password, Repository};

use super::guestbook::Guestbook;
use crate::{
    exit::{Fault, Outcome},
    wire::inventory,
};

/// How long writers may go on after the end of the application that started them.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// The demo's world.
pub struct World {
    dir: TempDir,
    /// The guestbook.
    pub guestbook: Guestbook,
}

impl World {
    /// Makes it below `parent`, or where temporary files go.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(parent: Option<&Path>) -> Outcome<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let failed = |error: io::Error| {
            let what = format!("the demo cannot work in {}", pathtext::show(&parent));
            Fault::io(what, "name another directory with --dir", error)
        };
        let parent = fs::canonicalize(&parent).map_err(failed)?;
        let dir = tempfile::Builder::new().prefix("stillpoint-demo-").tempdir_in(&parent).map_err(failed)?;
        let guestbook = Guestbook::at(dir.path().join("guestbook"));
        guestbook.create().map_err(|error| Fault::usage(error.to_string(), "").because(error))?;
        for name in ["restored", "naive"] {
            DirBuilder::new().mode(0o700).create(dir.path().join(name)).map_err(failed)?;
        }
        Ok(Self { dir, guestbook })
    }

    /// Writes inventory and key and makes the repository, for an application with this process id.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn init(&self, pid: u32) -> Outcome<(Inventory, Password)> {
        let failed = |error: io::Error| Fault::io("the demo's inventory cannot be written", "", error);
        durable::write_new(&self.path("guestbook.pid"), format!("{pid}\n").as_bytes(), 0o600)
            .map_err(failed)?;
        let config = self.path("stillpoint.toml");
        durable::write_new(&config, self.inventory_text().as_bytes(), 0o600).map_err(failed)?;
        let inventory = inventory::load(&config)?;
        let password = Password::generate();
        password
            .write_new(&inventory.password_file)
            .map_err(|error| Fault::usage("the demo's key cannot be written", "").because(error))?;
        for application in &inventory.applications {
            let place = inventory.place(application);
            durable::create_dirs(&place, 0o700).map_err(failed)?;
            let opening = Opening { dir: place.join("repository"), password: password.clone() };
            Repository::init(&opening).map_err(Failure::from)?;
        }
        Ok((inventory, password))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn inventory_text(&self) -> String {
        let quoted = |path: PathBuf| toml::Value::String(path.to_string_lossy().into_owned()).to_string();
        format!(
            "server = \"demo\"\npartition = {}\npassword_file = {}\n\n[defaults]\nkeep = {{ last = 100000 }}\n\n\
             [[application]]\nname = \"guestbook\"\nrelpath = \"demo/guestbook\"\n\n\
             [[application.directory]]\npath = {}\n\n\
             [[application.database]]\nengine = \"sqlite\"\npath = {}\n\n\
             [application.process]\npid_file = {}\n",
            quoted(self.path("partition")),
            quoted(self.path("password")),
            quoted(self.guestbook.root().to_owned()),
            quoted(self.guestbook.database()),
            quoted(self.path("guestbook.pid")),
        )
    }

    /// Where this cut is restored.
    #[must_use]
    pub fn restored(&self, cut: u32) -> PathBuf {
        self.dir.path().join("restored").join(cut.to_string())
    }

    /// The guestbook in this restored cut, under its original absolute path.
    #[must_use]
    pub fn restored_guestbook(&self, cut: u32) -> Guestbook {
        // The guestbook's path is canonical, so it begins with the root.
        let below = self.guestbook.root().strip_prefix("/").unwrap_or(self.guestbook.root());
        Guestbook::at(self.restored(cut).join(below))
    }

    /// Where the naive copy beside this cut goes.
    #[must_use]
    pub fn naive_guestbook(&self, cut: u32) -> Guestbook {
        Guestbook::at(self.dir.path().join("naive").join(cut.to_string()))
    }

    /// Removes what belongs to one round.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn clear(&self, cut: u32) -> Outcome<()> {
        let naive = self.naive_guestbook(cut);
        for dir in [self.restored(cut).as_path(), naive.root()] {
            fs::remove_dir_all(dir).map_err(|error| {
                Fault::io(format!("{} cannot be removed", pathtext::show(dir)), "", error)
            })?;
        }
        Ok(())
    }

    /// Removes everything.
    ///
    /// # Errors
    /// If something is left.
    pub fn remove(self) -> Outcome<()> {
        let path = self.dir.keep();
        let begun = Instant::now();
        loop {
            match fs::remove_dir_all(&path) {
                Ok(()) => return Ok(()),
                // Writers see the end of their pipe a moment after the application was ended, and may still make
                // a file meanwhile.
                Err(error)
                    if error.kind() == ErrorKind::DirectoryNotEmpty && begun.elapsed() < LAST_WRITES =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => {
                    let what = format!("{} cannot be removed", pathtext::show(&path));
                    return Err(Fault::io(what, "remove it by hand", error));
                }
            }
        }
    }
}
