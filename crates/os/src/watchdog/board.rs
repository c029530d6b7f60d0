//! What the watchdog knows: which undos are open, which are due, and in which order they are undone.
//!
//! Crash story: plain values in memory; the run's journal is the durable copy.

use std::collections::BTreeMap;

use model::{
    time::{Deadline, Moment},
    undo::{Ticket, Undo},
};

/// One open intent.
#[derive(Debug, Clone)]
struct Open {
    undo: Undo,
    until: Option<Deadline>,
    /// When it was intended, among all.
    turn: u64,
}

/// All open intents.
#[derive(Debug, Default)]
pub(super) struct Board {
    open: BTreeMap<Ticket, Open>,
    turns: u64,
}

impl Board {
    pub fn intend(&mut self, ticket: Ticket, undo: Undo, until: Option<Deadline>) -> Result<(), String> {
        if self.open.contains_key(&ticket) {
            return Err(format!("ticket {} is taken", ticket.0));
        }
        self.turns += 1;
        self.open.insert(ticket, Open { undo, until, turn: self.turns });
        Ok(())
    }

    pub fn amend(&mut self, ticket: Ticket, undo: Undo, until: Option<Deadline>) -> Result<(), String> {
        let open = self.open.get_mut(&ticket).ok_or_else(|| format!("ticket {} is not open", ticket.0))?;
        open.undo = undo;
        open.until = until;
        Ok(())
    }

    pub fn done(&mut self, ticket: Ticket) {
        self.open.remove(&ticket);
    }

    /// The next deadline of anything urgent.
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.open.values().filter(|open| open.undo.is_urgent()).filter_map(|open| open.until).min()
    }

    /// What is due now, in the order of undoing. It stays open, but has no deadline any more.
    pub fn take_due(&mut self, now: Moment) -> Vec<(Ticket, Undo)> {
        let due = self.in_order(|open| open.until.is_some_and(|until| until.has_passed(now)));
        for (ticket, _) in &due {
            if let Some(open) = self.open.get_mut(ticket) {
                open.until = None;
            }
        }
        due
    }

    /// Everything urgent, in the order of undoing.
    pub fn urgent(&self) -> Vec<(Ticket, Undo)> {
        self.in_order(|_| true)
    }

    fn in_order(&self, wanted: impl Fn(&Open) -> bool) -> Vec<(Ticket, Undo)> {
        let mut chosen: Vec<(&Ticket, &Open)> =
            self.open.iter().filter(|(_, open)| open.undo.is_urgent() && wanted(open)).collect();
        chosen.sort_by_key(|(_, open)| (rank(&open.undo), std::cmp::Reverse(open.turn)));
        chosen.into_iter().map(|(ticket, open)| (*ticket, open.undo.clone())).collect()
    }
}

/// Processes first, since others may wait for them; platforms last, since they may take minutes and must find
/// everything else in order.
fn rank(undo: &Undo) -> u8 {
    match undo {
        Undo::Continue { .. } | Undo::ThawCgroup { .. } => 0,
        Undo::End { .. }
        | Undo::RemoveLock { .. }
        | Undo::RemoveTree { .. }
        | Undo::SwapBack { .. }
        | Undo::DeleteSubvolume { .. }
        | Undo::Unmount { .. }
        | Undo::RemoveLogicalVolume { .. }
        | Undo::ReleasePoolMetadata { .. }
        | Undo::DestroyZfsSnapshot { .. }
        | Undo::ServerVariable { .. }
        | Undo::ServerExchange { .. } => 1,
        Undo::Start { .. } => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::{
        time::{Deadline, Moment},
        undo::{Hook, ProcessRef, Ticket, Undo},
    };

    use super::Board;

    fn at(nanos: u64) -> Option<Deadline> {
        Some(Deadline(Moment(nanos)))
    }

    fn filled() -> Board {
        let process = ProcessRef { pid: 1, start: 1 };
        let hook = Hook { run: "true".into(), timeout: Duration::from_secs(1) };
        let undos = [
            Undo::Start { start: hook, ends: None },
            Undo::End { process },
            Undo::Continue { processes: vec![process] },
            Undo::RemoveTree { path: "/srv/.stillpoint-x".into() },
            Undo::RemoveLock { path: "/r/locks/x".into() },
            Undo::Continue { processes: vec![] },
        ];
        let mut board = Board::default();
        for (ticket, undo) in (0..).zip(undos) {
            board.intend(Ticket(ticket), undo, at(100 - ticket)).unwrap();
        }
        board
    }

    fn tickets(undos: &[(Ticket, Undo)]) -> Vec<u64> {
        undos.iter().map(|(ticket, _)| ticket.0).collect()
    }

    #[test]
    fn processes_first_and_platforms_last_each_in_reverse() {
        assert_eq!(tickets(&filled().urgent()), [5, 2, 4, 1, 0]);
    }

    #[test]
    fn only_what_is_due_is_undone_and_stays_open() {
        let mut board = filled();
        assert_eq!(board.next_deadline(), at(95));
        assert_eq!(tickets(&board.take_due(Moment(96))), [5, 4]);
        assert_eq!(tickets(&board.take_due(Moment(96))), [] as [u64; 0]);
        assert_eq!(board.next_deadline(), at(98));
        assert_eq!(tickets(&board.urgent()), [5, 2, 4, 1, 0]);
        board.done(Ticket(5));
        assert_eq!(tickets(&board.urgent()), [2, 4, 1, 0]);
    }

    #[test]
    fn tickets_are_used_once_and_amended_while_open() {
        let mut board = filled();
        let undo = Undo::RemoveLock { path: "/r/locks/y".into() };
        board.intend(Ticket(1), undo.clone(), None).unwrap_err();
        board.amend(Ticket(9), undo.clone(), None).unwrap_err();
        board.amend(Ticket(1), undo.clone(), None).unwrap();
        assert!(board.urgent().contains(&(Ticket(1), undo)));
    }
}
