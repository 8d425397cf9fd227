//! Settings of the worker, beyond those that both binaries have.

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use common::admin_port::AdminPort;
use common::config::{
    Checks, ConfigErrors, KafkaArgs, KafkaSettings, ProcessArgs, RedisArgs, RedisSettings, TraceArgs, TraceSettings,
    duration, millis, one_of, range, text,
};
use common::kafka::ConsumerSettings;
use common::probe::HealthcheckArgs;
use common::telemetry::LogSettings;

use crate::breaker::BreakerSettings;
use crate::desk::dead_letters::DeadLettersCommand;
use crate::desk::positions::PositionsCommand;
use crate::desk::verify::VerifyArgs;
use crate::event_log::EventLogMode;

const DEFAULT_ADMIN_PORT: u16 = 3001;

/// Record each user activity event on the Kafka topic in Redis, once
///
/// Every setting is a flag with an environment variable; a flag wins. Start as many workers as the topic has partitions.
#[derive(Debug, Parser)]
#[command(name = "user-activity-worker", version, max_term_width = 120)]
pub struct Cli {
    /// What to do instead of working.
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    worker: WorkerArgs,
    #[command(flatten)]
    kafka: KafkaArgs,
    #[command(flatten)]
    redis: RedisArgs,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    process: ProcessArgs,
}

/// What to do instead of working.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Ask the process on this machine whether it is ready.
    Healthcheck(HealthcheckArgs),
    /// Look at and move the place where the workers start.
    #[command(subcommand)]
    Positions(PositionsCommand),
    /// List and show what could not be an event, and publish it again.
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Read the topic and the store and say whether each record has become what it should; exit code 1 when not, 2 when
    /// that can't be said.
    Verify(VerifyArgs),
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Worker")]
struct WorkerArgs {
    /// Consumer group to join
    #[arg(long, env = "KAFKA_CONSUMER_GROUP", default_value = "user-activity-consumer-group", value_name = "NAME")]
    kafka_consumer_group: String,
    /// How long the group waits for a silent worker before others take over, in milliseconds
    #[arg(long, env = "KAFKA_CONSUMER_SESSION_TIMEOUT_MS", default_value = "10000", value_name = "MS")]
    kafka_consumer_session_timeout_ms: String,
    /// Port of /livez and /readyz; 3001 when absent, or a free one if that is busy; 0 takes a free one
    #[arg(long, env = "ADMIN_PORT", value_name = "PORT")]
    admin_port: Option<String>,
    /// Address of /livez and /readyz
    #[arg(long, env = "BIND_ADDRESS", default_value = "0.0.0.0", value_name = "ADDRESS")]
    bind_address: String,
    /// Log each processed event: all, off, or auto for a line each up to 100 a second and one summary a second above
    #[arg(long, env = "EVENT_LOG", default_value = "auto", value_name = "MODE")]
    event_log: String,
    /// Percent of the last records of a partition that, when they can't be events, hold it back from dead-lettering
    #[arg(long, env = "DEAD_LETTER_BREAKER_PERCENT", default_value = "50", value_name = "PERCENT")]
    dead_letter_breaker_percent: String,
    /// How many last records that looks at
    #[arg(long, env = "DEAD_LETTER_BREAKER_WINDOW", default_value = "1000", value_name = "N")]
    dead_letter_breaker_window: String,
    /// How many of them at least must be such
    #[arg(long, env = "DEAD_LETTER_BREAKER_MIN", default_value = "100", value_name = "N")]
    dead_letter_breaker_min: String,
    /// So many in a row hold in any case
    #[arg(long, env = "DEAD_LETTER_BREAKER_IN_A_ROW", default_value = "500", value_name = "N")]
    dead_letter_breaker_in_a_row: String,
    /// Between looks whether the next records of a held partition are better
    #[arg(long, env = "DEAD_LETTER_BREAKER_PROBE", default_value = "10s", value_name = "DURATION")]
    dead_letter_breaker_probe: String,
    /// Longest hold, after which dead-lettering goes on
    #[arg(long, env = "DEAD_LETTER_BREAKER_HOLD", default_value = "5m", value_name = "DURATION")]
    dead_letter_breaker_hold: String,
    /// Dead letters a second of a partition then
    #[arg(long, env = "DEAD_LETTER_BREAKER_RATE", default_value = "10", value_name = "N")]
    dead_letter_breaker_rate: String,
    /// Percent of Redis' maxmemory from which on a warning is logged
    #[arg(long, env = "REDIS_MEMORY_ALARM", default_value = "80", value_name = "PERCENT")]
    redis_memory_alarm: String,
    /// Percent of Redis' maxmemory from which on the oldest events are trimmed early, so that writes don't stop: a number, or off
    #[arg(long, env = "REDIS_MEMORY_GUARD", default_value = "off", value_name = "PERCENT")]
    redis_memory_guard: String,
    /// Name in heartbeats and stored events, without spaces; host name and process id when absent
    #[arg(long, env = "WORKER_NAME", value_name = "NAME")]
    worker_name: Option<String>,
}

