//! The fake server: its log's files, and connections that follow them.
//!
//! Crash story: in memory.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use model::{
    gtid::GtidState,
    id::BackupId,
    logs::LogServer,
    logs_retention::Anchor,
    port::{Failure, FailureKind},
    port_logs::{LogEvent, LogSource, LogStream, Next, Seen, Start},
    server::{BinlogPosition, Flavor, Gtids, ServerForm, ServerPosition, ServerRecord, ServerVersion},
};

use super::{
    Stand, World,
    event::{Event, Id, MAGIC},
};

#[derive(Debug)]
pub(super) struct ServerState {
    id: u32,
    pub(super) is_up: bool,
    pub(super) is_idle: bool,
    /// Connections of another number are lost.
    pub(super) connection: u64,
    files: Vec<File>,
    state: GtidState,
    sequence: u64,
    unique: u64,
    stamp: u64,
    /// Every order that commits ever had in its log; the last is that of now.
    pub(super) timelines: Vec<Vec<u64>>,
}

#[derive(Debug, Clone)]
struct File {
    number: u64,
    stamp: u64,
    before: GtidState,
    events: Vec<Event>,
}

impl File {
    fn name(&self) -> String {
        format!("b.{:06}", self.number)
    }

    fn size(&self) -> u64 {
        MAGIC.len() as u64 + self.events.iter().map(|event| event.len()).sum::<u64>()
    }

    /// The index of the event that begins here.
    fn index_at(&self, offset: u64) -> Option<usize> {
        (0..=self.events.len()).find(|index| self.offset_of(*index) == offset)
    }

    fn offset_of(&self, index: usize) -> u64 {
        MAGIC.len() as u64 + self.events[..index].iter().map(|event| event.len()).sum::<u64>()
    }

    fn state_at(&self, index: usize) -> GtidState {
        let mut state = self.before.clone();
        for event in &self.events[..index] {
            if let Event::End(id) = event {
                state.add(&id.gtid());
            }
        }
        state
    }
}

impl ServerState {
    pub(super) fn new() -> Self {
        let mut server = Self {
            id: 1,
            is_up: true,
            is_idle: false,
            connection: 0,
            files: Vec::new(),
            state: GtidState::empty(Flavor::MariaDb),
            sequence: 0,
            unique: 0,
            stamp: 0,
            timelines: vec![Vec::new()],
        };
        server.begin_file(1);
        server
    }

    fn begin_file(&mut self, number: u64) {
        self.stamp += 1;
        let before = Some(self.state.text());
        let events = vec![Event::Format { stamp: self.stamp, before }];
        self.files.push(File { number, stamp: self.stamp, before: self.state.clone(), events });
    }

    fn newest(&mut self) -> &mut File {
        self.files.last_mut().unwrap_or_else(|| panic!("a log has a file"))
    }

    fn append(&mut self, id: Id) {
        self.state.add(&id.gtid());
        self.newest().events.extend([Event::Begin(id), Event::End(id)]);
    }

    pub(super) fn commit(&mut self) {
        (self.sequence, self.unique) = (self.sequence + 1, self.unique + 1);
        self.append(Id { server: self.id, sequence: self.sequence, unique: self.unique });
        let unique = self.unique;
        self.timeline().push(unique);
    }

    fn timeline(&mut self) -> &mut Vec<u64> {
        self.timelines.last_mut().unwrap_or_else(|| panic!("there is always one"))
    }

    /// How many transactions were ever committed: the id of the last.
    pub(super) fn committed(&self) -> u64 {
        self.unique
    }

    pub(super) fn stand(&self) -> Stand {
        let timeline = self.timelines.len() - 1;
        Stand { timeline, after: self.timelines[timeline].len() }
    }

    /// The transactions after a backup, in every order of commits that goes on from it.
    pub(super) fn after(&self, stand: Stand) -> impl Iterator<Item = &[u64]> {
        let before = &self.timelines[stand.timeline][..stand.after];
        let later = self.timelines[stand.timeline..].iter();
        later.filter_map(move |timeline| timeline.strip_prefix(before))
    }

    pub(super) fn rotate(&mut self) {
        let number = self.newest().number + 1;
        self.begin_file(number);
    }

    pub(super) fn restart(&mut self) {
        self.connection += 1;
        self.rotate();
    }

    /// Removes all files but the newest ones.
    pub(super) fn purge(&mut self, keep: usize) {
        let gone = self.files.len().saturating_sub(keep);
        self.files.drain(..gone);
    }

