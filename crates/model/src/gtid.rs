//! Global transaction ids as sets, so that they can be compared: MariaDB's binlog state and MySQL's intervals.
//!
//! Formats: <https://mariadb.com/kb/en/gtid/>, <https://dev.mysql.com/doc/refman/8.0/en/replication-gtids-concepts.html>.
//!
//! Crash story: plain values, no effects.

use std::{collections::BTreeMap, fmt};

use crate::server::{Flavor, Gtids};

/// One transaction's id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gtid {
    /// MariaDB: `domain-server-sequence`.
    MariaDb {
        /// Domain.
        domain: u32,
        /// The server on which it was first committed.
        server: u32,
        /// Number within the domain.
        sequence: u64,
    },
    /// MySQL: `uuid:number`.
    MySql {
        /// Of the server on which it was first committed.
        uuid: String,
        /// Its number there.
        number: u64,
    },
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MariaDb { domain, server, sequence } => write!(f, "{domain}-{server}-{sequence}"),
            Self::MySql { uuid, number } => write!(f, "{uuid}:{number}"),
        }
    }
}

/// Which transactions a log holds up to a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GtidState {
    /// For each domain the highest number of each server in it, and which server's was last.
    MariaDb(BTreeMap<u32, Domain>),
    /// For each server (and tag, as in `uuid:tag`) the intervals of numbers, both ends included, in order and apart.
    MySql(BTreeMap<String, Vec<(u64, u64)>>),
}

/// One domain of MariaDB's binlog state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Domain {
    /// Highest number by server.
    pub servers: BTreeMap<u32, u64>,
    /// The server whose transaction was last.
    pub last: u32,
}

impl GtidState {
    /// Nothing.
    #[must_use]
    pub fn empty(flavor: Flavor) -> Self {
        match flavor {
            Flavor::MariaDb => Self::MariaDb(BTreeMap::new()),
            Flavor::MySql => Self::MySql(BTreeMap::new()),
        }
    }

    /// Reads what a server of this kind says (`@@gtid_binlog_state`, `@@gtid_executed`). Nothing if it is not understood; GTIDs
    /// with tags, which a log's reader cannot count, are not.
    #[must_use]
    pub fn parse(flavor: Flavor, text: &Gtids) -> Option<Self> {
        match flavor {
            Flavor::MariaDb => maria_db(parts(text)),
            Flavor::MySql => my_sql(parts(text)).filter(|state| !state.has_tags()),
        }
    }

    /// Reads what a server of either kind wrote, tags included; nothing if it is neither. An empty text is MariaDB's empty
    /// state.
    #[must_use]
    pub fn read(text: &Gtids) -> Option<Self> {
        if text.0.contains(':') { my_sql(parts(text)) } else { maria_db(parts(text)) }
    }

    fn has_tags(&self) -> bool {
        matches!(self, Self::MySql(sets) if sets.keys().any(|server| server.contains(':')))
    }

    /// Adds a transaction. One of the other flavour changes nothing.
    pub fn add(&mut self, gtid: &Gtid) {
        match (self, gtid) {
            (Self::MariaDb(domains), Gtid::MariaDb { domain, server, sequence }) => {
                let domain = domains.entry(*domain).or_default();
                domain.servers.insert(*server, *sequence);
                domain.last = *server;
            }
            (Self::MySql(sets), Gtid::MySql { uuid, number }) => match sets.get_mut(uuid) {
                Some(intervals) => insert(intervals, (*number, *number)),
                None => drop(sets.insert(uuid.clone(), vec![(*number, *number)])),
            },
            _ => {}
        }
    }

    /// Adds what came next in the log. What is of another kind is not added, but to an empty state.
    pub fn append(&mut self, next: &Self) {
        if self.is_empty() {
            self.clone_from(next);
            return;
        }
        match (self, next) {
            (Self::MariaDb(domains), Self::MariaDb(next)) => {
                for (id, more) in next {
                    let domain = domains.entry(*id).or_default();
                    domain.servers.extend(&more.servers);
                    domain.last = more.last;
                }
            }
            (Self::MySql(sets), Self::MySql(next)) => {
                for (server, more) in next {
                    let intervals = sets.entry(server.clone()).or_default();
                    more.iter().for_each(|interval| insert(intervals, *interval));
                }
            }
            _ => {}
        }
    }

