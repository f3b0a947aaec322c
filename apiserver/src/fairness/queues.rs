//! Seats and queues. Pure: who arrives, who is seated, who waits; time and waiting are the caller's.
//!
//! A level has a nominal number of seats. Of these it keeps some always and lends the rest: what is above the part that each level
//! keeps is one pool, from which every level takes, its own nominal seats before anybody borrows. The queues of a level take
//! turns by the seats that they were given (start-time fair queuing): a flow that sends more waits longer, others do not.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::oneshot;

/// A level as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    shares: usize,
    lendable_percent: usize,
    /// How much more than its nominal seats a level may take, in percent; none for any number.
    borrowing_percent: Option<usize>,
    /// Number of queues, of queues in a hand, and of requests in a queue; none if nobody may wait.
    queuing: Option<(usize, usize, usize)>,
}

impl Limits {
    /// None for an exempt level.
    pub(super) fn read(level: &Value) -> Option<Self> {
        let spec = &level["spec"];
        if spec["type"] != "Limited" {
            return None;
        }
        let limited = &spec["limited"];
        let number = |value: &Value, default: usize| {
            value
                .as_u64()
                .map_or(default, |number| usize::try_from(number).unwrap_or(default))
        };
        let response = &limited["limitResponse"];
        let queuing = &response["queuing"];
        let queues = number(&queuing["queues"], 64).max(1);
        Some(Self {
            shares: number(&limited["nominalConcurrencyShares"], 30),
            lendable_percent: number(&limited["lendablePercent"], 0).min(100),
            borrowing_percent: limited["borrowingLimitPercent"]
                .as_u64()
                .and_then(|percent| usize::try_from(percent).ok()),
            queuing: (response["type"] == "Queue").then(|| {
                (
                    queues,
                    number(&queuing["handSize"], 8).clamp(1, queues),
                    number(&queuing["queueLengthLimit"], 50).max(1),
                )
            }),
        })
    }
}

/// What becomes of a request that arrives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It has its seats.
    Seated,
    /// It is told when it has.
    Waiting,
    Refused(Refusal),
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No seat is free, and nobody waits at this level.
    Full,
    /// Its queue is as long as it may be.
    QueueFull,
    /// It has waited as long as it may.
    TimedOut,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    width: usize,
    /// When its turn is, in seats given.
    start: u64,
    seated_tx: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct Queue {
    waiters: VecDeque<Waiter>,
    /// When the last one that joined will have had its turn.
    finish: u64,
}

#[derive(Debug)]
struct Level {
    limits: Limits,
    /// Seats that nobody else gets.
    kept: usize,
    nominal: usize,
    most: usize,
    queues: Vec<Queue>,
    in_use: usize,
    waiting: usize,
    /// The turn that was given last.
    turn: u64,
    /// Still configured; else it goes when it is empty.
    wanted: bool,
}

/// All levels that are not exempt.
#[derive(Debug)]
pub(super) struct Levels {
    seats: usize,
    /// Seats that levels take from each other.
    pool: usize,
    by_name: HashMap<Arc<str>, Level>,
}

impl Levels {
    pub(super) fn new(seats: usize) -> Self {
        Self {
            seats,
            pool: 0,
            by_name: HashMap::new(),
        }
    }

    /// Takes over the levels that there are now. Who is seated stays, who waits goes on waiting.
    pub(super) fn configure(&mut self, levels: impl Iterator<Item = (Arc<str>, Limits)>) {
        for level in self.by_name.values_mut() {
            level.wanted = false;
        }
        for (name, limits) in levels {
            let level = self
                .by_name
                .entry(name)
                .or_insert_with(|| Level::new(limits.clone()));
            level.wanted = true;
            level.reshape(limits);
        }
        let all: usize = self
            .by_name
            .values()
            .filter(|level| level.wanted)
            .map(|level| level.limits.shares)
            .sum();
        self.pool = 0;
        for level in self.by_name.values_mut().filter(|level| level.wanted) {
            level.nominal = (self.seats * level.limits.shares).div_ceil(all.max(1));
            let lent = (level.nominal * level.limits.lendable_percent + 50) / 100;
            level.kept = level.nominal - lent;
            level.most = match level.limits.borrowing_percent {
                None => usize::MAX,
                Some(percent) => level.nominal + level.nominal * percent / 100,
            };
            self.pool += lent;
        }
        self.drop_unwanted();
        self.give_turns();
    }

