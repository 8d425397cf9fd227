//! The rule of start, move and commit, checked exhaustively: every order in which two workers, Redis and the group can
//! act, with a number of faults. The ledger and the decision where to start are the worker's own; Redis, the group and
//! the network are modelled.
//!
//! - `redis`: the buckets and the commands that reach them;
//! - `world`: the state and its properties; its `steps` and `faults`: what happens;
//! - `actions`: the names of what can happen, also in words;
//! - `calm`: a run without further faults;
//! - `guards`: what can be broken in the rule;
//! - `stories`: the shortest ways into trouble with a guard broken, as docs/RELIABILITY.md tells them.
//!
//! `scripts/model-check` runs the whole of it.

mod actions;
mod calm;
mod guards;
mod redis;
mod stories;
mod world;

use std::num::NonZero;
use std::time::Instant;

use stateright::{Checker, Model, Property, UniformChooser};

use crate::actions::Action;
use crate::guards::Guard;
use crate::world::{Part, World};

pub(crate) const TRUE_POSITIONS: &str = "no position is ahead of its data";
pub(crate) const TRUE_COMMIT: &str = "no commit is past what was stored";
pub(crate) const IN_ORDER: &str = "no record is stored before an earlier one of its bucket";
pub(crate) const STORES_ALL: &str = "a calm run stores everything";
pub(crate) const NO_DOUBT: &str = "no hole in the log displaces the partition";
pub(crate) const SAYS_SO: &str = "a calm run stores everything, with all positions and the commit at the end";

/// What to check.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// Records of the log.
    pub(crate) records: usize,
    /// Faults of a run.
    pub(crate) faults: u8,
    /// Batches of a worker on their way at a time; the worker itself has up to four.
    pub(crate) in_flight: usize,
    /// Whether batches and placements arrive in all buckets at once, unless a fault splits them.
    pub(crate) whole: bool,
    /// Whether one offset of the log may have no record, as the mark of a transaction.
    pub(crate) holes: bool,
    /// Whether the clock of Redis may jump.
    pub(crate) clock_jumps: bool,
    /// The guard that is broken.
    pub(crate) broken: Option<Guard>,
}

impl Rule {
    /// Each bucket gets its part of a batch at a time of its own.
    const fn fine(records: usize, faults: u8) -> Self {
        Self { records, faults, in_flight: 2, whole: false, holes: false, clock_jumps: false, broken: None }
    }

    /// All buckets get a batch at once, except where a fault splits it.
    const fn whole(records: usize, faults: u8, in_flight: usize) -> Self {
        Self { in_flight, whole: true, ..Self::fine(records, faults) }
    }

    /// The same with a hole in the log.
    const fn with_holes(offsets: usize, faults: u8, in_flight: usize) -> Self {
        Self { holes: true, ..Self::whole(offsets, faults, in_flight) }
    }
}

impl Model for Rule {
    type State = World;
    type Action = Action;

