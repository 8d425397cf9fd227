//! Posts under way while a test breaks something.

use std::time::Duration;

use tokio::{sync::watch, task::JoinSet};

use crate::{
    client::Client,
    oracle::{Attempt, Journal},
};

/// How many users a load has.
pub const USERS: usize = 8;

/// Between two posts of one user: a load that leaves two cores room for what is tested.
const PACE: Duration = Duration::from_millis(20);

/// Users that post one event after the other until told to stop.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    users: JoinSet<()>,
}

impl Load {
    /// Starts some users, each with one of the clients, all recorded in `journal`.
    ///
    /// # Panics
    /// Inside a user, when a reply breaks the contract; [`Load::stop`] passes that on.
    #[must_use]
    pub fn start(clients: &[&Client], journal: &Journal) -> Self {
        let (stop, stopped) = watch::channel(false);
        let spread = clients.iter().cycle().take(USERS).enumerate();
        let users = spread.map(|(number, client)| {
            let (client, journal, stopped) = (Client::clone(client), journal.clone(), stopped.clone());
            async move {
                let user = format!("user-{number}-{}", uuid::Uuid::now_v7().simple());
                for sequence in 0.. {
                    if *stopped.borrow() {
                        break;
                    }
                    let attempt = Attempt::new(&user, sequence);
                    journal.post(&client, attempt).await.expect("a reply that keeps the contract");
                    tokio::time::sleep(PACE).await;
                }
            }
        });
        Self { stop, users: users.collect() }
    }

    /// Lets every user finish the post under way, and stops.
    ///
    /// # Panics
    /// When a reply broke the contract.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.users.join_all().await;
    }
}
