//! What only a Cluster has: several nodes.

use common::store::{HEARTBEAT_TTL, Heartbeat, Query, StoreError};
use futures::future::join_all;

use crate::BUCKETS;
use crate::support::{event_json, required};
use crate::world::{TIMEOUT, World, ago, stored};

/// Host and port of one node.
fn any_node() -> String {
    required(crate::SHARED).split_once("://").unwrap().1.split(',').next().unwrap().to_owned()
}

fn on(address: &str, words: &[&str]) {
    let client = redis::Client::open(format!("redis://{address}")).unwrap();
    redis::cmd(words[0]).arg(&words[1..]).query::<()>(&mut client.get_connection().unwrap()).unwrap();
}

#[tokio::test]
async fn one_node_of_a_cluster_is_enough_to_find_the_others() {
    let world = World::new();
    let few = World::on(&format!("redis+cluster://{}", any_node()));
    for world in [world, few] {
        let jsons: Vec<String> =
            (0..100).map(|n| event_json(&format!("e-{n}"), "u", ago(HEARTBEAT_TTL), "{}")).collect();
        world.write(jsons.iter().map(|json| stored(json, 1)).collect()).await;
        assert_eq!(world.paged(&Query::default(), 30).await.len(), jsons.len());
    }
}

#[tokio::test]
async fn each_primary_is_looked_at_and_the_one_that_is_set_wrong_is_named() {
    let world = World::new();
    assert_eq!(world.store.inspect().await.unwrap(), [""; 0]);
    // The first three of `redis-cli --cluster create` are the primaries.
    let node = any_node();
    on(&node, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let unfit = world.store.inspect().await;
    on(&node, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let unfit = unfit.unwrap_err();
    assert!(matches!(&unfit, StoreError::Unfit { address, .. } if *address == node), "{unfit}");
}

#[tokio::test]
async fn keys_of_several_nodes_are_written_and_taken_back() {
    let world = World::new();
    let members: Vec<String> = (0..20).map(|n| format!("worker-{n}")).collect();
    for member in &members {
        world.store.beat(&Heartbeat { member: member.clone(), ..Heartbeat::default() }).await.unwrap();
    }
    assert_eq!(world.store.workers().await.unwrap().len(), members.len());
    assert_eq!(world.store.live_workers().await.unwrap().len(), members.len());
    for member in &members {
        world.store.leave(member).await.unwrap();
        assert_eq!(world.command::<i32>(&["EXISTS", &world.key(&format!("wk:{member}"))]), 0);
    }
    assert_eq!(world.store.workers().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn each_bucket_of_a_cluster_has_a_tail_that_can_be_waited_for() {
    let world = World::new();
    let (end, _) = world.store.tail_end().await.unwrap();
    let readers = world.store.tail_readers(&end);
    assert_eq!(readers.len(), BUCKETS, "one connection for each");
    // Longer than the write takes: a reader whose time is over has heard nothing.
    let wait = TIMEOUT / 2;
    let heard = join_all(readers.into_iter().map(|buckets| world.store.tail_next(buckets, &end, wait)));
    let jsons: Vec<String> = (0..200).map(|n| event_json(&format!("e-{n}"), "u", ago(HEARTBEAT_TTL), "{}")).collect();
    let (heard, _) = tokio::join!(heard, async {
        // The readers wait by then, or find it afterwards: both must do.
        world.write(jsons.iter().map(|json| stored(json, 1)).collect()).await
    });
    let records: usize = heard.into_iter().flat_map(Result::unwrap).map(|entry| entry.records.len()).sum();
    assert_eq!(records, jsons.len());
    let all = world.store.tail_after(&end, 100).await.unwrap();
    assert_eq!(all.iter().map(|entry| entry.records.len()).sum::<usize>(), jsons.len());
    assert!(world.store.tail_holds(&end).await.unwrap());
}
