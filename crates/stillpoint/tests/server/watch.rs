//! What the program says to a server, read from the server's general log while it is written.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// What the program says in each stage, in order. The server writes it down before it does it.
pub const STAGES: [&str; 9] = [
    "SELECT ",
    "BACKUP STAGE START",
    "BACKUP STAGE FLUSH",
    "BACKUP STAGE BLOCK_DDL",
    "BACKUP STAGE BLOCK_COMMIT",
    "ENGINE LOGS",
    "SHOW MASTER STATUS",
    "max_statement_time=1 FOR BACKUP STAGE",
    "BACKUP STAGE END",
];

/// Reads what is added to a general log.
pub struct Watch {
    file: File,
    rest: String,
}

impl Watch {
    /// What is written from now on.
    pub fn of(path: &Path) -> Self {
        let mut file = File::open(path).expect("the general log");
        file.seek(SeekFrom::End(0)).expect("its end");
        Self { file, rest: String::new() }
    }

    /// Id of the connection that says this first; `None` once `stop` is set.
    pub fn wait_for(mut self, text: &str, stop: &AtomicBool) -> Option<u64> {
        while !stop.load(Ordering::Relaxed) {
            let mut bytes = Vec::new();
            self.file.read_to_end(&mut bytes).expect("the general log");
            self.rest.push_str(&String::from_utf8_lossy(&bytes));
            while let Some((line, rest)) = self.rest.split_once('\n') {
                let found = line.contains(text).then(|| said_by(line)).flatten();
                let line = rest.to_owned();
                self.rest = line;
                if found.is_some() {
                    return found;
                }
            }
            thread::sleep(Duration::from_micros(200));
        }
        None
    }
}

/// `251120 16:30:01\t    12 Query\tBACKUP STAGE START`, without the time if it is the one before.
fn said_by(line: &str) -> Option<u64> {
    line.split_once(" Query\t")?.0.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
