//! Settings: each is a flag with an environment variable, read once at start. The flag may stand before or after a
//! subcommand.
//!
//! A setting stands as text in a `clap` struct, next to its default and its documentation, and becomes a typed value
//! through [`Checks`], which collects **every** complaint of a run before giving up. An empty environment variable
//! counts as absent (Compose passes `${NAME:-}` as an empty one). The environment comes in as a function, so that
//! tests never touch that of the process.
//!
//! A secret may stand in a file instead, as orchestrators hand them out: `NAME_FILE` is the path of a file that holds the
//! value of `NAME`.

mod kafka;
mod kafka_security;
mod redis;
mod traces;
mod values;

use std::ffi::OsString;
use std::fmt;

use clap::builder::Resettable;
use clap::{Args, CommandFactory, FromArgMatches};

pub use self::kafka::{KafkaArgs, KafkaSettings, Topics};
pub use self::kafka_security::{ClientCertificate, KafkaSecurity, KafkaSecurityArgs, Protocol, Sasl};
pub(crate) use self::redis::Servers;
pub use self::redis::{RedisArgs, RedisSettings};
pub use self::traces::{Sampling, TraceArgs, TraceSettings};
pub use self::values::{Checks, ConfigErrors, Secret, bytes, duration, millis, one_of, range, text};

/// The exit code for a configuration that can't be used: `EX_USAGE` of sysexits(3).
pub const EX_USAGE: u8 = 64;

/// Other names that a variable answers to, where its own is not set; from the services this product replaces.
const ALIASES: [(&str, &str); 2] = [("KAFKA_BROKERS", "KAFKA_BROKER"), ("LOG_LEVEL", "RUST_LOG")];