    /// `RESET MASTER`: connections stay.
    pub(super) fn reset(&mut self) {
        self.files.clear();
        self.state = GtidState::empty(Flavor::MariaDb);
        self.sequence = 0;
        self.timelines.push(Vec::new());
        self.begin_file(1);
    }

    /// Crashes without its last transactions, as far as they are in the newest file.
    pub(super) fn lose(&mut self, transactions: usize) {
        let file = self.newest();
        let lost = transactions.min((file.events.len() - 1) / 2);
        file.events.truncate(file.events.len() - 2 * lost);
        self.state = {
            let file = self.newest();
            file.state_at(file.events.len())
        };
        let mut timeline = self.timeline().clone();
        timeline.truncate(timeline.len() - lost);
        if lost > 0 {
            self.timelines.push(timeline);
            // The numbers of the lost are given again.
            self.sequence -= lost as u64;
        }
        self.restart();
    }

    /// A replica takes over: the same transactions in other files of the same names.
    pub(super) fn switch(&mut self, files: usize) {
        let all: Vec<Id> = self
            .files
            .iter()
            .flat_map(|file| &file.events)
            .filter_map(|event| match event {
                Event::End(id) => Some(*id),
                _ => None,
            })
            .collect();
        let before = self.files.first().map(|file| file.before.clone());
        self.state = before.unwrap_or_else(|| GtidState::empty(Flavor::MariaDb));
        self.files.clear();
        self.id += 1;
        self.connection += 1;
        self.begin_file(1);
        let each = all.len() / files + 1;
        for (nth, id) in all.into_iter().enumerate() {
            if nth > 0 && nth % each == 0 {
                self.rotate();
            }
            self.append(id);
        }
    }

    pub(super) fn end(&self) -> BinlogPosition {
        let file = self.files.last().unwrap_or_else(|| panic!("a log has a file"));
        BinlogPosition { file: file.name(), offset: file.size() }
    }

    fn version() -> ServerVersion {
        ServerVersion { flavor: Flavor::MariaDb, number: (10, 11, 6), text: "fake".into() }
    }

    pub(super) fn anchor(&self, backup: BackupId, at: Timestamp) -> Anchor {
        let position = ServerPosition {
            binlog: Some(self.end()),
            gtid_binlog_state: Some(self.state.text()),
            ..ServerPosition::default()
        };
        let server = ServerRecord {
            source: model::id::SourceId::new("mariadb", "/fake"),
            version: Self::version(),
            server_id: self.id,
            form: ServerForm::Files,
            position,
            settings: BTreeMap::new(),
            roots: vec![],
            engines: vec![],
            databases: vec![],
            beside: None,
            replay_from: None,
        };
        Anchor { backup, at, servers: Some(vec![server]) }
    }

    fn seen(&self, reached: Option<&BinlogPosition>) -> Seen {
        let before = |file: &File, offset| {
            let index = file.index_at(offset);
            index.map(|index| file.state_at(index).position()).or_else(|| Some(Gtids(String::new())))
        };
        let at = reached.and_then(|reached| self.files.iter().find(|file| file.name() == reached.file));
        Seen {
            server: LogServer { server_id: self.id, version: Self::version(), uuid: None },
            files: self.files.iter().map(|file| (file.name(), file.size())).collect(),
            gtid_state: Some(self.state.text()),
            before_reached: reached
                .zip(at)
                .filter(|(reached, file)| reached.offset <= file.size())
                .and_then(|(reached, file)| before(file, reached.offset)),
            before_oldest: reached
                .filter(|_| at.is_none())
                .and_then(|_| before(self.files.first()?, MAGIC.len() as u64)),
        }
    }

    /// The file and the event where following begins.
    fn find(&self, start: &Start) -> Option<(u64, usize)> {
        match start {
            Start::Place(place) => {
                let file = self.files.iter().find(|file| file.name() == place.file)?;
                Some((file.stamp, file.index_at(place.offset)?))
            }
            Start::After(gtids) => {
                let have = GtidState::parse(Flavor::MariaDb, gtids)?;
                if !have.contains(&last_of(&self.files.first()?.before)) {
                    return None;
                }
                let after = |event: &Event| {
                    matches!(event, Event::Begin(id) if have.sequence(0, id.server).is_none_or(|n| n < id.sequence)
                        && have.sequences().all(|(_, _, n)| n < id.sequence))
                };
                let found = self
                    .files
                    .iter()
                    .find_map(|file| Some((file.stamp, file.events.iter().position(after)?)));
                let file = self.files.last()?;
                Some(found.unwrap_or((file.stamp, file.events.len())))
            }
        }
    }
}

