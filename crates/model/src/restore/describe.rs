//! A plan and a report in lines for people.
//!
//! Crash story: pure functions, no effects.

use std::path::Path;

use super::{Cloned, Exchange, Part, RestorePlan, RestoreReport, ServerPart, Target, copies, pathtext};

impl RestorePlan {
    /// What the restore will do, line by line.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let verdict = self.verdict.map_or("made by another program", |v| v.as_str());
        let mut lines = vec![format!(
            "restore {} as of {} from backup {} ({verdict}): {} files, {}",
            self.application,
            self.time,
            self.backup.short(),
            self.files,
            self.bytes
        )];
        match &self.target {
            Target::Directory { dir } => lines.push(format!(
                "to {}: everything under its original path; the directory appears when it is complete",
                pathtext::show(dir)
            )),
            Target::InPlace { keep_old } => {
                for part in &self.parts {
                    lines.extend(describe_part(part));
                }
                for drop in &self.drops {
                    lines.push(format!("{}: removed if it is there", pathtext::show(&drop.path)));
                }
                if self.hooks {
                    lines.push(
                        "the stop hook is run before anything is replaced, the start hook after".into(),
                    );
                }
                lines.push(if *keep_old {
                    "what is there now is kept beside it as .stillpoint-old-…".into()
                } else {
                    "what is there now is removed after everything is in place".into()
                });
            }
        }
        lines.extend(copies::describe(&self.copies, self.trusts_copies));
        if self.read_back {
            lines.push(
                "every byte is read back from the disk and compared before it is put in its place".into(),
            );
        }
        lines.extend(self.servers.iter().map(ServerPart::describe));
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines
    }
}

fn describe_part(part: &Part) -> Vec<String> {
    let place = pathtext::show(&part.to);
    let how = match &part.exchange {
        Exchange::Whole => "written beside, verified, then renamed into place".to_owned(),
        Exchange::Children(why) => format!("{why}, so everything directly in it is exchanged name by name"),
    };
    let mut lines = vec![format!("{place}: {} files, {}; {how}", part.files, part.bytes)];
    let census = &part.replaces;
    if census.newer > 0 {
        lines.push(format!(
            "{place}: {} of {} files there now are newer than the backup and will be gone",
            census.newer, census.files
        ));
    }
    if census.unlisted > 0 {
        let some: Vec<String> = census.examples.iter().map(|p| pathtext::show(p)).collect();
        lines.push(format!(
            "{place}: {} names there now are not in the backup and will be gone, such as {}",
            census.unlisted,
            some.join(", ")
        ));
    }
    lines
}

impl RestoreReport {
    /// What the restore did, line by line.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let verdict = self.verdict.map_or("made by another program", |v| v.as_str());
        // What is loaded into a server is told with it.
        let files = match self.files {
            0 => String::new(),
            files => format!(": {files} files, {}", self.bytes),
        };
        let mut lines = vec![format!(
            "{} {} as of {} from backup {} ({verdict}){files} in {:.1} s",
            if self.is_complete() { "restored" } else { "restored in part" },
            self.application,
            self.time,
            self.backup.short(),
            self.duration_s
        )];
        lines.extend(self.cloned.as_ref().map(Cloned::describe));
        lines.extend(self.places.iter().map(|p| format!("now at {}", pathtext::show(p))));
        let is_logs = |path: &Path| path.to_string_lossy().contains("/.stillpoint-logs-");
        lines.extend(self.kept.iter().map(|path| match is_logs(path) {
            true => format!("the binary logs that were there are kept at {}", pathtext::show(path)),
            false => format!("what was there is kept at {}", pathtext::show(path)),
        }));
        lines.extend(self.problems.iter().map(ToString::to_string));
        lines.extend(self.next.iter().cloned());
        lines
    }
}