    /// Each way to spread the records over the buckets; the first is in bucket 0, since names don't matter. Where there are
    /// holes, each place of one as well, but for the end: there it can't be told from nothing.
    fn init_states(&self) -> Vec<World> {
        // All in one bucket is no more than a shorter log.
        let spreads = usize::from(self.records > 1)..1_usize << (self.records - 1);
        let log = |spread: usize| (0..self.records).map(|record| (spread << 1) >> record & 1).collect();
        let holes: Vec<_> = if self.holes { (0..self.records - 1).map(Some).collect() } else { vec![None] };
        spreads.flat_map(|spread| holes.iter().map(move |hole| World::new(log(spread), *hole, self))).collect()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.actions(actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.act(action, self.broken).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let ends_well = match self.broken {
            // Also livelocks, and what only people would notice.
            None => Property::always(SAYS_SO, |_, world: &World| calm::ends_well(world, None, World::is_done)),
            Some(_) => Property::always(STORES_ALL, |rule: &Self, world: &World| {
                calm::ends_well(world, rule.broken, World::is_stored)
            }),
        };
        let mut properties =
            vec![Property::always(TRUE_POSITIONS, |_, world: &World| world.positions_are_true()), ends_well];
        if matches!(self.broken, None | Some(Guard::WriteAnyway)) {
            properties.push(Property::always(IN_ORDER, |_, world: &World| world.nothing_overtakes()));
        }
        if self.broken != Some(Guard::CommitEarly) {
            properties.push(Property::always(TRUE_COMMIT, |_, world: &World| world.commit_is_true()));
        }
        if self.holes && self.broken.is_none() {
            properties.push(Property::always(NO_DOUBT, |_, world: &World| !world.doubted));
        }
        // With one fault there is no zombie that does something.
        if self.broken.is_none() && self.faults > 1 {
            properties.extend(meetings());
        }
        properties
    }
}

/// What the check is there for: a run that never meets one of them has checked nothing.
fn meetings() -> Vec<Property<Rule>> {
    vec![
        Property::sometimes("a zombie is fenced", |_, world: &World| has_mismatch(world, 1 - world.owner)),
        Property::sometimes("the owner meets a mismatch", |_, world: &World| has_mismatch(world, world.owner)),
        Property::sometimes("a partition is displaced", |_, world: &World| world.workers[world.owner].is_displaced()),
        Property::sometimes("a placement is refused", |_, world: &World| {
            world.workers.iter().filter_map(|w| w.placing.as_ref()).any(|p| p.parts.contains(&Part::Mismatch))
        }),
        Property::sometimes("a batch is stored in part", |_, world: &World| {
            let mut batches = world.workers.iter().flat_map(|worker| &worker.in_flight);
            batches.any(|batch| batch.parts.contains(&Part::Held) && batch.parts.contains(&Part::Refused))
        }),
        Property::sometimes("a committed partition is read from its beginning", |_, world: &World| {
            let placings = world.workers.iter().filter_map(|worker| worker.placing.as_ref());
            placings.filter(|placing| placing.beginning).any(|placing| placing.committed > Some(0))
        }),
        Property::sometimes("everything is stored and committed", |_, world: &World| world.is_done()),
    ]
}

fn has_mismatch(world: &World, worker: usize) -> bool {
    world.workers[worker].in_flight.iter().any(|batch| batch.parts.contains(&Part::Mismatch))
}

/// Checks all of it, and says what that was. Gives the number of states.
#[expect(clippy::print_stderr, reason = "how much was checked is part of the result")]
fn check(rule: Rule) -> usize {
    let since = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let checker = rule.checker().threads(threads).spawn_bfs().join();
    let Rule { records, faults, in_flight, whole, broken, .. } = rule;
    eprintln!(
        "{records} records, {faults} faults, {in_flight} batches in flight, {} buckets{}: {} distinct states, depth {}, {:.1} s",
        if whole { "all" } else { "single" },
        broken.map_or_else(String::new, |guard| format!(", {}", guard.describe().0)),
        checker.unique_state_count(),
        checker.max_depth(),
        since.elapsed().as_secs_f64()
    );
    checker.assert_properties();
    checker.unique_state_count()
}

#[test]
fn no_order_of_two_faults_breaks_the_rule() {
    for rule in [Rule::fine(2, 1), Rule::whole(3, 1, 2), Rule::whole(2, 2, 2), Rule::with_holes(3, 1, 2)] {
        check(rule);
    }
}

/// What `scripts/model-check` runs.
#[test]
#[ignore = "takes minutes"]
fn no_order_of_three_faults_breaks_the_rule() {
    let all =
        [Rule::fine(2, 2), Rule::whole(3, 2, 2), Rule::whole(2, 3, 2), Rule::whole(3, 3, 1), Rule::with_holes(3, 2, 2)];
    let states: usize = all.map(check).into_iter().sum();
    assert!(states > 1_000_000, "only {states} states");
}

/// Commits matter to people and for a store that has lost everything; the positions alone keep every event.
#[test]
fn without_true_commits_nothing_is_lost() {
    for guard in Guard::NOT_NEEDED {
        check(Rule { broken: Some(guard), ..Rule::whole(2, 2, 1) });
    }
}

/// What is too much for all orders: more records, faults and batches, in orders that are drawn.
#[test]
fn long_lives_keep_the_rule() {
    let lives = Rule { in_flight: 4, ..Rule::fine(7, 12) }.checker().target_state_count(100_000);
    let lives = lives.spawn_simulation(1, UniformChooser).join();
    for property in [TRUE_POSITIONS, IN_ORDER, TRUE_COMMIT, SAYS_SO] {
        lives.assert_no_discovery(property);
    }
}

/// The positions expire with the records that they cover.
#[test]
fn a_clock_that_jumps_loses_nothing() {
    check(Rule { clock_jumps: true, ..Rule::fine(2, 1) });
}
