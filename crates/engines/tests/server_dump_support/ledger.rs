//! Writers whose every transaction puts the same number into several tables, so that any two instants mixed show.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use mysql::{Conn, TxOpts, prelude::Queryable};
use testkit::server::PrivateServer;

/// Writers that go on until they are dropped.
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Makes `ledger.t0` to `t3` with these engines.
pub fn make(server: &PrivateServer, engines: [&str; 4]) {
    server.run(["CREATE DATABASE ledger"]);
    for (at, engine) in engines.iter().enumerate() {
        server.run([format!(
            "CREATE TABLE ledger.t{at} (id INT AUTO_INCREMENT PRIMARY KEY, writer INT, n INT, pad VARCHAR(200)) ENGINE={engine}"
        )]);
    }
}

impl Writers {
    pub fn start(server: &PrivateServer, writers: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..writers)
            .map(|writer| {
                let (stop, mut conn) = (Arc::clone(&stop), server.connect());
                thread::spawn(move || {
                    let mut n = 0;
                    while !stop.load(Ordering::Relaxed) {
                        n += 1;
                        transaction(&mut conn, writer, n);
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }
}

fn transaction(conn: &mut Conn, writer: u32, n: u32) {
    let mut open = conn.start_transaction(TxOpts::default()).expect("a transaction");
    for table in 0..4 {
        let sql =
            format!("INSERT INTO ledger.t{table} (writer, n, pad) VALUES ({writer}, {n}, REPEAT('x', 150))");
        open.query_drop(sql).expect("an insert");
    }
    open.commit().expect("a commit");
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// For each table: how many rows, and how many a writer has at the most. Panics if tables differ in anything.
pub fn judge(server: &PrivateServer) -> u64 {
    let mut conn = server.connect();
    let mut seen: Option<Vec<(u32, u64, u64)>> = None;
    for table in 0..4 {
        let sql =
            format!("SELECT writer, COUNT(*), MAX(n) FROM ledger.t{table} GROUP BY writer ORDER BY writer");
        let found: Vec<(u32, u64, u64)> = conn.query(sql).expect("a count");
        for (writer, rows, last) in &found {
            assert_eq!(rows, last, "table t{table} lacks rows of writer {writer}");
        }
        if let Some(seen) = &seen {
            assert_eq!(seen, &found, "table t{table} is of another instant");
        }
        seen = Some(found);
    }
    seen.unwrap_or_default().iter().map(|(_, rows, _)| rows).sum()
}