    /// A request of a flow comes.
    pub(super) fn arrive(
        &mut self,
        name: &str,
        flow: u64,
        width: usize,
        id: u64,
        seated_tx: oneshot::Sender<()>,
    ) -> Arrival {
        let free = self.free_pool();
        let Some(level) = self.by_name.get_mut(name) else {
            return Arrival::Refused(Refusal::Full);
        };
        if level.waiting == 0 && level.fits(width, free) {
            level.in_use += width;
            return Arrival::Seated;
        }
        let Some((_, hand, length)) = level.limits.queuing else {
            return Arrival::Refused(Refusal::Full);
        };
        let at = deal(flow, level.queues.len(), hand)
            .min_by_key(|at| level.queues[*at].waiters.len())
            .expect("a hand has a queue");
        let queue = &mut level.queues[at];
        if queue.waiters.len() >= length {
            return Arrival::Refused(Refusal::QueueFull);
        }
        let start = queue.finish.max(level.turn);
        queue.finish = start + width as u64;
        queue.waiters.push_back(Waiter {
            id,
            width,
            start,
            seated_tx,
        });
        level.waiting += 1;
        Arrival::Waiting
    }

    /// Seats become free.
    pub(super) fn leave(&mut self, name: &str, width: usize) {
        if let Some(level) = self.by_name.get_mut(name) {
            level.in_use = level.in_use.saturating_sub(width);
        }
        self.give_turns();
        self.drop_unwanted();
    }

    /// A request waits no longer; says whether it did wait.
    pub(super) fn give_up(&mut self, name: &str, id: u64) -> bool {
        let Some(level) = self.by_name.get_mut(name) else {
            return false;
        };
        for queue in &mut level.queues {
            if let Some(at) = queue.waiters.iter().position(|waiter| waiter.id == id) {
                queue.waiters.remove(at);
                level.waiting -= 1;
                return true;
            }
        }
        false
    }

    pub(super) fn figures(&self) -> Vec<(Arc<str>, usize, usize, usize)> {
        let mut figures: Vec<_> = self
            .by_name
            .iter()
            .map(|(name, level)| (Arc::clone(name), level.nominal, level.in_use, level.waiting))
            .collect();
        figures.sort();
        figures
    }

    /// Seats of the pool that nobody has.
    fn free_pool(&self) -> usize {
        let used: usize = self.by_name.values().map(Level::pool_seats).sum();
        self.pool.saturating_sub(used)
    }

    /// Seats whoever can be seated: first at levels that have less than is theirs.
    fn give_turns(&mut self) {
        if self.by_name.values().all(|level| level.waiting == 0) {
            return;
        }
        for borrow in [false, true] {
            loop {
                let free = self.free_pool();
                let next = self.by_name.values_mut().filter(|level| level.waiting > 0);
                let next = next
                    .filter(|level| borrow || level.in_use < level.nominal)
                    .min_by_key(|level| level.in_use * 1000 / level.nominal.max(1));
                if !next.is_some_and(|level| level.seat_next(free)) {
                    break;
                }
            }
        }
    }

    fn drop_unwanted(&mut self) {
        self.by_name
            .retain(|_, level| level.wanted || level.in_use > 0 || level.waiting > 0);
    }
}

impl Level {
    fn new(limits: Limits) -> Self {
        let mut level = Self {
            limits: limits.clone(),
            kept: 0,
            nominal: 0,
            most: 0,
            queues: Vec::new(),
            in_use: 0,
            waiting: 0,
            turn: 0,
            wanted: true,
        };
        level.reshape(limits);
        level
    }

