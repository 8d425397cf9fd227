//! Runs the fault driver; see `scripts/chaos`, which builds the binaries and starts it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool says what it has found")]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, builder::PossibleValuesParser, error::ErrorKind};
use e2e::chaos::{
    Plan,
    kinds::Kind,
    mutations::{HEAD, Row, names, table},
    run,
    schedule::{Fault, schedule},
};
use serde::Serialize;

/// A run of this length must meet every mark of its stage.
const LONG: Duration = Duration::from_mins(5);

/// Break the running system in many ways and judge whether it keeps its promises.
#[derive(Debug, Parser)]
#[command(name = "chaos", max_term_width = 120)]
struct Cli {
    /// Where: each stage has something that the usual one never meets
    #[arg(long, default_value_t, value_enum, value_name = "NAME")]
    stage: Kind,
    /// Chooses and times the faults; the same seed gives the same ones
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// How long: the run ends with the fault under way then, but not before it has had every fault if all are asked for and
    /// this is five minutes or more
    #[arg(long, default_value_t = 5.0, value_name = "M")]
    minutes: f64,
    /// Only these faults; all that the stage can have when absent
    #[arg(long, value_delimiter = ',', value_name = "FAULT", value_parser = PossibleValuesParser::new(Fault::all().map(Fault::name)))]
    faults: Vec<String>,
    /// Break this guard; needs binaries with the feature `mutations`
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(names()))]
    mutation: Option<String>,
    /// Break one guard after the other, each with the faults it is there for, and print the table
    #[arg(long)]
    mutations: bool,
    /// Write the report as JSON to this file, too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let report = cli.report.clone();
    if cli.mutations { all_mutations(cli, report.as_deref()).await } else { one_run(cli, report.as_deref()).await }
}

async fn one_run(cli: Cli, file: Option<&Path>) -> Result<ExitCode> {
    let stage = cli.stage;
    let chosen: Vec<_> = cli.faults.iter().filter_map(|name| Fault::named(name)).collect();
    if let Some(fault) = chosen.iter().find(|fault| !stage.has(**fault)) {
        let why = format!("the stage {stage} can't have the fault {fault}");
        Cli::command().error(ErrorKind::ArgumentConflict, why).exit();
    }
    let faults = if chosen.is_empty() { stage.faults() } else { chosen };
    let length = Duration::try_from_secs_f64(cli.minutes * 60.0)?;
    let steps = schedule(cli.seed, length, &faults);
    // Time enough for each fault, of all that there are.
    let marks = cli.faults.is_empty() && cli.mutation.is_none() && length >= LONG;
    eprintln!("stage {stage}, seed {}: {} minutes of {}", cli.seed, cli.minutes, kinds(&cli.faults));
    let report = run(Plan { stage, seed: cli.seed, steps, length, marks, mutation: cli.mutation }).await;
    println!("{report}");
    write(file, &report)?;
    Ok(if report.holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn kinds(chosen: &[String]) -> String {
    if chosen.is_empty() { "all faults".to_owned() } else { chosen.join(", ") }
}

async fn all_mutations(cli: Cli, file: Option<&Path>) -> Result<ExitCode> {
    let wanted = cli.mutation.map_or_else(|| names().map(ToOwned::to_owned).collect(), |one| vec![one]);
    let rows = table(&wanted).await;
    println!("{HEAD}");
    rows.iter().for_each(|row| println!("{row}"));
    write(file, &rows)?;
    Ok(if rows.iter().all(Row::as_expected) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(file: Option<&Path>, report: &impl Serialize) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, serde_json::to_vec_pretty(report)?).with_context(|| format!("write {}", file.display()))
}
