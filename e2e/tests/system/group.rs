//! Workers that share the partitions, come, go, hang and die.

use anyhow::ensure;
use e2e::{PATIENCE, eventually, load::Load, oracle::Journal, process::Signal, world::World};

/// Enough posts for each step to have traffic before, during and after it.
const STEP: usize = 60;

/// Waits until the group has exactly these many members, each with its even share.
async fn settles(world: &World, members: usize) {
    let kafka = world.kafka();
    eventually(&format!("{members} members share the partitions"), async || {
        let shares = kafka.members(&world.group)?;
        ensure!(shares.len() == members, "{shares:?}");
        ensure!(shares.values().all(|share| share.len() == 6 / members), "{shares:?}");
        let mut all = shares.into_values().flatten().collect::<Vec<_>>();
        all.sort_unstable();
        ensure!(all == [0, 1, 2, 3, 4, 5], "{all:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_workers_split_six_partitions_and_each_event_is_stored_once_while_members_come_and_go() {
    // Only the one that is killed is to be missed soon.
    let world = World::shared();
    let mortal = world.clone().with_short_session();
    let (api, first) = world.start().await;
    let second_api = world.start_api().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client, &second_api.client], &journal);
    let mut workers = vec![first, mortal.start_worker().await, world.start_worker().await];

    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        // Each has its share when one of them leaves.
        settles(&world, 3).await;
        journal.grows_by(STEP).await;
        let mut leaving = workers.remove(0);
        leaving.process.signal(signal);
        let status = leaving.process.ended_within(PATIENCE).await;
        assert_eq!(status.success(), signal == Signal::SIGTERM, "{signal}: {status}");
        workers.push(world.start_worker().await);
    }
    settles(&world, 3).await;
    journal.grows_by(STEP).await;
    load.stop().await;
    journal.holds(&api.client).await;
    eventually("both APIs list the same", async || {
        ensure!(api.client.list().await? == second_api.client.list().await?);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_again_and_again_loses_and_doubles_nothing() {
    let world = World::shared().with_short_session();
    let (api, mut worker) = world.start().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client], &journal);
    for round in 0..4 {
        journal.grows_by(STEP).await;
        // In the middle of its work, whatever that is: rounds differ.
        worker.process.kill().await;
        journal.grows_by(STEP * round).await;
        worker = world.start_worker().await;
        let before = eventually("the list is there", async || Ok(api.client.list().await?.len())).await;
        eventually("the new worker processes", async || {
            ensure!(api.client.list().await?.len() > before);
            Ok(())
        })
        .await;
    }
    load.stop().await;
    journal.holds(&api.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_wakes_up_as_a_zombie_loses_and_doubles_nothing() {
    let world = World::shared().with_short_session();
    let (api, zombie) = world.start().await;
    let journal = Journal::default();
    let load = Load::start(&[&api.client], &journal);
    journal.grows_by(STEP).await;
    zombie.process.signal(Signal::SIGSTOP);
    let _heir = world.start_worker().await;
    // The group waits for the session of the frozen member to end, then the heir has it all.
    settles(&world, 1).await;
    journal.grows_by(STEP).await;
    zombie.process.signal(Signal::SIGCONT);
    settles(&world, 2).await;
    journal.grows_by(STEP).await;
    load.stop().await;
    journal.holds(&api.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_leaves_hands_its_partitions_over_at_once() {
    // Who has said no good-bye is missed only after this, long after we have lost our patience.
    let world = World::shared().with("KAFKA_CONSUMER_SESSION_TIMEOUT_MS", "120000");
    let (_api, mut leaving) = world.start().await;
    let _staying = world.start_worker().await;
    settles(&world, 2).await;
    let status = leaving.process.terminate(PATIENCE).await;
    assert_eq!(status.code(), Some(0));
    settles(&world, 1).await;
}
