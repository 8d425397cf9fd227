//! A Redis Cluster of a test's own, for tests that move its slots and kill its nodes.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use futures::future::join_all;

use crate::{eventually, redis_server::RedisServer};

const PRIMARIES: usize = 3;
const SLOTS: usize = 16_384;

/// For how long a node may be silent until the others take it for dead: much longer than a busy machine keeps one from
/// its work, and while that is what a test waits for, not much longer than it must be.
const STEADY: Duration = Duration::from_secs(15);
const MORTAL: Duration = Duration::from_secs(3);
/// For the keys of a step of a slot's move, in milliseconds.
const MIGRATION: usize = 20_000;

/// Three primaries with a replica each.
#[derive(Debug)]
pub struct RedisCluster {
    /// The primaries first, then their replicas in the same order, as it was at the start.
    pub nodes: Vec<RedisServer>,
    /// One that is frozen, by number: it is not to be asked.
    frozen: Option<usize>,
}

impl RedisCluster {
    /// A Cluster whose nodes agree on each other and whose replicas have what their primaries have.
    pub async fn start() -> Self {
        let mut nodes: Vec<_> = (0..2 * PRIMARIES).map(|_| RedisServer::reserve_node(STEADY)).collect();
        join_all(nodes.iter_mut().map(RedisServer::up)).await;
        let cluster = Self { nodes, frozen: None };
        cluster.join().await;
        cluster
    }

