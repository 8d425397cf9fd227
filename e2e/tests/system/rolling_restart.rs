//! A rolling restart under load, as docs/OPERATIONS.md describes it: every post is answered 201, no event is lost, none
//! is doubled.

use std::{
    io::ErrorKind,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::ensure;
use e2e::{
    PATIENCE,
    client::Client,
    eventually,
    oracle::{Attempt, Journal, Outcome, Promise},
    process::Signal,
    service::Service,
    world::World,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
};

use crate::in_flight;

/// Enough posts for each step to have traffic before, during and after it.
const STEP: usize = 100;
const USERS: usize = 8;
/// Between two posts of one user: a load that leaves two cores room for what is tested.
const PACE: Duration = Duration::from_millis(20);

/// A load balancer: spreads posts over the replicas in rotation, and tries none of them twice.
#[derive(Clone)]
struct Balancer(Arc<Mutex<Vec<Replica>>>);

/// Cloned for each request under way, so that the clones are counted.
#[derive(Clone)]
struct Replica(Arc<Client>);

impl Balancer {
    fn over(services: &[Service]) -> Self {
        let balancer = Self(Arc::default());
        services.iter().for_each(|service| balancer.put_in(service));
        balancer
    }

    fn put_in(&self, service: &Service) {
        self.0.lock().unwrap().push(Replica(Arc::new(service.client.clone())));
    }

    /// Takes the one out that has been in for longest, and returns once its last request is answered: what the removed
    /// endpoint and the `preStop` hook are for in Kubernetes.
    async fn take_out_first(&self) {
        let leaving = self.0.lock().unwrap().remove(0);
        eventually("the replica has answered all that it was sent", async || {
            ensure!(Arc::strong_count(&leaving.0) == 1, "{} requests", Arc::strong_count(&leaving.0) - 1);
            Ok(())
        })
        .await;
    }

    fn next(&self) -> Replica {
        fastrand::choice(&*self.0.lock().unwrap()).expect("a replica in rotation").clone()
    }

    /// Users that post one event after the other until told to stop.
    fn load(&self, journal: &Journal, stopped: &watch::Receiver<bool>) -> JoinSet<()> {
        let users = (0..USERS).map(|number| {
            let (balancer, journal, stopped) = (self.clone(), journal.clone(), stopped.clone());
            async move {
                for sequence in 0.. {
                    if *stopped.borrow() {
                        break;
                    }
                    let replica = balancer.next();
                    journal.must_post(&replica.0, &format!("user-{number}"), sequence).await.expect("no post fails");
                    drop(replica);
                    tokio::time::sleep(PACE).await;
                }
            }
        });
        users.collect()
    }
}

/// A post of which the server has the head and half of the body.
struct HalfPost {
    stream: TcpStream,
    attempt: Attempt,
}

impl HalfPost {
    async fn begin(api: &Service, sequence: u64) -> Self {
        let attempt = Attempt::new("slow", sequence);
        let body = attempt.body();
        let mut stream = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
        let head = format!("POST /events/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{}", &body[..body.len() / 2]).as_bytes()).await.unwrap();
        in_flight(api, 1).await;
        Self { stream, attempt }
    }

    /// Sends the rest; the event must be acknowledged.
    async fn finish(mut self, journal: &Journal) {
        let body = self.attempt.body();
        self.stream.write_all(&body.as_bytes()[body.len() / 2..]).await.expect("the connection is still there");
        let mut reply = String::new();
        self.stream.read_to_string(&mut reply).await.expect("a whole reply");
        assert!(reply.starts_with("HTTP/1.1 201 "), "{reply:?}");
        let (_, json) = reply.split_once("\r\n\r\n").unwrap();
        let promise = Promise::of(&serde_json::from_str(json).unwrap()).unwrap();
        journal.record(self.attempt, Outcome::Acknowledged(promise));
    }
}

/// Stops a replica that is out of rotation, with a post in flight.
async fn stop_api(api: &mut Service, journal: &Journal, sequence: u64) {
    let post = HalfPost::begin(api, sequence).await;
    api.process.signal(Signal::SIGTERM);
    eventually("it takes no further connection", async || {
        let refused = TcpStream::connect(("127.0.0.1", api.port)).await;
        ensure!(refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
        Ok(())
    })
    .await;
    post.finish(journal).await;
    let status = api.process.ended_within(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "the API handed everything over");
}

/// Waits until the group has these many members, and each of them partitions.
pub(crate) async fn settles(world: &World, members: usize) {
    let kafka = world.kafka();
    eventually(&format!("{members} members share the partitions"), async || {
        let shares = kafka.members(&world.group)?;
        ensure!(shares.len() == members && shares.values().all(|share| !share.is_empty()), "{shares:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_no_post_and_loses_and_doubles_nothing() {
    // Half a post is waited for until its other half comes.
    let world = World::shared().with("HTTP_READ_TIMEOUT", "60s");
    let (api, worker) = world.start().await;
    let mut apis = vec![api, world.start_api().await];
    let mut workers = vec![worker, world.start_worker().await];
    settles(&world, 2).await;
    let (journal, balancer) = (Journal::default(), Balancer::over(&apis));
    let (stop, stopped) = watch::channel(false);
    let users = balancer.load(&journal, &stopped);
    journal.grows_by(STEP).await;

    // Workers first, as the manual says.
    for _ in 0..2 {
        let status = workers.remove(0).process.terminate(PATIENCE).await;
        assert_eq!(status.code(), Some(0), "the worker handed everything over");
        workers.push(world.start_worker().await);
        settles(&world, 2).await;
        journal.grows_by(STEP).await;
    }
    for sequence in 0..2 {
        balancer.take_out_first().await;
        stop_api(&mut apis.remove(0), &journal, sequence).await;
        journal.grows_by(STEP).await;
        let next = world.start_api().await;
        balancer.put_in(&next);
        apis.push(next);
        journal.grows_by(STEP).await;
    }
    stop.send_replace(true);
    users.join_all().await;
    let failed = journal.count(|outcome| !matches!(outcome, Outcome::Acknowledged(_)));
    assert_eq!(failed, 0, "posts without a 201");
    journal.holds(&apis[0].client).await;
}
