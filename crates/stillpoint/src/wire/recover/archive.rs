//! The log archive of an application as it lies in `logs/`.
//!
//! Crash story: reads only, while the archive goes on.

use std::io::{self, Read};

use engines::server::binlog::whole;
use model::{
    id::SourceId,
    inventory::{Application, Database},
    logs::{LogKind, SegmentHead, WholePart},
    port::{Failure, FailureKind},
    server::Flavor,
};
use vault::logs::{Catalogue, SourceLog, Spool, Tail};

use crate::wire::run::Run;

/// What an application's archive holds.
pub struct Archive {
    /// All of it.
    pub catalogue: Catalogue,
}

impl Archive {
    /// Reads what is there.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn read(run: &Run<'_>, application: &Application) -> Result<Self, Failure> {
        let spool = Spool::open(&run.inventory.place(application).join("logs"));
        let flavor = flavor(application);
        let catalogue = spool.catalogue(&|kind| Box::new(Reader { kind, flavor }) as Box<dyn Tail>);
        let catalogue = catalogue.map_err(|error| {
            Failure::new(FailureKind::Other, "the log archive cannot be read", "").because(error)
        })?;
        Ok(Self { catalogue })
    }

    /// The logs of servers.
    pub fn binlogs(&self) -> impl Iterator<Item = &SourceLog> {
        self.catalogue.sources.iter().filter(|log| log.kind == LogKind::Binlog)
    }

    /// Segments that are not here although no backup is known to hold them.
    pub fn missing<'a>(&self, log: &'a SourceLog) -> impl Iterator<Item = String> + 'a {
        let all =
            log.epochs.iter().flat_map(|epoch| epoch.segments.iter().map(move |segment| (epoch, segment)));
        all.filter_map(|(epoch, segment)| {
            let (id, number) = (&epoch.record.epoch, segment.number);
            let known = epoch.damaged.iter().any(|(damaged, _)| *damaged == number);
            let gone = log.segment_path(id, number).is_none() && log.stored_in(id, number).is_none();
            (gone && !known).then(|| format!("segment {number} of epoch {id} is missing"))
        })
    }
}

/// All databases of an application.
pub fn databases(application: &Application) -> impl Iterator<Item = SourceId> {
    application.databases.iter().map(|database| match database {
        Database::Sqlite { path } => SourceId::new("sqlite", model::pathtext::show(path)),
        Database::Server(server) => server.id(),
    })
}

/// Databases of an application that are files.
pub fn files(application: &Application) -> impl Iterator<Item = SourceId> {
    application.databases.iter().filter_map(|database| match database {
        Database::Sqlite { path } => Some(SourceId::new("sqlite", model::pathtext::show(path))),
        Database::Server(_) => None,
    })
}

fn flavor(application: &Application) -> Flavor {
    let flavors = application.databases.iter().filter_map(|database| match database {
        Database::Server(server) => Some(server.access.flavor),
        Database::Sqlite { .. } => None,
    });
    flavors.last().unwrap_or(Flavor::MariaDb)
}

/// Describes a segment that has no sidecar yet.
struct Reader {
    kind: LogKind,
    flavor: Flavor,
}

impl Tail for Reader {
    fn whole(&self, head: &SegmentHead, segment: &mut dyn Read) -> io::Result<WholePart> {
        match self.kind {
            LogKind::Binlog => whole(self.flavor, head, segment),
            // An open segment of another kind counts once it is closed.
            LogKind::SqliteWal => Ok(WholePart {
                bytes: 0,
                to: head.from.clone(),
                transactions: 0,
                commits: None,
                gtid_state: None,
            }),
        }
    }
}
