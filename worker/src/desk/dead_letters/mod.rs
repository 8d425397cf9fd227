//! `dead-letters list`, `show` and `redrive`: what could not be an event, why, and its way back. In the order a letter
//! passes it:
//!
//! 1. [`reader`](super::reader): the dead-letter topic, from its beginning to where it ended at the start;
//! 2. [`letter`]: a record of it, with where it came from and why;
//! 3. [`filter`]: which of them are meant;
//! 4. [`list`] and [`show`] print them, [`redrive`] publishes them again, with an [`outcome`]; [`lineage`] tells which have
//!    a later one in their place, [`progress`] remembers how far that is.
//!
//! Redis is not needed for any of it. Looking changes nothing: no group is joined, nothing is committed.

pub mod filter;
pub mod letter;
pub mod lineage;
pub mod list;
pub mod outcome;
pub mod progress;
pub mod redrive;
pub mod show;
mod text;

use std::io::{self, Write};

use clap::Subcommand;
use common::shutdown::{Shutdown, on_signal};

use self::list::List;
use self::redrive::Redrive;
use self::show::Show;
use crate::Config;

/// What to do with dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum DeadLettersCommand {
    /// List dead letters: where each came from and why it could not be an event.
    List(List),
    /// Show one dead letter in full: its headers, key and value.
    Show(Show),
    /// Publish dead letters to KAFKA_TOPIC again, after their cause is gone.
    Redrive(Redrive),
}

impl DeadLettersCommand {
    /// # Errors
    /// When arguments don't go together.
    pub fn check(&self) -> anyhow::Result<()> {
        match self {
            Self::List(List { filter, .. }) | Self::Redrive(Redrive { filter, .. }) => filter.check(),
            Self::Show(_) => Ok(()),
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When Kafka has no answer, an argument makes no sense, there is no such letter, or a redrive was not completed.
pub async fn run(config: &Config, command: &DeadLettersCommand) -> anyhow::Result<()> {
    match command {
        DeadLettersCommand::List(request) => print_list(config, request).await,
        DeadLettersCommand::Show(request) => {
            let letter = show::show(config, request).await?;
            let page = show::page(&letter, &config.kafka.topics.dead_letters);
            unless_closed(io::stdout().write_all(page.as_bytes()))
        }
        DeadLettersCommand::Redrive(request) => print_redrive(config, request, &on_signal()?).await,
    }
}

async fn print_list(config: &Config, request: &List) -> anyhow::Result<()> {
    let print = |line: &str| writeln!(io::stdout(), "{line}");
    if !request.json {
        unless_closed(print(&list::heading()))?;
    }
    let counts = list::list(config, request, |letter| print(&list::line(letter, request.json))).await;
    match counts {
        Ok(counts) => say(io::stderr(), &counts.to_string()),
        Err(error) => unless_closed(Err(error.downcast()?))?,
    }
    Ok(())
}

async fn print_redrive(config: &Config, request: &Redrive, shutdown: &Shutdown) -> anyhow::Result<()> {
    let told = |letter: &_, verdict: &_| {
        outcome::line(letter, verdict, request.dry_run).iter().for_each(|line| say(io::stdout(), line));
    };
    let outcome = redrive::redrive(config, request, shutdown, told).await?;
    say(io::stdout(), &outcome.to_string());
    outcome.into_result()
}

/// Whoever reads may stop early, as `head` does.
fn unless_closed(written: io::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// That nobody reads it is no reason to end.
fn say(mut to: impl Write, line: &str) {
    writeln!(to, "{line}").unwrap_or_default();
}
