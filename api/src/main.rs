//! `user-activity-api`: settings, a port, and [`api::run`].

use std::process::ExitCode;
use std::time::Duration;

use api::{Cli, Command, Config};
use common::{config, probe, shutdown};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli: Cli = match config::parse(std::env::args_os(), config::process_environment) {
        Ok(cli) => cli,
        Err(unusable) => return unusable.report().into(),
    };
    if let Some(Command::HashKey(args)) = &cli.command {
        return api::hash_key::run(args);
    }
    let config = match Config::check(&cli) {
        Ok(config) => config,
        Err(errors) => return config::Unusable::from(errors).report().into(),
    };
    if let Some(Command::Healthcheck(args)) = &cli.command {
        // A free admin port is known to the process that took it only.
        let port = if config.admin_port.number == 0 { config.port } else { config.admin_port.number };
        return probe::run(port, args).into();
    }
    config.log.start();
    let result = start(config);
    if let Err(error) = &result {
        log::error!("ended: {error:#}");
    }
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn start(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let shutdown = shutdown::on_signal()?;
        let listeners = api::bind(&config).await?;
        api::run(config, listeners, shutdown).await
    });
    // What still runs in a blocking call, such as a look-up at a broker that is away, must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}
