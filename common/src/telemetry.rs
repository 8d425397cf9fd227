//! Logs: text for people, or one JSON object per line for machines. Which lines are written can be changed while the
//! process runs.

use std::fmt;
use std::io::Write;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use env_logger::{Builder, Logger, fmt::Formatter};
use log::kv::{Key, Source, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use serde::Serialize;
use serde_json::Map;

use crate::config::{Checks, ProcessArgs, one_of};
use crate::event::Timestamp;
use crate::traces::current_trace_id;

/// How log lines look and which are written.
#[derive(Debug, Clone, Default)]
pub struct LogSettings {
    filter: String,
    json: bool,
}

impl LogSettings {
    /// Types the settings.
    pub fn check(args: &ProcessArgs, checks: &mut Checks) -> Self {
        Self {
            filter: checks.take("LOG_LEVEL", &args.log_level, filter),
            json: checks.take("LOG_FORMAT", &args.log_format, one_of(&[("text", false), ("json", true)])),
        }
    }

    /// Starts logging to standard error. A second call in one process changes which lines are written.
    pub fn start(&self) {
        LOGS.install(self.clone());
        // It fails only where a logger exists already, as in tests.
        log::set_logger(&LOGS).unwrap_or_default();
    }

    fn logger(&self) -> Logger {
        let mut builder = Builder::new();
        builder.parse_filters(&self.filter).target(env_logger::Target::Stderr);
        if self.json {
            builder.format(write_json);
        } else {
            builder.format_timestamp_millis();
        }
        builder.build()
    }
}

/// Bytes that a level may have which comes while the process runs, lists of modules included.
pub const LONGEST_LEVEL: usize = 1024;

/// Which lines are written: what `PUT /log-level` of both programs answers.
#[derive(Debug, Serialize)]
pub struct LogLevel {
    level: String,
}

/// Changes which lines are written: a level, or a list such as `info,librdkafka=debug`, as text.
///
/// # Errors
/// What is wrong with it; nothing has changed then.
pub fn set_level(wanted: &[u8]) -> Result<LogLevel, String> {
    let level = filter(String::from_utf8_lossy(wanted).trim())?;
    let json = LOGS.read().as_ref().is_some_and(|(settings, _)| settings.json);
    LOGS.install(LogSettings { filter: level.clone(), json });
    // Not below the level of which it is news: whoever finds the log changed should find why.
    log::warn!(level = level.as_str(); "the log level is now {level}");
    Ok(LogLevel { level })
}

static LOGS: Logs = Logs(RwLock::new(None));

/// The logger of the process, which is replaced as a whole when its filter changes.
struct Logs(RwLock<Option<(LogSettings, Logger)>>);

impl Logs {
    fn read(&self) -> RwLockReadGuard<'_, Option<(LogSettings, Logger)>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn install(&self, settings: LogSettings) {
        let logger = settings.logger();
        log::set_max_level(logger.filter());
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some((settings, logger));
    }
}

impl Log for Logs {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.read().as_ref().is_some_and(|(_, logger)| logger.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if let Some((_, logger)) = self.read().as_ref() {
            match current_trace_id() {
                None => logger.log(record),
                Some(id) => {
                    let pairs = Traced { pairs: record.key_values(), id: &id };
                    logger.log(&record.to_builder().key_values(&pairs).build());
                }
            }
        }
    }

    fn flush(&self) {}
}

/// The pairs of a line, and the trace of the request that it is about.
struct Traced<'a> {
    pairs: &'a dyn Source,
    id: &'a str,
}

impl Source for Traced<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), log::kv::Error> {
        self.pairs.visit(visitor)?;
        visitor.visit_pair(Key::from_str("trace_id"), Value::from(self.id))
    }
}

fn filter(raw: &str) -> Result<String, String> {
    let level = |part: &str| part.rsplit('=').next().is_some_and(|l| l.trim().parse::<LevelFilter>().is_ok());
    // What is said of it in the log must stay one line.
    if raw.split(',').all(level) && !raw.contains(char::is_control) {
        return Ok(raw.to_owned());
    }
    Err("must be a level (error, warn, info, debug, trace, off) or a list such as info,librdkafka=warn".into())
}

fn write_json(out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    let mut fields = Map::new();
    fields.insert("timestamp".into(), Timestamp::now().to_string().into());
    fields.insert("level".into(), record.level().as_str().into());
    fields.insert("target".into(), record.target().into());
    fields.insert("message".into(), fmt::format(*record.args()).into());
    // Visiting a record's own pairs can't fail: this visitor never does.
    record.key_values().visit(&mut Fields(&mut fields)).unwrap_or_default();
    serde_json::to_writer(&mut *out, &fields)?;
    out.write_all(b"\n")
}

struct Fields<'a>(&'a mut Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        let value = serde_json::to_value(&value).unwrap_or_else(|_| value.to_string().into());
        self.0.insert(key.as_str().to_owned(), value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked_before_they_are_used() {
        assert!(filter("info").is_ok() && filter("warn,librdkafka=error").is_ok());
        for wrong in ["loud", "info=loud", "", "api\nERROR a=info"] {
            assert!(filter(wrong).is_err(), "{wrong:?}");
        }
    }
}