    /// MariaDB's highest number of a server in a domain.
    #[must_use]
    pub fn sequence(&self, domain: u32, server: u32) -> Option<u64> {
        let Self::MariaDb(domains) = self else { return None };
        domains.get(&domain)?.servers.get(&server).copied()
    }

    /// MariaDB's numbers: domain, server, and the highest of it there.
    pub fn sequences(&self) -> impl Iterator<Item = (u32, u32, u64)> {
        let domains = match self {
            Self::MariaDb(domains) => Some(domains),
            Self::MySql(_) => None,
        };
        let numbers = |(id, domain): (&u32, &Domain)| {
            let id = *id;
            domain.servers.iter().map(|(server, n)| (id, *server, *n)).collect::<Vec<_>>()
        };
        domains.into_iter().flatten().flat_map(numbers)
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::MariaDb(domains) => domains.is_empty(),
            Self::MySql(sets) => sets.is_empty(),
        }
    }

    /// Whether it holds everything that the other does. Of MariaDB's states this is told by the highest number of each
    /// server in each domain.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::MariaDb(own), Self::MariaDb(other)) => other.iter().all(|(id, domain)| {
                own.get(id).is_some_and(|own| {
                    domain.servers.iter().all(|(server, n)| own.servers.get(server).is_some_and(|m| m >= n))
                })
            }),
            (Self::MySql(own), Self::MySql(other)) => other.iter().all(|(uuid, intervals)| {
                own.get(uuid).is_some_and(|own| {
                    intervals.iter().all(|(a, b)| own.iter().any(|(first, last)| first <= a && b <= last))
                })
            }),
            _ => false,
        }
    }

    /// Whether it holds everything that the other does; nothing if they are of different kinds.
    #[must_use]
    pub fn includes(&self, other: &Self) -> Option<bool> {
        let is_one_kind =
            matches!((self, other), (Self::MariaDb(_), Self::MariaDb(_)) | (Self::MySql(_), Self::MySql(_)));
        if is_one_kind {
            return Some(self.contains(other));
        }
        // An empty text may be of either kind.
        (self.is_empty() || other.is_empty()).then(|| other.is_empty())
    }

    /// The last transaction of each domain, as `@@gtid_binlog_pos` says it; MySQL: all of it.
    #[must_use]
    pub fn position(&self) -> Gtids {
        let Self::MariaDb(domains) = self else { return self.text() };
        let last = domains.iter().filter_map(|(id, domain)| {
            Some(format!("{id}-{}-{}", domain.last, domain.servers.get(&domain.last)?))
        });
        Gtids(last.collect::<Vec<_>>().join(","))
    }

    /// As the server writes it.
    #[must_use]
    pub fn text(&self) -> Gtids {
        let mut parts = Vec::new();
        match self {
            Self::MariaDb(domains) => {
                for (id, domain) in domains {
                    let mut servers: Vec<_> = domain.servers.iter().collect();
                    servers.sort_by_key(|(server, _)| **server == domain.last);
                    parts.extend(servers.iter().map(|(server, n)| format!("{id}-{server}-{n}")));
                }
            }
            Self::MySql(sets) => {
                for (uuid, intervals) in sets {
                    let interval =
                        |(a, b): &(u64, u64)| if a == b { format!(":{a}") } else { format!(":{a}-{b}") };
                    parts.push(format!("{uuid}{}", intervals.iter().map(interval).collect::<String>()));
                }
            }
        }
        Gtids(parts.join(","))
    }
}

fn parts(text: &Gtids) -> impl Iterator<Item = &str> {
    text.0.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn maria_db<'a>(parts: impl Iterator<Item = &'a str>) -> Option<GtidState> {
    let mut state = GtidState::empty(Flavor::MariaDb);
    for part in parts {
        let mut numbers = part.split('-');
        let domain = numbers.next()?.parse().ok()?;
        let server = numbers.next()?.parse().ok()?;
        let sequence = numbers.next()?.parse().ok()?;
        numbers.next().is_none().then_some(())?;
        state.add(&Gtid::MariaDb { domain, server, sequence });
    }
    Some(state)
}