    /// As many queues as are configured. Queues that are too many go when nobody is in them.
    fn reshape(&mut self, limits: Limits) {
        let count = limits.queuing.map_or(0, |(queues, _, _)| queues);
        while self.queues.len() > count
            && self
                .queues
                .last()
                .is_some_and(|queue| queue.waiters.is_empty())
        {
            self.queues.pop();
        }
        self.queues
            .resize_with(count.max(self.queues.len()), Queue::default);
        self.limits = limits;
    }

    fn pool_seats(&self) -> usize {
        self.in_use.saturating_sub(self.kept)
    }

    /// Whether a request of this width can be seated, with so many seats free in the pool. One that is wider than all that the
    /// level can ever get runs alone.
    fn fits(&self, width: usize, free: usize) -> bool {
        let after = self.in_use + width;
        let more = after.saturating_sub(self.kept) - self.pool_seats();
        (after <= self.most && more <= free) || (self.in_use == 0 && self.nominal > 0)
    }

    /// Seats the one whose turn it is; says whether it did.
    fn seat_next(&mut self, free: usize) -> bool {
        let next = self
            .queues
            .iter()
            .enumerate()
            .filter_map(|(at, queue)| Some((queue.waiters.front()?.start, at)))
            .min();
        let Some((start, at)) = next else {
            return false;
        };
        let width = self.queues[at].waiters[0].width;
        if !self.fits(width, free) {
            return false;
        }
        let Some(waiter) = self.queues[at].waiters.pop_front() else {
            return false;
        };
        self.waiting -= 1;
        self.turn = self.turn.max(start);
        if waiter.seated_tx.send(()).is_ok() {
            self.in_use += width;
        }
        true
    }
}

