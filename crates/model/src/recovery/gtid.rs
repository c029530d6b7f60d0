//! Sets of global transaction ids, as both kinds of servers write them.
//!
//! MariaDB's state names the last sequence number of each domain and server (`0-1-57,1-2-9`,
//! <https://mariadb.com/kb/en/gtid/>); MySQL's names intervals for each server (`uuid:1-5:7-9`).
//!
//! Crash story: plain values, no effects.

use std::collections::BTreeMap;

use crate::server::Gtids;

/// Which transactions lie before a place of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GtidState {
    /// For each domain and server the last sequence number.
    MariaDb(BTreeMap<(u64, u64), u64>),
    /// For each server (and tag) the intervals, both ends included, in order and apart from one another.
    MySql(BTreeMap<String, Vec<(u64, u64)>>),
}

impl GtidState {
    /// Reads what a server wrote; nothing if it is neither kind. An empty text is MariaDB's empty state.
    #[must_use]
    pub fn parse(gtids: &Gtids) -> Option<Self> {
        let parts = gtids.0.split(',').map(str::trim).filter(|part| !part.is_empty());
        if gtids.0.contains(':') { my_sql(parts) } else { maria_db(parts) }
    }

    /// Whether all of `other` lies before this place, too; `None` if they are of different kinds.
    #[must_use]
    pub fn includes(&self, other: &Self) -> Option<bool> {
        match (self, other) {
            (Self::MariaDb(have), Self::MariaDb(want)) => {
                Some(want.iter().all(|(key, seq)| have.get(key).is_some_and(|last| last >= seq)))
            }
            (Self::MySql(have), Self::MySql(want)) => Some(want.iter().all(|(server, parts)| {
                let inside = |part: &(u64, u64)| {
                    have.get(server).is_some_and(|had| had.iter().any(|h| h.0 <= part.0 && part.1 <= h.1))
                };
                parts.iter().all(inside)
            })),
            _ if self.is_empty() => Some(other.is_empty()),
            _ if other.is_empty() => Some(true),
            _ => None,
        }
    }

    /// Adds what came next in the log. What is of another kind is not added.
    pub fn add(&mut self, other: &Self) {
        if self.is_empty() {
            self.clone_from(other);
            return;
        }
        match (self, other) {
            (Self::MariaDb(have), Self::MariaDb(more)) => {
                for (key, seq) in more {
                    have.insert(*key, *seq);
                }
            }
            (Self::MySql(have), Self::MySql(more)) => {
                for (server, parts) in more {
                    let known = have.entry(server.clone()).or_default();
                    known.extend(parts);
                    *known = merged(std::mem::take(known));
                }
            }
            _ => {}
        }
    }

    /// Nothing lies before.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::MariaDb(ids) => ids.is_empty(),
            Self::MySql(ids) => ids.is_empty(),
        }
    }

    /// As the server writes it.
    #[must_use]
    pub fn gtids(&self) -> Gtids {
        let part = |&(a, b): &(u64, u64)| if a == b { format!(":{a}") } else { format!(":{a}-{b}") };
        let parts: Vec<String> = match self {
            Self::MariaDb(ids) => ids.iter().map(|((d, s), seq)| format!("{d}-{s}-{seq}")).collect(),
            Self::MySql(ids) => ids
                .iter()
                .map(|(server, parts)| format!("{server}{}", parts.iter().map(part).collect::<String>()))
                .collect(),
        };
        Gtids(parts.join(","))
    }
}

fn maria_db<'a>(parts: impl Iterator<Item = &'a str>) -> Option<GtidState> {
    let mut ids = BTreeMap::new();
    for part in parts {
        let mut numbers = part.split('-').map(|number| number.parse::<u64>().ok());
        let (domain, server, seq) = (numbers.next()??, numbers.next()??, numbers.next()??);
        if numbers.next().is_some() {
            return None;
        }
        ids.insert((domain, server), seq);
    }
    Some(GtidState::MariaDb(ids))
}

fn my_sql<'a>(parts: impl Iterator<Item = &'a str>) -> Option<GtidState> {
    let mut ids: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for part in parts {
        let mut server = String::new();
        let mut found = Vec::new();
        for word in part.split(':') {
            let (from, to) = word.split_once('-').unwrap_or((word, word));
            match (from.parse::<u64>(), to.parse::<u64>()) {
                (Ok(from), Ok(to)) if !server.is_empty() && from <= to => found.push((from, to)),
                // The server, and behind it, since 8.3, a tag.
                _ if found.is_empty() => {
                    if !server.is_empty() {
                        server.push(':');
                    }
                    server.push_str(&word.to_ascii_lowercase());
                }
                _ => return None,
            }
        }
        if found.is_empty() {
            return None;
        }
        ids.entry(server).or_default().extend(found);
    }
    Some(GtidState::MySql(ids.into_iter().map(|(server, parts)| (server, merged(parts))).collect()))
}

fn merged(mut parts: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    parts.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (from, to) in parts {
        match out.last_mut() {
            Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
            _ => out.push((from, to)),
        }
    }
    out
}