/// The last transaction of each domain alone.
fn last_of(state: &GtidState) -> GtidState {
    GtidState::parse(Flavor::MariaDb, &state.position()).unwrap_or_else(|| GtidState::empty(Flavor::MariaDb))
}

/// The server as the archive sees it.
#[derive(Debug)]
pub struct FakeServer(pub World);

impl FakeServer {
    fn ask<T>(&self, answer: impl FnOnce(&ServerState) -> T) -> Result<T, Failure> {
        self.0.pass(Duration::from_millis(5));
        let state = self.0.lock();
        if state.server.is_up { Ok(answer(&state.server)) } else { Err(lost("the server is down")) }
    }
}

fn lost(what: &str) -> Failure {
    Failure::new(FailureKind::Lost, what, "")
}

impl LogSource for FakeServer {
    fn look(&mut self, reached: Option<&BinlogPosition>) -> Result<Seen, Failure> {
        self.ask(|server| server.seen(reached))
    }

    fn end(&mut self) -> Result<(BinlogPosition, Option<Gtids>), Failure> {
        self.ask(|server| (server.end(), Some(server.state.text())))
    }

    fn follow(&mut self, start: &Start, gtid_state: Option<&Gtids>) -> Result<Box<dyn LogStream>, Failure> {
        let (connection, found) = self.ask(|server| (server.connection, server.find(start)))?;
        Ok(Box::new(Stream {
            world: self.0.clone(),
            connection,
            at: found,
            first_stamp: found.map(|(stamp, _)| stamp),
            state: gtid_state.and_then(|text| GtidState::parse(Flavor::MariaDb, text)),
        }))
    }
}

struct Stream {
    world: World,
    connection: u64,
    /// The file by its stamp, and the next event; nothing if there is no such place.
    at: Option<(u64, usize)>,
    first_stamp: Option<u64>,
    state: Option<GtidState>,
}

impl Stream {
    fn step(&mut self) -> Result<Option<Next>, Failure> {
        let state = self.world.lock();
        if !state.server.is_up || state.server.connection != self.connection {
            return Err(lost("the connection is lost"));
        }
        let Some((stamp, index)) = self.at else { return Ok(Some(Next::Gone("no such place".into()))) };
        // A file that is no more ends without a word.
        let Some(nth) = state.server.files.iter().position(|file| file.stamp == stamp) else {
            return Ok(None);
        };
        let file = &state.server.files[nth];
        let Some(event) = file.events.get(index).cloned() else {
            let next = state.server.files.get(nth + 1).map(|next| (next.stamp, 0));
            drop(state);
            return match next {
                Some(next) => {
                    self.at = Some(next);
                    self.step()
                }
                None => Ok(None),
            };
        };
        let start = BinlogPosition { file: file.name(), offset: file.offset_of(index) };
        match &event {
            Event::Format { .. } => self.state = Some(file.before.clone()),
            Event::End(id) => self.state.iter_mut().for_each(|state| state.add(&id.gtid())),
            Event::Begin(_) => {}
        }
        self.at = Some((stamp, index + 1));
        Ok(Some(Next::Event(LogEvent {
            bytes: event.bytes(),
            end: start.offset + event.len(),
            start,
            is_boundary: event.is_boundary(),
            commit: matches!(event, Event::End(_)).then(|| state.now()),
            wants_ack: false,
        })))
    }
}

impl LogStream for Stream {
    fn next(&mut self, within: Duration) -> Result<Next, Failure> {
        if let Some(next) = self.step()? {
            self.world.pass(Duration::from_micros(500));
            return Ok(next);
        }
        self.world.pass(within.max(Duration::from_millis(1)));
        Ok(if self.world.random(3) == 0 { Next::Quiet } else { Next::CaughtUp })
    }

    fn lead(&self, first: &LogEvent) -> Vec<u8> {
        let mut lead = MAGIC.to_vec();
        if first.start.offset != MAGIC.len() as u64
            && let Some((stamp, _)) = self.at
        {
            lead.extend(Event::Format { stamp, before: None }.bytes());
        }
        lead
    }

    fn gtid_state(&self) -> Option<Gtids> {
        self.state.as_ref().map(GtidState::text)
    }

    fn is_file_of(&self, segment: &[u8]) -> Option<bool> {
        let stamp = segment.get(MAGIC.len() + 16..MAGIC.len() + 24)?;
        Some(self.first_stamp? == u64::from_le_bytes(stamp.try_into().ok()?))
    }

    fn is_acknowledging(&self) -> bool {
        false
    }

    fn acknowledge(&mut self, _place: &BinlogPosition) -> Result<(), Failure> {
        Ok(())
    }
}
