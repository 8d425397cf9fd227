//! From one store to another: a layout is not converted, and neither is a number of buckets. The steps are those of
//! docs/OPERATIONS.md; the version before is played by this one.

use anyhow::ensure;
use e2e::{
    PATIENCE,
    client::{Client, Reply},
    eventually,
    load::Load,
    oracle::Journal,
    redis_server::RedisServer,
    sse::Sse,
    world::World,
};
use reqwest::Method;

/// What both programs say of a store of another layout.
const REFUSAL: &str = "meta:layout says \"3|16|xxh3\", and this version reads layout 4: set another REDIS_KEY_PREFIX, which the \
                       workers fill again from the topic";

/// What `docs/OPERATIONS.md` has operators run to delete a store.
const DELETE: &str = "local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 1000) \
    if #found[2] > 0 then redis.call('UNLINK', unpack(found[2])) end \
    return found[1]";

/// The same programs with another store.
fn on_another_store(world: &World) -> World {
    world.clone().with("REDIS_KEY_PREFIX", format!("next-{}:", world.group))
}

/// Waits until an API lists all that has been acknowledged by now.
async fn has_all(client: &Client, journal: &Journal) {
    let acknowledged = journal.acknowledged();
    eventually("everything is listed", async || {
        let listed = client.list().await?.len();
        ensure!(listed >= acknowledged, "{listed} of {acknowledged}");
        Ok(())
    })
    .await;
}

/// A reader that comes with an id of the old store is told to read the list, and goes on.
async fn follows_on(client: &Client, journal: &Journal, last_id: &str) {
    let mut browser = Sse::open_as_browser(client, Some(last_id)).await.unwrap();
    assert_eq!(browser.next().await.unwrap().unwrap().event, "reset");
    journal.must_post(client, "followed", 0).await.unwrap();
    assert_eq!(browser.event().await.unwrap().user_id, "followed");
    let request = client.request(Method::GET, "/events/stream").header("last-event-id", last_id);
    Reply::of(request).await.unwrap().problem(400).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_under_load_beside_the_old_programs_loses_nothing_and_no_list_lacks_anything_meanwhile() {
    let redis = RedisServer::start().await;
    let old = World::on_redis(&redis.url()).with("REDIS_BUCKETS", "16");
    let (mut old_api, mut old_worker) = old.start().await;
    let journal = Journal::default();
    let load = Load::start(&[&old_api.client], &journal);
    journal.grows_by(200).await;
    let mut stream = Sse::open(&old_api.client, "", None).await.unwrap();
    stream.next().await.unwrap().unwrap();

    // Another group reads the topic from its beginning, while the old one goes on.
    let next =
        on_another_store(&old).with("KAFKA_CONSUMER_GROUP", format!("next-{}", old.group)).with("REDIS_BUCKETS", "");
    let (api, _worker) = next.start().await;
    has_all(&api.client, &journal).await;
    has_all(&old_api.client, &journal).await;

    let moved = Load::start(&[&api.client], &journal);
    load.stop().await;
    for old in [&mut old_api, &mut old_worker] {
        assert_eq!(old.process.terminate(PATIENCE).await.code(), Some(0));
    }
    journal.grows_by(100).await;
    moved.stop().await;
    journal.holds(&api.client).await;
    follows_on(&api.client, &journal, stream.last_id()).await;

    let keys = async || redis.command_line::<Vec<Vec<u8>>>(&format!("KEYS {}:*", old.group)).await.len();
    assert!(keys().await > 200);
    let mut cursor = "0".to_owned();
    loop {
        let script = redis::cmd("EVAL").arg(DELETE).arg(0).arg(&cursor).arg(format!("{}:*", old.group)).take();
        cursor = redis.send(&script).await.unwrap();
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(keys().await, 0);
    journal.holds(&api.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_an_older_layout_is_refused_and_under_load_the_same_group_fills_another_one() {
    let redis = RedisServer::start().await;
    let old = World::on_redis(&redis.url()).with("REDIS_BUCKETS", "16");
    let (old_api, mut old_worker) = old.start().await;
    let journal = Journal::default();
    let load = Load::start(&[&old_api.client], &journal);
    journal.grows_by(200).await;
    has_all(&old_api.client, &journal).await;
    old_worker.process.terminate(PATIENCE).await;
    let mark = format!("{}:meta:layout", old.group);
    let _: String = redis.command_line(&format!("SET {mark} 3|16|xxh3")).await;

    let mut refused = old.spawn_worker();
    assert_eq!(refused.process.ended_within(PATIENCE).await.code(), Some(1));
    assert!(refused.process.output().contains(REFUSAL), "{}", refused.process.output());
    // Posts need no store.
    let unread = old.start_api().await;
    eventually("the API says so as well", async || {
        let health: serde_json::Value = unread.client.get("/health").await?.with_status(503)?.parse()?;
        let reason = health["checks"]["store"]["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains(REFUSAL), "{health}");
        Ok(())
    })
    .await;
    unread.client.get("/events/processed").await.unwrap().unavailable().unwrap();
    journal.must_post(&unread.client, "unread", 0).await.unwrap();
    assert_eq!(redis.command_line::<String>(&format!("GET {mark}")).await, "3|16|xxh3", "it is left as it is");

    let (api, _worker) = on_another_store(&old).start().await;
    has_all(&api.client, &journal).await;
    let moved = Load::start(&[&api.client], &journal);
    load.stop().await;
    journal.grows_by(100).await;
    moved.stop().await;
    journal.holds(&api.client).await;
}
