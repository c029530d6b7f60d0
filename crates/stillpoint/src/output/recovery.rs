//! The statements around a moment, as `restore --before-statement` prints them.
//!
//! Crash story: pure functions, no effects.

use model::{
    id::{AppName, SourceId},
    recovery::Goal,
};
use serde::Serialize;

use super::{Report, backups::utc};
use crate::wire::recover::Statement;

/// What is around a moment.
#[derive(Debug, Serialize)]
pub struct Around {
    /// The application.
    pub application: AppName,
    /// The moment.
    pub goal: Goal,
    /// Each archived database.
    pub databases: Vec<AroundOne>,
}

/// The same of one database.
#[derive(Debug, Serialize)]
pub struct AroundOne {
    /// The database.
    pub source: SourceId,
    /// Its transactions, in log order.
    pub statements: Vec<Statement>,
}

impl Report for Around {
    fn text(&self) -> String {
        let mut lines = Vec::new();
        for database in &self.databases {
            lines.push(database.source.to_string());
            let mut before = true;
            for one in &database.statements {
                if before && !one.is_in {
                    lines.push(format!("--- {} ---", self.goal));
                }
                before = one.is_in;
                let gtid = one.gtid.as_deref().unwrap_or("no id");
                lines.push(format!("{}  {gtid}  {}", utc(one.time), one.position));
                lines.extend(one.what.iter().map(|what| format!("    {what}")));
            }
            if let Some(one) = database.statements.iter().find(|one| !one.is_in) {
                lines.push(format!(
                    "to stop just before a statement, name its place: stillpoint restore {} --at-position {} --to DIR",
                    self.application, one.position
                ));
            }
        }
        lines.join("\n")
    }
}