/// The worker's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its own name.
    pub name: String,
    /// The group.
    pub consumer: ConsumerSettings,
    /// Port for whoever watches over it.
    pub admin_port: AdminPort,
    /// Address of its health.
    pub bind_address: IpAddr,
    /// Which events to log.
    pub event_log: EventLogMode,
    /// When to hold a partition back from dead-lettering.
    pub breaker: BreakerSettings,
    /// Percent of Redis' memory from which on to warn.
    pub memory_alarm: u64,
    /// Percent of Redis' memory from which on to trim.
    pub memory_guard: Option<u64>,
    /// Kafka's part.
    pub kafka: KafkaSettings,
    /// Redis' part.
    pub redis: RedisSettings,
    /// To finish what is in flight.
    pub shutdown_timeout: Duration,
    /// Where spans go; `None`: nothing is traced.
    pub traces: Option<TraceSettings>,
    /// How to log.
    pub log: LogSettings,
}

impl Config {
    /// Types all settings.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(cli: &Cli) -> Result<Self, ConfigErrors> {
        let (mut checks, worker) = (Checks::default(), &cli.worker);
        let config = Self {
            name: worker.worker_name.as_deref().map_or_else(default_name, |raw| checks.take("WORKER_NAME", raw, name)),
            consumer: ConsumerSettings {
                group: checks.take("KAFKA_CONSUMER_GROUP", &worker.kafka_consumer_group, text),
                session_timeout: checks.take(
                    "KAFKA_CONSUMER_SESSION_TIMEOUT_MS",
                    &worker.kafka_consumer_session_timeout_ms,
                    session_timeout,
                ),
            },
            admin_port: AdminPort::check(&mut checks, "ADMIN_PORT", worker.admin_port.as_deref(), DEFAULT_ADMIN_PORT),
            bind_address: checks.address("BIND_ADDRESS", &worker.bind_address),
            event_log: checks.take("EVENT_LOG", &worker.event_log, one_of(&EventLogMode::WORDS)),
            breaker: worker.breaker(&mut checks),
            memory_alarm: checks.take("REDIS_MEMORY_ALARM", &worker.redis_memory_alarm, range(1..=100)),
            memory_guard: checks.take("REDIS_MEMORY_GUARD", &worker.redis_memory_guard, memory_guard),
            redis: cli.redis.check(&mut checks),
            shutdown_timeout: checks.take("SHUTDOWN_TIMEOUT", &cli.process.shutdown_timeout, duration),
            traces: cli.traces.check(&mut checks),
            log: LogSettings::check(&cli.process, &mut checks),
            kafka: cli.kafka.check(&mut checks),
        };
        if let Some(Err(error)) = cli.command.as_ref().map(Command::check) {
            checks.complain(error.to_string());
        }
        checks.finish(config)
    }
}

impl Command {
    /// What the types of its arguments don't say.
    fn check(&self) -> anyhow::Result<()> {
        match self {
            Self::Verify(args) => args.check(),
            Self::DeadLetters(command) => command.check(),
            Self::Healthcheck(_) | Self::Positions(_) => Ok(()),
        }
    }
}

