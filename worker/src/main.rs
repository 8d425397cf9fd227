//! `user-activity-worker`: settings, a port for its health, and [`worker::run`].

use std::process::ExitCode;
use std::time::Duration;

use common::{config, probe, shutdown};
use worker::desk::verify::VerifyArgs;
use worker::desk::{dead_letters, positions, verify};
use worker::{Cli, Command, Config};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli: Cli = match config::parse(std::env::args_os(), config::process_environment) {
        Ok(cli) => cli,
        Err(unusable) => return unusable.report().into(),
    };
    let config = match Config::check(&cli) {
        Ok(config) => config,
        Err(errors) => return config::Unusable::from(errors).report().into(),
    };
    config.log.start();
    let result = match &cli.command {
        Some(Command::Healthcheck(args)) => return probe::run(config.admin_port.number, args).into(),
        Some(Command::Positions(command)) => run(positions::run(&config, command)),
        Some(Command::DeadLetters(command)) => run(dead_letters::run(&config, command)),
        Some(Command::Verify(args)) => return verify(&config, args),
        None => run(work(config)),
    };
    if let Err(error) = &result {
        log::error!("ended: {error:#}");
    }
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn verify(config: &Config, args: &VerifyArgs) -> ExitCode {
    match run(verify::run(config, args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            log::error!("ended: {error:#}");
            verify::COULD_NOT_LOOK.into()
        }
    }
}

async fn work(config: Config) -> anyhow::Result<()> {
    let shutdown = shutdown::on_signal()?;
    let listener = worker::bind(&config).await?;
    // On the heap, because it holds the whole consumer.
    Box::pin(worker::run(config, listener, shutdown)).await?;
    log::info!("drained: everything in flight was stored and committed");
    Ok(())
}

fn run<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // What still runs in a blocking call, such as a look-up at a broker that is away, must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}
