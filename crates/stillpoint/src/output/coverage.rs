//! Coverage for people, and as a picture.
//!
//! Crash story: pure functions, no effects.

use jiff::{SignedDuration, Timestamp};
use model::coverage::{Coverage, Hole, Interval, Lag, SourceCoverage};
use serde::Serialize;

use super::{Report, backups::utc};

/// `coverage`.
#[derive(Debug, Serialize)]
pub struct Coverages {
    /// One for each application.
    pub applications: Vec<Coverage>,
}

impl Report for Coverages {
    fn text(&self) -> String {
        self.applications.iter().map(text).collect::<Vec<_>>().join("\n\n")
    }
}

fn text(one: &Coverage) -> String {
    let mut lines = vec![one.application.to_string()];
    if one.databases.is_empty() {
        lines.push("no log archive: only the instants of its backups can be restored".to_owned());
    } else {
        lines.push("the whole application".to_owned());
        lines.extend(intervals(&one.whole, &one.holes));
    }
    for database in &one.databases {
        lines.push(format!("{}{}", database.source, database.lag.as_ref().map(lag).unwrap_or_default()));
        lines.extend(intervals(&database.intervals, &database.holes));
    }
    if !one.databases.is_empty() {
        let none = |source| format!("{source}: no log archive, so only as of a backup");
        lines.extend(one.without_archive.iter().map(none));
    }
    if let (Some(first), Some(last)) = (one.backups.first(), one.backups.last()) {
        let many = if one.backups.len() == 1 { "" } else { "s" };
        lines.push(format!(
            "{} backup{many} from {} to {}",
            one.backups.len(),
            utc(first.time),
            utc(last.time)
        ));
    } else {
        lines.push("no backups yet".to_owned());
    }
    lines.extend(one.notes.iter().map(|what| format!("note: {what}")));
    lines.extend(one.problems.iter().map(|what| format!("PROBLEM: {what}")));
    lines.join("\n")
}

fn intervals(intervals: &[Interval], holes: &[Hole]) -> Vec<String> {
    let mut lines: Vec<(Timestamp, String)> =
        intervals.iter().map(|one| (one.from, format!("  {} to {}", utc(one.from), utc(one.to)))).collect();
    let hole =
        |hole: &Hole| (hole.from, format!("  HOLE {} to {}: {}", utc(hole.from), utc(hole.to), hole.detail));
    lines.extend(holes.iter().map(hole));
    lines.sort_by_key(|(from, _)| *from);
    if lines.is_empty() {
        return vec!["  no moment".to_owned()];
    }
    lines.into_iter().map(|(_, line)| line).collect()
}

/// How far an archive is, in a few words.
#[must_use]
pub fn lag(lag: &Lag) -> String {
    let behind = lag.behind_s.map(|behind| format!(", complete {behind:.1} s ago")).unwrap_or_default();
    format!(": lag {:.1} s, at most {:.1} s since its start{behind}", lag.lag_s, lag.max_lag_s)
}

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 220.0;
const ROW: f64 = 40.0;
const BAR: f64 = 18.0;

/// A lane for the whole and one for each database: what can be restored in green, holes in red with their cause, backups as
/// ticks.
#[must_use]
pub fn picture(one: &Coverage) -> String {
    let scale = Scale::of(one);
    let rows = 1 + one.databases.len();
    let height = 60.0 + ROW * rows as f64 + 30.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"24\" font-size=\"16\">{}</text>\n",
        escaped(&format!("{}: what can be restored", one.application))
    );
    out.push_str(&lane(&scale, 0, "the whole application", &one.whole, &one.holes));
    for (number, database) in one.databases.iter().enumerate() {
        let SourceCoverage { source, intervals, holes, .. } = database;
        out.push_str(&lane(&scale, number + 1, source.as_str(), intervals, holes));
    }
    let (top, bottom) = (44.0, 50.0 + ROW * rows as f64);
    for tick in &one.backups {
        let x = scale.x(tick.time);
        out.push_str(&format!(
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"#245\" stroke-width=\"1\">\
             <title>{}</title></line>\n",
            escaped(&format!("backup {} of {}", tick.backup.short(), utc(tick.time)))
        ));
    }
    let y = bottom + 18.0;
    out.push_str(&format!(
        "<text x=\"{LEFT}\" y=\"{y}\">{}</text>\n<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>\n</svg>\n",
        utc(scale.from),
        WIDTH - 10.0,
        utc(scale.to)
    ));
    out
}