impl WorkerArgs {
    fn breaker(&self, checks: &mut Checks) -> BreakerSettings {
        let number = range(1..=1_000_000_usize);
        let settings = BreakerSettings {
            window: checks.take("DEAD_LETTER_BREAKER_WINDOW", &self.dead_letter_breaker_window, number),
            percent: checks.take("DEAD_LETTER_BREAKER_PERCENT", &self.dead_letter_breaker_percent, range(1..=100)),
            at_least: checks.take("DEAD_LETTER_BREAKER_MIN", &self.dead_letter_breaker_min, range(1..=1_000_000)),
            in_a_row: checks.take(
                "DEAD_LETTER_BREAKER_IN_A_ROW",
                &self.dead_letter_breaker_in_a_row,
                range(1..=1_000_000),
            ),
            probe_period: checks.take("DEAD_LETTER_BREAKER_PROBE", &self.dead_letter_breaker_probe, duration),
            longest_hold: checks.take("DEAD_LETTER_BREAKER_HOLD", &self.dead_letter_breaker_hold, duration),
            forced_rate: checks.take("DEAD_LETTER_BREAKER_RATE", &self.dead_letter_breaker_rate, range(1..=1_000_000)),
        };
        // A window of none has had its complaint.
        if (1..settings.at_least).contains(&settings.window) {
            checks.complain(format!(
                "DEAD_LETTER_BREAKER_MIN={}: must not be above DEAD_LETTER_BREAKER_WINDOW={}, in which there are never so many",
                settings.at_least, settings.window
            ));
        }
        settings
    }
}

/// The broker's own bounds by default, `group.min.session.timeout.ms` and `max.poll.interval.ms`.
fn session_timeout(raw: &str) -> Result<Duration, String> {
    millis(raw).and_then(|timeout| {
        let allowed = Duration::from_secs(6)..=Duration::from_secs(120);
        if allowed.contains(&timeout) { Ok(timeout) } else { Err("must be from 6000 to 120000".into()) }
    })
}

fn name(raw: &str) -> Result<String, String> {
    let good = (1..=64).contains(&raw.len()) && raw.bytes().all(|b| b.is_ascii_graphic());
    if good { Ok(raw.to_owned()) } else { Err("must be 1 to 64 visible ASCII characters without spaces".into()) }
}

/// With some random digits: in containers on the network of their host all are process 1 of the same machine.
fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(char::is_ascii_graphic).take(44).collect();
    let host = if host.is_empty() { "worker" } else { &host };
    format!("{host}-{}-{:08x}", std::process::id(), fastrand::u32(..))
}

