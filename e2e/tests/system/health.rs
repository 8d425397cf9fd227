//! What the system says about itself.

use anyhow::ensure;
use e2e::{client::Reply, eventually, world::World};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn health_is_degraded_without_a_worker_and_ok_with_one() {
    let world = World::shared();
    let mut api = world.start_api().await;
    let health =
        async |status: u16| -> anyhow::Result<Value> { api.client.get("/health").await?.with_status(status)?.parse() };
    let degraded = eventually("both engines are seen", async || {
        let degraded = health(503).await?;
        ensure!(degraded["producer"] == "connected" && degraded["store"] == "connected", "{degraded}");
        Ok(degraded)
    })
    .await;
    assert_eq!(degraded["status"], "degraded");
    assert_ne!(degraded["consumer"], "connected");
    assert!(degraded.to_string().contains("worker"), "the reason is given: {degraded}");

    let mut worker = world.start_worker().await;
    let healthy = eventually("health is ok", async || health(200).await).await;
    assert_eq!(healthy["status"], "ok");
    for part in ["producer", "store", "consumer"] {
        assert_eq!(healthy[part], "connected", "{part}");
    }

    worker.process.kill().await;
    eventually("the dead worker is noticed", async || {
        let degraded = health(503).await?;
        ensure!(degraded["consumer"] != "connected", "{degraded}");
        Ok(())
    })
    .await;
    // Readiness does not depend on workers.
    api.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_refused_in_the_one_format() {
    let api = World::shared().start_api().await;
    for path in ["/nothing", "/events", "/events/generate/more", "/%00", "/events/generate%2F"] {
        let reply = api.client.get(path).await.unwrap();
        reply.problem(404).unwrap_or_else(|error| panic!("{path}: {error:#}"));
    }
    let refused = [
        ("DELETE", "/events/processed", "GET"),
        ("POST", "/events/processed", "GET"),
        ("GET", "/events/generate", "POST"),
        ("PUT", "/events/generate", "POST"),
        ("POST", "/events/0190a5b0-0000-7000-8000-000000000000", "GET"),
        ("POST", "/health", "GET"),
    ];
    for (method, path, allowed) in refused {
        let request = api.client.request(method.parse().unwrap(), path);
        let reply = Reply::of(request).await.unwrap();
        reply.problem(405).unwrap_or_else(|error| panic!("{method} {path}: {error:#}"));
        let allow = reply.header("allow");
        assert!(allow.split(", ").any(|one| one == allowed), "{method} {path}: Allow: {allow}");
    }
}