fn lane(scale: &Scale, row: usize, name: &str, intervals: &[Interval], holes: &[Hole]) -> String {
    let y = 50.0 + ROW * row as f64;
    let shown: String = name.chars().rev().take(34).collect::<Vec<_>>().into_iter().rev().collect();
    let mut out = format!(
        "<text x=\"10\" y=\"{:.1}\">{}<title>{}</title></text>\n",
        y + 14.0,
        escaped(&shown),
        escaped(name)
    );
    let mut bar = |from: Timestamp, to: Timestamp, color: &str, title: &str| {
        let (x, end) = (scale.x(from), scale.x(to));
        out.push_str(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{color}\"><title>{}</title></rect>\n",
            (end - x).max(1.0),
            escaped(title)
        ));
    };
    for one in intervals {
        bar(one.from, one.to, "#4a4", &format!("{} to {}", utc(one.from), utc(one.to)));
    }
    for hole in holes {
        bar(hole.from, hole.to, "#c33", &format!("{} to {}: {}", utc(hole.from), utc(hole.to), hole.detail));
    }
    for hole in holes {
        let cause = hole.cause.map_or_else(|| hole.detail.clone(), |cause| cause.to_string());
        out.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"9\" fill=\"#c33\">{}</text>\n",
            scale.x(hole.from),
            y + BAR + 10.0,
            escaped(&cause)
        ));
    }
    out
}

struct Scale {
    from: Timestamp,
    to: Timestamp,
}

impl Scale {
    fn of(one: &Coverage) -> Self {
        let lanes = one.databases.iter().flat_map(|database| &database.intervals).map(|i| i.from);
        let first = lanes.chain(one.backups.iter().map(|tick| tick.time)).min();
        let first = one.wanted_from.into_iter().chain(first).max().or(first);
        let hour = one.now.checked_sub(SignedDuration::from_hours(1)).unwrap_or(one.now);
        let from = first.unwrap_or(hour);
        Self { from: from.min(one.now), to: one.now }
    }

    fn x(&self, time: Timestamp) -> f64 {
        let all = self.to.duration_since(self.from).as_secs_f64().max(1.0);
        let part = (time.min(self.to).duration_since(self.from).as_secs_f64() / all).clamp(0.0, 1.0);
        LEFT + part * (WIDTH - LEFT - 10.0)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use model::{
        coverage::{Coverage, Hole, Interval, SourceCoverage, Tick},
        id::{AppName, BackupId, SourceId},
        logs::HoleCause,
    };

    use super::{Coverages, picture};
    use crate::output::Report;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn coverage() -> Coverage {
        let database = SourceCoverage {
            source: SourceId::new("mariadb", "/run/<x>.sock"),
            intervals: vec![Interval { from: at(0), to: at(100) }, Interval { from: at(200), to: at(300) }],
            holes: vec![Hole {
                from: at(100),
                to: at(200),
                cause: Some(HoleCause::Purged),
                detail: "purged".into(),
            }],
            lag: None,
            problems: Vec::new(),
        };
        let tick = Tick { backup: BackupId::new("a".repeat(64)).unwrap(), time: at(0), verdict: None };
        let wanted = Some(jiff::SignedDuration::from_hours(1));
        Coverage::new(AppName::new("a").unwrap(), at(300), wanted, vec![database], Vec::new(), vec![tick])
    }

    #[test]
    fn text_and_picture_show_holes_with_their_cause() {
        let text = Coverages { applications: vec![coverage()] }.text();
        assert!(text.contains("HOLE") && text.contains("purged") && text.contains("PROBLEM"), "{text}");
        let picture = picture(&coverage());
        assert!(
            picture.contains("&lt;x&gt;") && picture.contains("#c33") && picture.contains("removed its logs")
        );
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    }
}
