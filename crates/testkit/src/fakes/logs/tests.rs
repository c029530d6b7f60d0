//! The fake shelf passes the suite that the real one passes.
//!
//! Crash story: in memory.

use std::cell::{Cell, RefCell};

use model::{
    id::EpochId,
    logs::{Added, Beginning, EpochRecord, LOGS_VERSION, LogKind, LogPlace, SegmentHead},
    port::Clock,
    port_logs::LogSink,
    port_shelf::LogShelf,
    server::BinlogPosition,
};

use super::{
    FakeLogs, FakeSpool, Weather, World,
    event::{Event, Id, MAGIC},
};
use crate::conformance::log_shelf::{Bench, suite};

struct Logs {
    world: World,
    sink: RefCell<FakeSpool>,
    count: Cell<u64>,
}

impl Logs {
    fn new() -> Self {
        let world = World::new(1, Weather::default());
        world.calm();
        Self { sink: RefCell::new(FakeSpool::open(&world)), world, count: Cell::new(0) }
    }

    fn next(&self) -> u64 {
        self.count.set(self.count.get() + 1);
        self.count.get()
    }
}

impl Bench for Logs {
    fn shelf(&self) -> Box<dyn LogShelf + '_> {
        Box::new(FakeLogs(self.world.clone()))
    }
    fn begin_epoch(&self) {
        let mut sink = self.sink.borrow_mut();
        let beginning = match sink.epoch() {
            Some(before) => Beginning::Continues { after: before.epoch },
            None => Beginning::First,
        };
        let number = u8::try_from(self.next()).unwrap();
        let record = EpochRecord {
            version: LOGS_VERSION,
            epoch: EpochId::at(self.world.now(), [0, 0, number]),
            source: self.world.source(),
            kind: LogKind::Binlog,
            begun_at: self.world.now(),
            beginning,
            from: LogPlace::Binlog(BinlogPosition { file: "b.000001".into(), offset: 4 }),
            server: None,
            gtid_state: None,
            has_base: false,
        };
        sink.begin_epoch(record).unwrap();
    }
    fn append(&self) {
        let mut sink = self.sink.borrow_mut();
        if sink.segment().is_none() {
            let from = sink.reached().unwrap();
            let head = SegmentHead {
                version: LOGS_VERSION,
                from,
                lead: MAGIC.len() as u64,
                gtid_state: None,
                begun_at: self.world.now(),
            };
            sink.begin_segment(head, MAGIC).unwrap();
        }
        let number = self.next();
        let id = Id { server: 1, sequence: number, unique: number };
        let (head, bytes) = sink.segment().unwrap();
        let LogPlace::Binlog(from) = head.from else { panic!("no binary log") };
        let offset = from.offset + bytes - head.lead + Event::Begin(id).len() + Event::End(id).len();
        let to = LogPlace::Binlog(BinlogPosition { file: from.file, offset });
        sink.append(&Event::Begin(id).bytes(), &Added::Part).unwrap();
        sink.append(&Event::End(id).bytes(), &Added::Whole { to, transactions: 1, commits: None }).unwrap();
        sink.sync(None).unwrap();
    }
    fn close(&self) {
        self.sink.borrow_mut().close_segment().unwrap();
    }
    fn snapshots(&self) -> usize {
        self.world.snapshots()
    }
    fn damage_stored(&self, epoch: &EpochId, number: u64) -> bool {
        self.world.damage_stored(epoch, number);
        true
    }
}

#[test]
fn the_fake_is_a_log_shelf() {
    suite(|| Box::new(Logs::new()));
}