fn my_sql<'a>(parts: impl Iterator<Item = &'a str>) -> Option<GtidState> {
    let mut sets: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for part in parts {
        let mut server = String::new();
        let mut found = Vec::new();
        for word in part.split(':').map(str::trim) {
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
        let intervals = sets.entry(server).or_default();
        found.into_iter().for_each(|interval| insert(intervals, interval));
    }
    Some(GtidState::MySql(sets))
}

/// Puts an interval among others, which are in order and do not touch.
fn insert(intervals: &mut Vec<(u64, u64)>, (first, last): (u64, u64)) {
    // The usual case: the next number.
    if let Some(end) = intervals.last_mut()
        && end.1.checked_add(1) == Some(first)
    {
        end.1 = last;
        return;
    }
    let touches = |&(a, b): &(u64, u64)| a <= last.saturating_add(1) && first <= b.saturating_add(1);
    let joined =
        intervals.iter().filter(|i| touches(i)).fold((first, last), |(a, b), &(c, d)| (a.min(c), b.max(d)));
    intervals.retain(|i| !touches(i));
    let at = intervals.partition_point(|&(a, _)| a < joined.0);
    intervals.insert(at, joined);
}

#[cfg(test)]
mod tests {
    use super::{Gtid, GtidState};
    use crate::server::{Flavor, Gtids};

    fn state(flavor: Flavor, text: &str) -> GtidState {
        GtidState::parse(flavor, &Gtids(text.into())).unwrap()
    }

    #[test]
    fn mariadbs_state_names_the_last_server_of_a_domain_last() {
        let mut it = state(Flavor::MariaDb, "0-2-7,0-1-9,3-1-1");
        assert_eq!(it.text().0, "0-2-7,0-1-9,3-1-1");
        assert_eq!(it.position().0, "0-1-9,3-1-1");
        it.add(&Gtid::MariaDb { domain: 0, server: 2, sequence: 10 });
        assert_eq!(it.text().0, "0-1-9,0-2-10,3-1-1");
        assert!(it.contains(&state(Flavor::MariaDb, "0-1-9")));
        assert!(!it.contains(&state(Flavor::MariaDb, "0-1-10")));
        assert!(!it.contains(&state(Flavor::MariaDb, "0-3-1")));
    }

    #[test]
    fn mysqls_intervals_join() {
        let mut it = state(Flavor::MySql, "A:1-3:7,\nb:5");
        assert_eq!(it.text().0, "a:1-3:7,b:5");
        for number in [5, 4, 6, 8] {
            it.add(&Gtid::MySql { uuid: "a".into(), number });
        }
        assert_eq!(it.text().0, "a:1-8,b:5");
        assert!(it.contains(&state(Flavor::MySql, "a:2-4:8")));
        assert!(!it.contains(&state(Flavor::MySql, "a:2-4:9")));
    }

    #[test]
    fn what_is_not_understood_is_no_state() {
        for (flavor, text) in [(Flavor::MySql, "a:tag:1-2"), (Flavor::MariaDb, "0-1"), (Flavor::MariaDb, "x")]
        {
            assert_eq!(GtidState::parse(flavor, &Gtids(text.into())), None, "{text}");
        }
    }

    #[test]
    fn states_of_both_kinds_of_servers() {
        let state = |text: &str| GtidState::read(&Gtids(text.into())).unwrap();
        assert_eq!(state("0-1-5,1-2-7").includes(&state("1-2-7")), Some(true));
        assert_eq!(state("0-1-5").includes(&state("0-2-3")), Some(false));
        assert_eq!(state("0-1-5").includes(&state("")), Some(true));
        let id = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        let mut mine = state(&format!("{}:1-5", id.to_uppercase()));
        assert_eq!(mine.includes(&state(&format!("{id}:3"))), Some(true));
        assert_eq!(mine.includes(&state(&format!("{id}:6"))), Some(false));
        mine.append(&state(&format!("{id}:6")));
        mine.append(&state(&format!("{id}:9-10")));
        assert_eq!(mine.text().0, format!("{id}:1-6:9-10"));
        assert_eq!(state(&format!("{id}:tag:1-3")).text().0, format!("{id}:tag:1-3"));
        assert!(GtidState::read(&Gtids("what".into())).is_none());
        assert!(GtidState::read(&Gtids(format!("{id}:5-1"))).is_none());
    }
}