    async fn join(&self) {
        let (first, others) = self.nodes.split_first().expect("six nodes");
        for (number, node) in self.nodes.iter().enumerate().take(PRIMARIES) {
            let (from, to) = (number * SLOTS / PRIMARIES, (number + 1) * SLOTS / PRIMARIES - 1);
            node.command_line::<()>(&format!("CLUSTER ADDSLOTSRANGE {from} {to}")).await;
            // Each an own one, so that none of two has to give way.
            node.command_line::<()>(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1)).await;
        }
        for node in others {
            let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", first.port(), first.port() + 1);
            node.command_line::<()>(&meet).await;
        }
        for (number, replica) in self.nodes.iter().enumerate().skip(PRIMARIES) {
            let primary = self.id(number - PRIMARIES).await;
            let replicate = format!("CLUSTER REPLICATE {primary}");
            eventually("the replica knows its primary", async || replica.try_command_line::<()>(&replicate).await)
                .await;
        }
        self.agrees().await;
        for replica in &self.nodes[PRIMARIES..] {
            eventually("the replica is in step", async || {
                let info: String = replica.try_command_line("INFO replication").await?;
                ensure!(info.contains("master_link_status:up"), "{info}");
                Ok(())
            })
            .await;
        }
    }

    /// The nodes that run and are not frozen.
    fn awake(&self) -> impl Iterator<Item = &RedisServer> {
        let asleep = |number| self.frozen == Some(number);
        self.nodes
            .iter()
            .enumerate()
            .filter(move |(number, node)| node.runs() && !asleep(*number))
            .map(|(_, node)| node)
    }

    /// Waits until every running node finds all slots served and all others known.
    pub async fn agrees(&self) {
        for node in self.awake() {
            eventually("the Cluster agrees", async || {
                let info: String = node.try_command_line("CLUSTER INFO").await?;
                let well = ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:6"];
                ensure!(well.iter().all(|part| info.contains(part)), "{info}");
                Ok(())
            })
            .await;
        }
    }

    /// What `REDIS_URL` says of it.
    #[must_use]
    pub fn url(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    /// The nodes that are primaries now, by number.
    ///
    /// # Errors
    /// When a node does not say.
    pub async fn primaries(&self) -> Result<Vec<usize>> {
        let mut primaries = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let info: String = node.try_command_line("INFO replication").await?;
            primaries.extend(info.contains("role:master").then_some(number));
        }
        ensure!(primaries.len() == PRIMARIES, "the primaries are {primaries:?}");
        Ok(primaries)
    }

    /// A slot that a primary has keys in.
    ///
    /// # Errors
    /// When it has none, or does not answer.
    pub async fn slot_with_keys(&self, primary: usize) -> Result<usize> {
        let node = &self.nodes[primary];
        let key: Vec<u8> = node.try_command_line("RANDOMKEY").await?;
        node.send(redis::cmd("CLUSTER").arg("KEYSLOT").arg(key)).await
    }

    /// How many keys a primary has in a slot.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn keys_in(&self, primary: usize, slot: usize) -> Result<usize> {
        self.nodes[primary].try_command_line(&format!("CLUSTER COUNTKEYSINSLOT {slot}")).await
    }

    /// The primary, by number, that serves the slot of `key` at the start, and the slot.
    pub async fn place_of(&self, key: &str) -> (usize, usize) {
        let slot: usize = self.nodes[0].command_line(&format!("CLUSTER KEYSLOT {key}")).await;
        let owner = (0..PRIMARIES).find(|number| slot < (number + 1) * SLOTS / PRIMARIES).expect("a slot");
        (owner, slot)
    }

    /// Announces that `slot` moves, and moves none of its keys.
    pub async fn begin_move(&self, slot: usize, from: usize, to: usize) {
        let importing = format!("CLUSTER SETSLOT {slot} IMPORTING {}", self.id(from).await);
        self.nodes[to].command_line::<()>(&importing).await;
        let migrating = format!("CLUSTER SETSLOT {slot} MIGRATING {}", self.id(to).await);
        self.nodes[from].command_line::<()>(&migrating).await;
    }

    /// Moves up to so many keys of `slot`; false when there are none left.
    pub async fn move_keys(&self, slot: usize, from: usize, to: usize, most: usize) -> bool {
        let keys: Vec<Vec<u8>> = self.nodes[from].command_line(&format!("CLUSTER GETKEYSINSLOT {slot} {most}")).await;
        if !keys.is_empty() {
            let mut migrate = redis::cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(self.nodes[to].port()).arg("").arg(0).arg(MIGRATION).arg("KEYS").arg(&keys);
            self.nodes[from].send::<()>(&migrate).await.expect("the keys can be moved");
        }
        !keys.is_empty()
    }

    /// Ends a move, all keys being there: everyone hears who serves the slot now.
    ///
    /// # Panics
    /// When a node does not say whether it is a primary.
    pub async fn end_move(&self, slot: usize, from: usize, to: usize) {
        let served = format!("CLUSTER SETSLOT {slot} NODE {}", self.id(to).await);
        let primaries = self.primaries().await.expect("three primaries");
        let others = primaries.into_iter().filter(|number| ![from, to].contains(number));
        for number in [to, from].into_iter().chain(others) {
            self.nodes[number].command_line::<()>(&served).await;
        }
    }

    /// The replica of a primary: two nodes have the same slots for good, whichever of them serves these.
    #[must_use]
    pub fn replica_of(&self, primary: usize) -> &RedisServer {
        &self.nodes[(primary + PRIMARIES) % (2 * PRIMARIES)]
    }

    /// From now on a primary's replica gets nothing any more: what the primary acknowledges is on it alone.
    pub async fn cut_off_replica_of(&self, primary: usize) {
        // Where the one is refused, a replica tries the other.
        self.nodes[primary].command_line::<()>("ACL SETUSER default -psync -sync").await;
        self.nodes[primary].command_line::<()>("CLIENT KILL TYPE replica").await;
        eventually("the replica is cut off", async || {
            let info: String = self.replica_of(primary).try_command_line("INFO replication").await?;
            ensure!(info.contains("master_link_status:down"), "{info}");
            Ok(())
        })
        .await;
    }

    /// SIGKILL for a primary. The others miss it soon.
    pub async fn kill(&mut self, primary: usize) {
        self.nodes[primary].kill().await;
        self.miss_after(MORTAL).await;
    }

    /// SIGSTOP for a primary. The others miss it soon.
    pub async fn freeze(&mut self, primary: usize) {
        self.nodes[primary].freeze();
        self.frozen = Some(primary);
        self.miss_after(MORTAL).await;
    }

    /// Ends [`RedisCluster::freeze`].
    pub fn thaw(&mut self) {
        if let Some(number) = self.frozen.take() {
            self.nodes[number].thaw();
        }
    }

    /// A primary gives its place to its replica, which lacks nothing.
    pub async fn fail_over(&self, primary: usize) {
        let replica = self.replica_of(primary);
        // Refused while it is not in step.
        eventually("the replica is a primary", async || {
            let info: String = replica.try_command_line("INFO replication").await?;
            if info.contains("role:slave") {
                replica.try_command_line::<()>("CLUSTER FAILOVER").await?;
            }
            ensure!(info.contains("role:master"), "{info}");
            Ok(())
        })
        .await;
        self.agrees().await;
    }

    /// Waits until a node that was replaced, and runs again, is the replica of its successor and in step.
    pub async fn is_replica(&self, node: usize) {
        eventually("the node is a replica in step", async || {
            let info: String = self.nodes[node].try_command_line("INFO replication").await?;
            ensure!(info.contains("role:slave") && info.contains("master_link_status:up"), "{info}");
            Ok(())
        })
        .await;
        self.agrees().await;
    }

    /// Waits until the replica of a primary that was killed or frozen has taken its place.
    pub async fn replica_takes_over(&self, primary: usize) {
        eventually("the replica is a primary", async || {
            let info: String = self.replica_of(primary).try_command_line("INFO replication").await?;
            ensure!(info.contains("role:master"), "{info}");
            Ok(())
        })
        .await;
        self.agrees().await;
        self.miss_after(STEADY).await;
    }

    async fn miss_after(&self, silence: Duration) {
        let words = format!("CONFIG SET cluster-node-timeout {}", silence.as_millis());
        for node in self.awake() {
            node.command_line::<()>(&words).await;
        }
    }

    /// The hashes whose keys match a pattern, on all primaries as they were at the start.
    ///
    /// # Errors
    /// When a primary does not answer.
    pub async fn hashes(&self, pattern: &str) -> Result<Vec<BTreeMap<String, String>>> {
        let mut hashes = Vec::new();
        for primary in &self.nodes[..PRIMARIES] {
            for key in primary.try_command_line::<Vec<String>>(&format!("KEYS {pattern}")).await? {
                hashes.push(primary.try_command_line(&format!("HGETALL {key}")).await?);
            }
        }
        Ok(hashes)
    }

    async fn id(&self, number: usize) -> String {
        self.nodes[number].command_line("CLUSTER MYID").await
    }
}