/// The mark of what has been trimmed must fit in itself, so there is a bit of room to leave.
fn memory_guard(raw: &str) -> Result<Option<u64>, String> {
    match raw.trim() {
        "off" => Ok(None),
        percent => range(10..=95)(percent).map(Some).map_err(|why| format!("{why}, or off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(args: &[&str]) -> Result<Config, ConfigErrors> {
        let args = std::iter::once("user-activity-worker").chain(args.iter().copied());
        Config::check(&common::config::parse(args, |_| None).unwrap())
    }

    #[test]
    fn defaults_are_those_of_the_services_it_replaces() {
        let config = with(&[]).unwrap();
        assert_eq!(config.consumer.group, "user-activity-consumer-group");
        assert_eq!(config.admin_port.number, 3001);
        assert!(!config.name.contains(' '));
    }

    #[test]
    fn every_wrong_setting_is_named_in_one_run() {
        let args = ["--kafka-consumer-session-timeout-ms", "5000", "--event-log", "some", "--worker-name", "a b"];
        let error = with(&args).unwrap_err().to_string();
        for name in ["KAFKA_CONSUMER_SESSION_TIMEOUT_MS", "EVENT_LOG", "WORKER_NAME"] {
            assert!(error.contains(name), "{error}");
        }
    }

    fn unusable(args: &[&str]) -> Option<String> {
        let all = std::iter::once("user-activity-worker").chain(args.iter().copied());
        match common::config::parse(all, |_| None) {
            Ok(cli) => Config::check(&cli).err().map(|errors| errors.to_string()),
            Err(unusable) => Some(unusable.to_string()),
        }
    }

    #[test]
    fn arguments_of_the_desk_are_checked_before_it_asks_anybody() {
        let (early, late) = ("2026-02-17T10:00:00Z", "2026-02-18T10:00:00Z");
        for (args, said) in [
            (&["verify", "--from", "yesterday"][..], "RFC 3339"),
            (&["verify", "--to", "10:00"], "RFC 3339"),
            (&["verify", "--from", late, "--to", early], "must be earlier than"),
            (&["dead-letters", "list", "--from", "yesterday"], "RFC 3339"),
            (&["dead-letters", "list", "--from", late, "--to", early], "must be earlier than"),
            (&["dead-letters", "redrive", "--from", early, "--to", early], "must be earlier than"),
            (&["positions", "set", "--to", "middle"], "beginning, end or an offset"),
            (&["positions", "set", "--to=-1"], "beginning, end or an offset"),
            (&["positions", "set", "--to", "end", "--partition=-1"], "--partition"),
        ] {
            assert!(unusable(args).is_some_and(|why| why.contains(said)), "{args:?}: {:?}", unusable(args));
        }
        for args in [
            &["verify", "--from", early, "--to", late][..],
            &["positions", "set", "--to", "17"],
            &["positions", "set", "--to", "end", "--partition", "0"],
        ] {
            assert_eq!(unusable(args), None, "{args:?}");
        }
    }

    #[test]
    fn every_setting_can_stand_before_and_after_each_subcommand() {
        let command = <Cli as clap::CommandFactory>::command();
        let settings = command.get_arguments().filter(|setting| setting.get_env().is_some());
        let flags: Vec<String> =
            settings.flat_map(|setting| [format!("--{}", setting.get_long().unwrap()), "7".into()]).collect();
        assert!(flags.len() > 60, "{flags:?}");
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        for words in [
            &["healthcheck"][..],
            &["verify"],
            &["positions", "show"],
            &["positions", "set", "--to", "end"],
            &["dead-letters", "list"],
            &["dead-letters", "show", "0", "1"],
            &["dead-letters", "redrive"],
        ] {
            let (first, rest) = words.split_at(1);
            let before = [&["x"][..], &flags, words].concat();
            for args in [&[&["x"], words, &flags].concat(), &[&["x"], first, &flags, rest].concat()] {
                let [said, wanted] = [args, &before].map(|args| {
                    let parsed: Cli =
                        common::config::parse(args, |name| (!name.ends_with("_FILE")).then(|| "env".into())).unwrap();
                    format!("{parsed:?}")
                });
                assert_eq!(said, wanted);
            }
        }
    }

    #[test]
    fn the_help_of_a_subcommand_shows_its_own_flags_and_says_where_the_settings_are() {
        let help = |words: &[&str]| unusable(&[words, &["--help"]].concat()).unwrap();
        assert!(help(&[]).contains("--kafka-brokers"));
        for words in [&["verify"][..], &["positions"], &["positions", "set"], &["dead-letters", "redrive"]] {
            let help = help(words);
            assert!(!help.contains("--kafka-brokers") && help.contains("`user-activity-worker --help`"), "{help}");
        }
        assert!(help(&["dead-letters", "redrive"]).contains("Examples:"));
    }

    #[test]
    fn the_breaker_does_not_wait_for_more_poison_than_it_looks_at() {
        let window = |n| with(&["--dead-letter-breaker-window", n, "--dead-letter-breaker-min", "200"]);
        assert!(window("200").is_ok());
        let error = window("199").unwrap_err().to_string();
        assert!(error.contains("DEAD_LETTER_BREAKER_MIN=200") && error.contains("WINDOW=199"), "{error}");
        assert!(!window("0").unwrap_err().to_string().contains("DEAD_LETTER_BREAKER_MIN"));
    }

    #[test]
    fn the_example_environment_lists_every_variable_with_its_default() {
        let command = <Cli as clap::CommandFactory>::command();
        let missing = common::testing::not_in_example(&command, include_str!("../../.env.example"));
        assert!(missing.is_empty(), "{missing:?}");
    }
}
