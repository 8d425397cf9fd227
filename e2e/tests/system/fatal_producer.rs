//! An idempotent producer that has met a fatal error fails every later send. The API must not.

use anyhow::ensure;
use e2e::{eventually, oracle::Attempt, world::World};
use rdkafka::{
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_producer_error_does_not_leave_an_api_that_fails_every_post() {
    // The client library's own broker imitation: a real one cannot be made to answer like this.
    let cluster = MockCluster::new(1).unwrap();
    let world = World::on_kafka(&cluster.bootstrap_servers());
    // It has no way to create a topic when asked to.
    for topic in [&world.topic, &world.dead_letter_topic] {
        cluster.create_topic(topic, 6, 1).unwrap();
    }
    let mut api = world.start_api().await;
    let post = async || api.client.publish(Attempt::new("u", 0).body()).await;
    eventually("posts are taken", async || post().await?.with_status(201)).await;

    // For a request that is alone in flight this means that client and broker disagree for good.
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    let reply = post().await.unwrap();
    assert_ne!(reply.status, 201, "the injected error reached the post");
    reply.unavailable().unwrap();
    eventually("the error was meant to be fatal to the producer", async || {
        ensure!(api.process.output().to_lowercase().contains("fatal"), "{}", api.process.output());
        Ok(())
    })
    .await;

    eventually("posts are taken again", async || {
        ensure!(post().await?.with_status(201)?.status == 201);
        Ok(())
    })
    .await;
    api.process.still_runs().unwrap();
    api.ready().await;
}
