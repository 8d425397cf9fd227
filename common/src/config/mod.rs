//! Settings: each is a flag with an environment variable, read once at start.
//!
//! A setting stands as text in a `clap` struct, next to its default and its documentation, and becomes a typed value
//! through [`Checks`], which collects **every** complaint of a run before giving up. An empty environment variable
//! counts as absent (Compose passes `${NAME:-}` as an empty one). The environment comes in as a function, so that
//! tests never touch that of the process.

mod kafka;
mod redis;
mod values;

use std::ffi::OsString;
use std::fmt;

use clap::builder::Resettable;
use clap::{Args, CommandFactory, FromArgMatches};

pub use self::kafka::{KafkaArgs, KafkaSettings, Topics};
pub(crate) use self::redis::Servers;
pub use self::redis::{RedisArgs, RedisSettings};
pub use self::values::{Checks, ConfigErrors, Secret, bytes, duration, millis, one_of, range, text};

/// The exit code for a configuration that can't be used: `EX_USAGE` of sysexits(3).
pub const EX_USAGE: u8 = 64;

/// Other names that a variable answers to, where its own is not set; from the services this product replaces.
const ALIASES: [(&str, &str); 2] = [("KAFKA_BROKERS", "KAFKA_BROKER"), ("LOG_LEVEL", "RUST_LOG")];

/// Settings that both binaries have.
#[derive(Debug, Clone, Args)]
pub struct ProcessArgs {
    /// Longest time to finish what is in flight after SIGTERM or SIGINT
    #[arg(long, env = "SHUTDOWN_TIMEOUT", default_value = "20s", value_name = "DURATION", help_heading = "Process")]
    pub shutdown_timeout: String,
    /// Log filter: error, warn, info, debug, trace, or per module as in `info,librdkafka=warn` [also: RUST_LOG]
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_name = "FILTER", help_heading = "Process")]
    pub log_level: String,
    /// text, or json for one JSON object per line
    #[arg(long, env = "LOG_FORMAT", default_value = "text", value_name = "FORMAT", help_heading = "Process")]
    pub log_format: String,
}

/// Why a command line did not become a configuration, with what to print and the exit code.
#[derive(Debug)]
pub struct Unusable {
    text: String,
    exit_code: u8,
}

impl Unusable {
    /// Prints the message, to standard output for `--help` and `--version`, and gives the exit code.
    #[must_use]
    #[expect(
        clippy::print_stdout,
        clippy::print_stderr,
        reason = "nothing can be logged before the settings are known"
    )]
    pub fn report(&self) -> u8 {
        if self.exit_code == 0 {
            print!("{}", self.text)
        } else {
            eprint!("{}", self.text)
        }
        self.exit_code
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<ConfigErrors> for Unusable {
    fn from(errors: ConfigErrors) -> Self {
        Self { text: errors.to_string(), exit_code: EX_USAGE }
    }
}

/// Reads the settings of `T` from a command line and an environment.
///
/// # Errors
/// [`Unusable`] for unknown flags (exit code 64), and for `--help` and `--version` (exit code 0).
pub fn parse<T: CommandFactory + FromArgMatches>(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<T, Unusable> {
    let command = T::command().mut_args(|arg| with_environment(arg, &env));
    let parsed = command.try_get_matches_from(args).and_then(|mut matches| T::from_arg_matches_mut(&mut matches));
    parsed.map_err(|e| Unusable { text: e.render().to_string(), exit_code: if e.use_stderr() { EX_USAGE } else { 0 } })
}

/// The environment of this process, for [`parse`].
#[must_use]
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Resolves a variable here instead of in clap: with aliases, without empty values.
fn with_environment(arg: clap::Arg, env: &impl Fn(&str) -> Option<String>) -> clap::Arg {
    let Some(name) = arg.get_env().and_then(|name| name.to_str()).map(str::to_owned) else { return arg };
    let help = format!("{} [env: {name}]", arg.get_help().map(ToString::to_string).unwrap_or_default());
    let arg = arg.env(Resettable::Reset).help(help);
    let alias = ALIASES.iter().find(|(known, _)| *known == name).map(|(_, alias)| *alias);
    let value = [Some(name.as_str()), alias].into_iter().flatten().find_map(|n| env(n).filter(|v| !v.is_empty()));
    match value {
        // What the environment says is not a default to show: it may be a secret.
        Some(value) => arg.default_value(value).hide_default_value(true),
        None => arg,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        process: ProcessArgs,
        #[command(flatten)]
        kafka: KafkaArgs,
        #[command(flatten)]
        redis: RedisArgs,
    }

    fn with(args: &[&str], env: &[(&str, &str)]) -> Result<Cli, Unusable> {
        let lookup = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        parse(std::iter::once("program").chain(args.iter().copied()), lookup)
    }

    #[test]
    fn a_flag_wins_over_the_environment_which_wins_over_the_default() {
        assert_eq!(with(&[], &[]).unwrap().kafka.kafka_brokers, "localhost:9092");
        let env = [("KAFKA_BROKERS", "env:1")];
        assert_eq!(with(&[], &env).unwrap().kafka.kafka_brokers, "env:1");
        assert_eq!(with(&["--kafka-brokers", "flag:1"], &env).unwrap().kafka.kafka_brokers, "flag:1");
    }

    #[test]
    fn aliases_count_only_where_the_own_name_is_absent_or_empty() {
        let brokers = |env: &[(&str, &str)]| with(&[], env).unwrap().kafka.kafka_brokers;
        assert_eq!(brokers(&[("KAFKA_BROKER", "old:1")]), "old:1");
        assert_eq!(brokers(&[("KAFKA_BROKER", "old:1"), ("KAFKA_BROKERS", "")]), "old:1");
        assert_eq!(brokers(&[("KAFKA_BROKER", "old:1"), ("KAFKA_BROKERS", "new:1")]), "new:1");
        assert_eq!(with(&[], &[("RUST_LOG", "debug")]).unwrap().process.log_level, "debug");
    }

    #[test]
    fn help_names_the_variables_and_shows_no_value_of_the_environment() {
        let help = with(&["--help"], &[("REDIS_URL", "redis://:secret@host")]).unwrap_err();
        assert_eq!(help.exit_code, 0);
        assert!(help.text.contains("[env: REDIS_URL]"), "{help}");
        assert!(!help.text.contains("secret"), "{help}");
    }

    #[test]
    fn an_unknown_flag_is_a_usage_error() {
        assert_eq!(with(&["--nonsense"], &[]).unwrap_err().exit_code, EX_USAGE);
    }

    #[test]
    fn all_errors_are_reported_in_one_run() {
        let cli =
            with(&["--kafka-producer-timeout-ms", "soon", "--redis-url", "http://:secret@x", "--kafka-topic", ""], &[])
                .unwrap();
        let mut checks = Checks::default();
        cli.kafka.check(&mut checks);
        cli.redis.check(&mut checks);
        let errors = checks.finish(()).unwrap_err().to_string();
        for name in ["KAFKA_PRODUCER_TIMEOUT_MS", "REDIS_URL", "KAFKA_TOPIC"] {
            assert!(errors.contains(name), "{errors}");
        }
        assert!(!errors.contains("secret"), "{errors}");
    }
}
