//! The keys that stand under `[defaults]` and, for one application, under `[[application]]`.
//!
//! Crash story: pure functions, no effects.

use std::time::Duration;

use crate::{
    inventory::{
        Keep, Settings,
        raw::{At, Section},
        values::{bytes, duration},
    },
    pace::IoClass,
    schedule,
    size::Bytes,
    verdict::Verdict,
};

/// The settings of a section; what it does not name is as in `inherited`.
pub(super) fn settings(section: &Section<'_, '_>, inherited: &Settings) -> Settings {
    let mut found = inherited.clone();
    if let Some(text) = section.text("schedule") {
        match schedule::check(text.value) {
            Ok(()) => text.value.clone_into(&mut found.schedule),
            Err(error) => section.report(
                text.line,
                error.to_string(),
                "write hourly, nightly, weekly, or minute hour day month weekday as in \"15 3 * * *\"",
            ),
        }
    }
    if let Some(budget) = length(section, "stall_budget", "\"2s\"") {
        found.stall_budget = budget;
    }
    if let Some(text) = section.text("require") {
        match text.value.parse::<Verdict>() {
            Ok(verdict) => found.require = verdict,
            Err(error) => {
                let what = format!("require = {:?} is no verdict", text.value);
                section.report(text.line, what, format!("write {}", error.rule));
            }
        }
    }
    if let Some(reach) = length(section, "point_in_time", "\"30d\"") {
        found.point_in_time = Some(reach);
    }
    if let Some(only) = section.flag("changed_extents_only") {
        found.changed_extents_only = only;
    }
    if let Some(every) = length(section, "read_all_every", "\"7d\"") {
        found.read_all_every = every;
    }
    if let Some(window) = length(section, "local_window", "\"48h\"") {
        found.local_window = window;
    }
    if let Some(limit) = section.text("read_limit").and_then(|text| read_limit(section, text)) {
        found.pace.read_limit = Some(limit);
    }
    if let Some(text) = section.text("io_class") {
        match text.value {
            "idle" => found.pace.io_class = IoClass::Idle,
            "inherited" => found.pace.io_class = IoClass::Inherited,
            other => {
                let what = format!("io_class = {other:?} is no class");
                section.report(text.line, what, "write \"idle\" or \"inherited\"");
            }
        }
    }
    if let Some(rules) = section.section("keep", "keep") {
        found.keep = keep(rules).unwrap_or(found.keep);
    }
    found
}

/// A `keep` table stands for itself: what it does not name is 0, not inherited.
fn keep(section: Section<'_, '_>) -> Option<Keep> {
    let count = |key| section.count(key).unwrap_or(0);
    let keep = Keep {
        last: count("last"),
        hourly: count("hourly"),
        daily: count("daily"),
        weekly: count("weekly"),
        monthly: count("monthly"),
        yearly: count("yearly"),
    };
    let line = section.line();
    let nothing = keep == Keep { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0 };
    let page = section.page();
    let sound = section.finish();
    if sound && nothing {
        page.report(line, "keep keeps nothing", "write for example keep = { daily = 30, weekly = 8 }");
    }
    (sound && !nothing).then_some(keep)
}

/// A number of bytes a second; one that would take days for a gigabyte is a mistake.
fn read_limit(section: &Section<'_, '_>, found: At<&str>) -> Option<Bytes> {
    const LEAST: Bytes = Bytes(64 << 10);
    let limit = found.value.strip_suffix("/s").and_then(bytes).filter(|limit| *limit >= LEAST);
    if limit.is_none() {
        let what = format!("read_limit = {:?} is no number of bytes a second", found.value);
        section.report(found.line, what, "write 64KiB/s or more, such as \"50MiB/s\"");
    }
    limit
}

/// The length of time under `key`, if it is there and is one.
fn length(section: &Section<'_, '_>, key: &'static str, example: &str) -> Option<Duration> {
    section.text(key).and_then(|found| length_of(section, key, found, example))
}

/// The length of time, greater than nothing, that a text is.
pub(super) fn length_of(
    section: &Section<'_, '_>,
    key: &str,
    found: At<&str>,
    example: &str,
) -> Option<Duration> {
    let At { value, line } = found;
    let length = duration(value).filter(|length| !length.is_zero());
    if length.is_none() {
        let what = format!("{key} = {value:?} is no length of time");
        section.report(line, what, format!("write a number with ms, s, m, h, d or w, such as {example}"));
    }
    length
}
