//! Where the fenced server sees the copy, and the command that shows it that way.
//!
//! Crash story: mounts are made in a mount namespace of the server's own and go with it. Nothing is made outside of
//! it but empty directories in the server's own, journalled one.

use std::path::{Path, PathBuf};

use model::{
    pathtext,
    port::{Failure, FailureKind},
};
use os::command::Command;

use super::{
    copy::{Placement, ServerCopy, cannot, leads_to},
    links::tablespaces,
    program::Program,
};

/// Binds pairs of directories, then becomes the server. In a namespace of its own nobody else sees the mounts.
const BIND: &str = "while [ \"$1\" != -- ]; do mount --bind \"$1\" \"$2\" || exit 97; shift 2; done; \
                    shift; exec \"$@\"";

/// How the server is shown the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    /// Where it sees each original directory.
    pub placement: Placement,
    /// What is bound over what, in order.
    binds: Vec<(PathBuf, PathBuf)>,
}

impl View {
    /// As root: each directory of the copy over the original one, or in `run` where that does not exist here. Else
    /// where the copy lies, if that is safe.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] if it is not safe; says why and what to do.
    pub fn of(copy: &ServerCopy, run: &Path) -> Result<Self, Failure> {
        // The redo log names these, and recovery opens them by that name.
        let external = tablespaces(copy)?;
        if !rustix::process::geteuid().is_root() {
            return match external.first() {
                None => Ok(Self { placement: copy.placement().clone(), binds: Vec::new() }),
                Some((_, real)) => Err(needs_root(real)),
            };
        }
        let mut view = Self { placement: Placement::default(), binds: Vec::new() };
        let mut over = Vec::new();
        for (number, root) in copy.roots().into_iter().enumerate() {
            let from = copy.below(&root.path);
            // All are bound here first: the copy may lie inside an original directory, and be hidden by it.
            let mut to = mount_point(&run.join(format!("root-{number}")), from.is_dir())?;
            view.binds.push((from.clone(), to.clone()));
            if let Ok(real) = root.path.canonicalize()
                && real == root.path
                && real.is_dir() == from.is_dir()
            {
                over.push((to, real.clone()));
                to = real;
            }
            view.placement.0.push((root.path.clone(), to));
        }
        view.binds.extend(over);
        // Also through a link, the name must lead to what is bound there.
        let is_hidden = |(named, real): &&(PathBuf, PathBuf)| {
            view.placement.at(real).as_ref() == Some(real) && leads_to(named) == *real
        };
        match external.iter().find(|tablespace| !is_hidden(tablespace)) {
            Some((named, _)) => Err(no_mount_point(named)),
            None => Ok(view),
        }
    }

    /// A new data directory, which as root is shown to the server in `run`, since only we can enter those above it.
    ///
    /// # Errors
    /// If no mount point can be made.
    pub fn of_new(data: &Path, run: &Path) -> Result<Self, Failure> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { placement: Placement::default(), binds: Vec::new() });
        }
        let to = mount_point(&run.join("root-0"), true)?;
        Ok(Self {
            placement: Placement(vec![(data.to_owned(), to.clone())]),
            binds: vec![(data.to_owned(), to)],
        })
    }

    /// Where the server sees this directory.
    pub fn data(&self, data: &Path) -> PathBuf {
        self.placement.at(data).unwrap_or_else(|| data.to_owned())
    }

    /// The command that runs the server with these arguments and this view.
    pub fn command(&self, program: &Program, arguments: &[String]) -> Command {
        if self.binds.is_empty() {
            return Command::tool(&program.path).args(arguments);
        }
        let alone = Command::tool("unshare").args(["--mount", "--propagation", "private", "--"]);
        let mut command = alone.args(["/bin/sh", "-c", BIND, "sh"]);
        for (from, to) in &self.binds {
            command = command.arg(from).arg(to);
        }
        command.arg("--").arg(&program.path).args(arguments)
    }
}

fn mount_point(path: &Path, is_dir: bool) -> Result<PathBuf, Failure> {
    let made = if is_dir { std::fs::create_dir(path) } else { std::fs::write(path, "") };
    made.map_err(|e| cannot("made", path, e))?;
    Ok(path.to_owned())
}

fn needs_root(path: &Path) -> Failure {
    let what = format!(
        "the copy has a tablespace outside of the data directory, {}, which crash recovery opens by that name: it \
         would change the original",
        pathtext::show(path)
    );
    Failure::new(FailureKind::Refused, what, "run it as root, which can hide the original from the copy")
}

fn no_mount_point(path: &Path) -> Failure {
    let what = format!(
        "the copy has a tablespace outside of the data directory, {}, which crash recovery opens by that name, but \
         its directory does not exist here",
        pathtext::show(path)
    );
    let remedy = "make that directory, empty, so that the copy's can be shown to the server in its place";
    Failure::new(FailureKind::Refused, what, remedy)
}
