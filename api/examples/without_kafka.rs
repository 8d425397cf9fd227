//! The API whose records go nowhere: what HTTP, parsing and replying cost alone. The ceiling of the benchmarks.
//!
//! Takes the settings of `user-activity-api`; Kafka and Redis need not be there.

use std::sync::Arc;

use api::{App, Cli, Config};
use common::event::UserEvent;
use common::kafka::{Delivered, Published, Publisher};
use common::store::Store;
use common::{config, shutdown};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Answers at once and keeps nothing.
struct Nowhere;

impl Publisher for Nowhere {
    fn publish(&self, _: &UserEvent<'_>, _: &[u8]) -> Published {
        Box::pin(std::future::ready(Ok(Delivered { partition: 0, offset: 0 })))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli: Cli = config::parse(std::env::args_os(), config::process_environment)
        .map_err(|unusable| anyhow::anyhow!("settings: exit code {}", unusable.report()))?;
    let config = Config::check(&cli)?;
    config.log.start();
    let shutdown = shutdown::on_signal()?;
    let listener = api::bind(&config).await?;
    let store = Store::new(&config.redis)?;
    let app = Arc::new(App::new(Arc::new(Nowhere), store, config, shutdown.clone()));
    api::server::serve(app, listener, shutdown).await;
    Ok(())
}
