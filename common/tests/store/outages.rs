//! A Redis that hangs, goes away, comes back or lets nobody in.

use std::time::Duration;

use common::config::{RedisSettings, Secret};
use common::event::Timestamp;
use common::store::{Batch, Heartbeat, Query, ReadAhead, Store, StoreError, UserIndex, Walk};
use futures::TryFutureExt;
use futures::future::{BoxFuture, join_all};
use tokio::time::{sleep, timeout};

use crate::support::event_json;
use crate::world::{PATIENCE, RETENTION, Server, TIMEOUT, World, eventually, stored};

/// For one exchange with a Redis that is to be missed.
const SHORT: Duration = Duration::from_secs(2);

/// Ends behind every exchange that was begun before it and ends in time. One clock tells both in one thread: what makes the
/// exchanges late on a busy machine makes this late as well.
async fn half_as_long_again() {
    sleep(SHORT * 3 / 2).await;
}

impl World {
    /// Every kind of exchange at once; how each ended.
    async fn everything(&self) -> Vec<Result<(), StoreError>> {
        let events = vec![stored(&event_json("e", "u", Timestamp::now(), "{}"), 1)];
        let batch = Batch { events, ..Batch::default() };
        let all = Query::default();
        let heartbeat = Heartbeat::default();
        let exchanges: [BoxFuture<'_, Result<(), StoreError>>; 7] = [
            Box::pin(self.store.write(&self.scope, &batch, UserIndex::On).map_ok(drop)),
            Box::pin(self.store.positions(&self.scope, &[0]).map_ok(drop)),
            Box::pin(self.store.page(&all, None, 10).map_ok(drop)),
            Box::pin(async { ReadAhead::from(Walk::new(&self.store, &all, None, true).await?).step().await.map(drop) }),
            Box::pin(self.store.event("e").map_ok(drop)),
            Box::pin(self.store.check()),
            Box::pin(self.store.beat(&heartbeat)),
        ];
        join_all(exchanges).await
    }

    async fn everything_fails_in_time(&self) {
        let ends = tokio::select! {
            biased;
            ends = self.everything() => ends,
            () = half_as_long_again() => panic!("not everything has failed within {SHORT:?}"),
        };
        for end in ends {
            assert!(matches!(end, Err(StoreError::Unreachable { .. })), "{end:?}");
        }
    }

    /// In the end: a busy machine may take longer than `SHORT` for what works.
    async fn everything_works(&self) {
        eventually(async || self.everything().await.into_iter().collect::<Result<(), _>>()).await;
    }
}

#[tokio::test]
async fn a_redis_that_hangs_is_an_error_in_time_and_the_same_store_works_afterwards() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url()).again(SHORT, RETENTION);
    world.everything_works().await;
    server.freeze();
    world.everything_fails_in_time().await;
    // By now the connection itself has to be made anew, which hangs as well.
    world.everything_fails_in_time().await;
    server.thaw();
    world.everything_works().await;
}

#[tokio::test]
async fn a_redis_that_is_killed_is_an_error_in_time_and_the_same_store_works_with_the_next_one() {
    let mut server = Server::start(&[]).await;
    let world = World::on(&server.url()).again(SHORT, RETENTION);
    world.everything_works().await;
    server.kill();
    world.everything_fails_in_time().await;
    world.everything_fails_in_time().await;
    server.restart().await;
    world.everything_works().await;
}

/// As a load balancer does with idle ones, Redis with `timeout` set, or a Redis that was restarted.
#[tokio::test]
async fn who_reads_over_connections_that_were_cut_while_nobody_used_them_does_not_notice() {
    const PAGES: usize = 4;
    let server = Server::start(&[]).await;
    let world = World::on(&server.url()).again(TIMEOUT, RETENTION);
    let all = Query::default();
    let client = redis::Client::open(server.url()).unwrap();
    let mut operator = client.get_multiplexed_async_connection().await.unwrap();
    world.everything_works().await;
    for _ in 0..3 {
        // Each of the connections that pages may have is in use.
        for _ in 0..PAGES {
            world.store.page(&all, None, 10).await.unwrap();
        }
        let mut cut = redis::cmd("CLIENT");
        cut.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
        assert!(cut.query_async::<usize>(&mut operator).await.unwrap() >= 3);
        for _ in 0..PAGES {
            assert_eq!(world.store.page(&all, None, 10).await.unwrap().events.len(), 1);
        }
        assert!(world.store.event("e").await.unwrap().is_some());
        let walk = Walk::new(&world.store, &all, None, true).await.unwrap();
        assert_eq!(ReadAhead::from(walk).step().await.unwrap().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn many_callers_of_a_redis_that_is_away_fail_together_not_one_after_the_other() {
    let server = Server::start(&[]).await;
    let world = World::on(&server.url()).again(SHORT, RETENTION);
    server.freeze();
    // One after the other they would take more than six minutes.
    let ends = timeout(PATIENCE, join_all((0..200).map(|_| world.store.event("e")))).await.unwrap();
    assert!(ends.iter().all(Result::is_err));
}

fn open(url: &str) -> Result<Store, StoreError> {
    Store::new(&RedisSettings { url: Secret::new(url.to_owned()), timeout: TIMEOUT, ..RedisSettings::default() })
}

#[tokio::test]
async fn wrong_credentials_are_a_refusal_not_an_outage() {
    let server = Server::start(&["--requirepass", "right"]).await;
    let without = open(&server.url()).unwrap().check().await.unwrap_err();
    assert!(matches!(without, StoreError::Refused { .. }), "{without}");
    let wrong = open(&server.url().replace("//", "//:wrong@")).unwrap().check().await.unwrap_err();
    assert!(matches!(wrong, StoreError::Refused { .. }), "{wrong}");
}

#[tokio::test]
async fn no_error_shows_credentials() {
    const PASSWORD: &str = "hunter2-the-password";
    let server = Server::start(&["--requirepass", "another"]).await;
    let mut errors = Vec::new();
    for url in [server.url(), "redis://127.0.0.1:9".into()] {
        for login in [format!("//:{PASSWORD}@"), format!("//user:{PASSWORD}@")] {
            errors.push(open(&url.replace("//", &login)).unwrap().check().await.unwrap_err());
        }
    }
    for unusable in
        ["redis://user:PASSWORD@host:port", "PASSWORD@host", "redis://u:PASSWORD@host/zero", "x://:PASSWORD@h"]
    {
        let url = unusable.replace("PASSWORD", PASSWORD);
        errors.push(open(&url).err().unwrap_or_else(|| panic!("{unusable} can be used")));
    }
    for error in errors {
        assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error:?}");
    }
}
