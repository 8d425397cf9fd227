//! A run without further faults: does it come to rest, and is everything stored then?

use crate::actions::{Action, Which};
use crate::guards::Guard;
use crate::world::World;

/// Far more than any run needs: one that has not come to rest by then never will.
const MOST_STEPS: usize = 500;

/// What becomes of the writes whose senders have given up, and when a zombie learns that it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// They arrive, and the zombie has its own answered first.
    ZombieFirst,
    /// They never arrive, and the zombie learns it at once.
    ZombieLast,
}

const ORDERS: [Order; 2] = [Order::ZombieFirst, Order::ZombieLast];

/// Whether all is well in the end, whichever way it gets there.
pub(crate) fn ends_well(world: &World, broken: Option<Guard>, is_well: fn(&World) -> bool) -> bool {
    ORDERS.into_iter().all(|order| {
        let mut world = world.clone();
        world.calm(order == Order::ZombieFirst, broken);
        (0..MOST_STEPS).any(|_| step(&mut world, order, broken).is_none()) && is_well(&world)
    })
}

/// A way on which not all is well in the end.
pub(crate) fn bad_end(
    world: &World,
    broken: Option<Guard>,
    is_well: fn(&World) -> bool,
) -> Option<Vec<(Action, World)>> {
    let run = |order| {
        let mut world = world.clone();
        world.calm(order == Order::ZombieFirst, broken);
        let next = || step(&mut world, order, broken).map(|action| (action, world.clone()));
        std::iter::from_fn(next).take(MOST_STEPS).collect()
    };
    let mut runs = ORDERS.into_iter().map(run);
    runs.find(|run: &Vec<_>| !is_well(run.last().map_or(world, |(_, world)| world)))
}

/// Does the first thing that can be done, if there is any.
fn step(world: &mut World, order: Order, broken: Option<Guard>) -> Option<Action> {
    let zombie = 1 - world.owner;
    let first = [Action::Notice(zombie)];
    let mut all = (order == Order::ZombieFirst)
        .then(|| answers(zombie))
        .into_iter()
        .flatten()
        .chain(first)
        .chain([0, 1].into_iter().flat_map(|worker| answers(worker).into_iter().chain(work(worker))));
    all.find(|action| world.act(*action, broken))
}

/// What is on its way arrives.
fn answers(worker: usize) -> [Action; 3] {
    [Action::Apply(worker, Which::Both), Action::ApplyPlacing(worker, Which::Both), Action::Answer(worker)]
}

/// A record alone, or that behind a hole.
fn work(worker: usize) -> [Action; 5] {
    let read = [1, 2].map(|offsets| Action::Send(worker, offsets));
    [Action::Heartbeat(worker), Action::Look(worker), read[0], read[1], Action::Settle(worker)]
}