/// The variables that hold secrets, each of which may be given as `NAME_FILE`.
const SECRETS: [&str; 4] = ["REDIS_URL", "KAFKA_SASL_PASSWORD", "KAFKA_SSL_KEY_PASSWORD", "OTEL_EXPORTER_OTLP_HEADERS"];

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
/// [`Unusable`] for unknown flags and secrets that can't be read (exit code 64), and for `--help` and `--version` (exit code 0).
pub fn parse<T: CommandFactory + FromArgMatches>(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<T, Unusable> {
    let mut complaints = Vec::new();
    let command = T::command().mut_args(|arg| with_environment(arg, &env, &mut complaints));
    // The help of a subcommand only says so of them: listed there, they would bury its own flags.
    let settings = command.get_arguments().filter(|arg| arg.is_global_set());
    let settings: Vec<_> = settings.map(|setting| setting.clone().hide(true)).collect();
    let note = format!("Every setting that `{} --help` lists can be given here, too.", command.get_name());
    let parsed = for_subcommands(command, &settings, &note)
        .try_get_matches_from(args)
        .and_then(|mut matches| T::from_arg_matches_mut(&mut matches));
    let parsed = parsed
        .map_err(|e| Unusable { text: e.render().to_string(), exit_code: if e.use_stderr() { EX_USAGE } else { 0 } })?;
    if complaints.is_empty() { Ok(parsed) } else { Err(ConfigErrors(complaints).into()) }
}

/// The environment of this process, for [`parse`].
#[must_use]
pub fn process_environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Lets the settings be given behind any subcommand as well.
fn for_subcommands(command: clap::Command, settings: &[clap::Arg], note: &str) -> clap::Command {
    command.mut_subcommands(|subcommand| {
        let help = subcommand.get_after_help().map_or_else(String::new, |help| format!("{help}\n\n"));
        for_subcommands(subcommand, settings, note).args(settings).after_help(help + note)
    })
}

/// Resolves a variable here instead of in clap: with aliases, without empty values, and secrets from files.
fn with_environment(
    arg: clap::Arg,
    env: &impl Fn(&str) -> Option<OsString>,
    complaints: &mut Vec<String>,
) -> clap::Arg {
    let Some(name) = arg.get_env().and_then(|name| name.to_str()).map(str::to_owned) else { return arg };
    let secret = SECRETS.contains(&name.as_str());
    let file = if secret { format!(" [file: {name}_FILE]") } else { String::new() };
    let help = format!("{} [env: {name}]{file}", arg.get_help().map(ToString::to_string).unwrap_or_default());
    let arg = arg.env(Resettable::Reset).help(help).global(true);
    let alias = ALIASES.iter().find(|(known, _)| *known == name).map(|(_, alias)| *alias);
    let mut get = |name: &str| {
        let given = env(name).filter(|value| !value.is_empty())?.into_string();
        // Not absent: an API without its file of keys would be open to everybody.
        given.map_err(|_| complaints.push(format!("{name}: is not valid UTF-8; set it to text that is"))).ok()
    };
    let value = [Some(name.as_str()), alias].into_iter().flatten().find_map(&mut get);
    let file = secret.then(|| get(&format!("{name}_FILE"))).flatten();
    let value = match file {
        Some(path) => secret_of(&name, &path, value.is_some()).map_err(|why| complaints.push(why)).ok(),
        None => value,
    };
    match value {
        // What the environment says is not a default to show: it may be a secret.
        Some(value) => arg.default_value(value).hide_default_value(true),
        None => arg,
    }
}

/// The secret in a file, without the line break that editors end files with.
fn secret_of(name: &str, path: &str, also_given: bool) -> Result<String, String> {
    if also_given {
        return Err(format!("{name} and {name}_FILE: only one of them can be given"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| format!("{name}_FILE={path:?}: can't be read: {e}"))?;
    let secret = text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
    if secret.is_empty() { Err(format!("{name}_FILE={path:?}: is empty")) } else { Ok(secret.to_owned()) }
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
        let lookup = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
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
        assert!(help.text.contains("[env: REDIS_URL] [file:"), "{help}");
        assert!(!help.text.contains("secret"), "{help}");
    }

    #[test]
    fn an_unknown_flag_is_a_usage_error() {
        assert_eq!(with(&["--nonsense"], &[]).unwrap_err().exit_code, EX_USAGE);
    }

    #[test]
    fn a_secret_may_stand_in_a_file_which_is_then_the_only_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("url"), "redis://:hunter2@host\n").unwrap();
        let (url, missing) = (path("url"), path("none"));
        assert_eq!(with(&[], &[("REDIS_URL_FILE", &url)]).unwrap().redis.redis_url, "redis://:hunter2@host");
        // Compose passes what is not set as empty.
        let cli = with(&[], &[("REDIS_URL_FILE", ""), ("REDIS_URL", "redis://x")]).unwrap();
        assert_eq!(cli.redis.redis_url, "redis://x");
        let both = [("REDIS_URL_FILE", &*url), ("REDIS_URL", "redis://:hunter2@x")];
        let unreadable = [&both[..], &[("KAFKA_SASL_PASSWORD_FILE", &*missing)]].concat();
        let error = with(&[], &unreadable).unwrap_err();
        assert_eq!(error.exit_code, EX_USAGE);
        assert!(error.text.contains("REDIS_URL and REDIS_URL_FILE: only one"), "{error}");
        assert!(error.text.contains("KAFKA_SASL_PASSWORD_FILE=") && error.text.contains("none"), "{error}");
        assert!(!error.text.contains("hunter2"), "{error}");
        let not_secret = with(&[], &[("KAFKA_TOPIC_FILE", &missing)]).unwrap();
        assert_eq!(not_secret.kafka.kafka_topic, "user-activity-events");
    }

    #[test]
    fn a_value_that_is_not_utf_8_is_an_error_and_not_absent() {
        use std::os::unix::ffi::OsStringExt;
        let names = ["KAFKA_BROKERS", "RUST_LOG", "REDIS_URL_FILE"];
        let env = |name: &str| names.contains(&name).then(|| OsString::from_vec(b"hunter2\xe9".to_vec()));
        let error = parse::<Cli>(["program"], env).unwrap_err();
        assert_eq!(error.exit_code, EX_USAGE);
        for name in names {
            assert!(error.text.contains(&format!("{name}: is not valid UTF-8")), "{error}");
        }
        assert!(!error.text.contains("hunter2"), "{error}");
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
