//! `user-activity-api hash-key`: the line of the file of API keys, for a key of the operator's own or a new one.

use std::io::Read;
use std::process::ExitCode;

use clap::Args;
use common::config::EX_USAGE;
use ring::rand::{SecureRandom, SystemRandom};

use crate::keys;

/// Longest key that is read, in bytes.
const MOST: u64 = 4096;

/// What the line should say.
#[derive(Debug, Clone, Args)]
pub struct HashKeyArgs {
    /// Id of the key: it is the caller that an Idempotency-Key belongs to
    #[arg(long, default_value = "client", value_name = "ID")]
    id: String,
    /// What the key may do: some of write,read,admin
    #[arg(long, default_value = "write", value_name = "LIST")]
    scopes: String,
    /// Make a new key, which is shown on standard error, once, instead of reading one from standard input
    #[arg(long)]
    generate: bool,
}

/// Prints the line and gives the exit code.
#[must_use]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a command-line tool")]
pub fn run(args: &HashKeyArgs) -> ExitCode {
    let made = key(args).and_then(|key| Ok((keys::line(&args.id, &key, &args.scopes)?, key)));
    match made {
        Ok((line, key)) => {
            if args.generate {
                eprintln!("The key, which is not kept anywhere: {key}");
            }
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: {why}");
            EX_USAGE.into()
        }
    }
}

fn key(args: &HashKeyArgs) -> Result<String, String> {
    if args.generate {
        let mut random = [0; 32];
        SystemRandom::new().fill(&mut random).map_err(|_| "the system gives no random numbers")?;
        return Ok(random.iter().map(|byte| format!("{byte:02x}")).collect());
    }
    let mut key = String::new();
    let read = std::io::stdin().lock().take(MOST).read_to_string(&mut key);
    read.map_err(|e| format!("standard input can't be read: {e}"))?;
    Ok(key.trim_end_matches(['\r', '\n']).to_owned())
}