/// The queues that a flow may join: a hand of cards, dealt by its hash. Two flows rarely share all of theirs.
fn deal(mut hash: u64, queues: usize, hand: usize) -> impl Iterator<Item = usize> {
    let mut dealt = [0_usize; 16];
    let hand = hand.min(dealt.len()).min(queues);
    for at in 0..hand {
        let left = (queues - at) as u64;
        let mut card = usize::try_from(hash % left).expect("less than the queues");
        hash /= left;
        // Skips the cards that are dealt, which stand in order.
        let mut place = 0;
        while place < at && dealt[place] <= card {
            card += 1;
            place += 1;
        }
        dealt.copy_within(place..at, place + 1);
        dealt[place] = card;
    }
    dealt.into_iter().take(hand)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(
        shares: usize,
        lendable: usize,
        borrowing: Option<usize>,
        queuing: Option<(usize, usize, usize)>,
    ) -> Limits {
        Limits {
            shares,
            lendable_percent: lendable,
            borrowing_percent: borrowing,
            queuing,
        }
    }

    fn levels(seats: usize, of: &[(&str, Limits)]) -> Levels {
        let mut levels = Levels::new(seats);
        levels.configure(
            of.iter()
                .map(|(name, limits)| (Arc::from(*name), limits.clone())),
        );
        levels
    }

    fn arrive(
        levels: &mut Levels,
        name: &str,
        flow: u64,
        id: u64,
    ) -> (Arrival, oneshot::Receiver<()>) {
        let (tx, rx) = oneshot::channel();
        (levels.arrive(name, flow, 1, id, tx), rx)
    }

    #[test]
    fn hands_are_of_different_queues_and_differ() {
        let mut hands = std::collections::HashSet::new();
        for flow in 0..1000_u64 {
            let hash = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let hand: Vec<usize> = deal(hash, 128, 6).collect();
            assert_eq!(hand.len(), 6);
            assert!(
                hand.is_sorted() && hand.windows(2).all(|two| two[0] < two[1]),
                "{hand:?}"
            );
            assert!(hand.iter().all(|at| *at < 128));
            hands.insert(hand);
        }
        assert!(hands.len() > 995, "{}", hands.len());
        assert_eq!(deal(77, 1, 1).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn what_a_level_keeps_nobody_else_gets() {
        let mut all = levels(
            10,
            &[
                ("greedy", limits(5, 0, None, Some((1, 1, 100)))),
                ("polite", limits(5, 60, None, Some((1, 1, 100)))),
            ],
        );
        let mut seated = 0;
        let mut waiting = Vec::new();
        for id in 0..20 {
            match arrive(&mut all, "greedy", 1, id) {
                (Arrival::Seated, _) => seated += 1,
                (_, rx) => waiting.push(rx),
            }
        }
        assert_eq!(seated, 8, "five of its own and three borrowed");
        for id in 20..22 {
            assert_eq!(
                arrive(&mut all, "polite", 1, id).0,
                Arrival::Seated,
                "two are kept"
            );
        }
        let (arrival, mut rx) = arrive(&mut all, "polite", 1, 22);
        assert_eq!(arrival, Arrival::Waiting, "the rest is lent out");
        all.leave("greedy", 1);
        assert!(
            rx.try_recv().is_ok(),
            "and comes back before anybody borrows again"
        );
        assert!(waiting.iter_mut().all(|rx| rx.try_recv().is_err()));
    }

    #[test]
    fn a_flow_that_floods_waits_behind_its_own() {
        let mut all = levels(1, &[("one", limits(1, 0, None, Some((64, 1, 50))))]);
        assert_eq!(arrive(&mut all, "one", 1, 0).0, Arrival::Seated);
        let mut flood: Vec<_> = (1..=50)
            .map(|id| arrive(&mut all, "one", 1, id).1)
            .collect();
        assert_eq!(
            arrive(&mut all, "one", 1, 51).0,
            Arrival::Refused(Refusal::QueueFull)
        );
        let (_, mut quiet) = arrive(&mut all, "one", 2, 52);
        all.leave("one", 1);
        all.leave("one", 1);
        assert!(quiet.try_recv().is_ok(), "second at the latest");
        let served = flood.iter_mut().map(|rx| rx.try_recv().is_ok());
        assert_eq!(served.filter(|served| *served).count(), 1);
    }

    #[test]
    fn limits_of_borrowing_hold_and_wide_requests_run_alone() {
        let mut all = levels(
            20,
            &[
                ("bounded", limits(10, 0, Some(20), None)),
                ("lender", limits(10, 100, None, None)),
            ],
        );
        let seated = (0..20)
            .filter(|id| arrive(&mut all, "bounded", 1, *id).0 == Arrival::Seated)
            .count();
        assert_eq!(seated, 12);
        assert_eq!(
            arrive(&mut all, "bounded", 1, 99).0,
            Arrival::Refused(Refusal::Full)
        );
        let (tx, _rx) = oneshot::channel();
        assert_eq!(
            all.arrive("lender", 1, 500, 100, tx),
            Arrival::Seated,
            "alone"
        );
    }

    #[test]
    fn a_level_that_is_removed_lets_its_requests_end() {
        let mut all = levels(
            2,
            &[
                ("old", limits(1, 0, Some(0), Some((1, 1, 5)))),
                ("new", limits(1, 0, Some(0), None)),
            ],
        );
        assert_eq!(arrive(&mut all, "old", 1, 0).0, Arrival::Seated);
        let (_, mut rx) = arrive(&mut all, "old", 1, 1);
        all.configure([(Arc::from("new"), limits(1, 0, None, None))].into_iter());
        assert_eq!(all.figures().len(), 2);
        all.leave("old", 1);
        assert!(rx.try_recv().is_ok());
        all.leave("old", 1);
        assert_eq!(all.figures().len(), 1);
        assert_eq!(
            arrive(&mut all, "old", 1, 2).0,
            Arrival::Refused(Refusal::Full)
        );
    }

    #[test]
    fn giving_up_is_told_from_being_seated() {
        let mut all = levels(1, &[("one", limits(1, 0, None, Some((1, 1, 5))))]);
        assert_eq!(arrive(&mut all, "one", 1, 0).0, Arrival::Seated);
        let (_, rx) = arrive(&mut all, "one", 1, 1);
        let (_, mut next) = arrive(&mut all, "one", 1, 2);
        drop(rx);
        assert!(all.give_up("one", 1));
        assert!(!all.give_up("one", 1));
        all.leave("one", 1);
        assert!(next.try_recv().is_ok());
        assert!(!all.give_up("one", 2), "it was seated");
    }
}
