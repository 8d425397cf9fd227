//! Logs: text for people, or one JSON object per line for machines.

use std::fmt;
use std::io::Write;

use env_logger::{Builder, fmt::Formatter};
use log::kv::{Key, Value, VisitSource};
use log::{LevelFilter, Record};
use serde_json::Map;

use crate::config::{Checks, ProcessArgs, one_of};
use crate::event::Timestamp;

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

    /// Starts logging to standard error. A second call in one process changes nothing.
    pub fn start(&self) {
        let mut builder = Builder::new();
        builder.parse_filters(&self.filter).target(env_logger::Target::Stderr);
        if self.json {
            builder.format(write_json);
        } else {
            builder.format_timestamp_millis();
        }
        // It fails only where a logger exists already, as in tests.
        builder.try_init().unwrap_or_default();
    }
}

fn filter(raw: &str) -> Result<String, String> {
    let level = |part: &str| part.rsplit('=').next().is_some_and(|l| l.trim().parse::<LevelFilter>().is_ok());
    if raw.split(',').all(level) {
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
        assert!(filter("loud").is_err() && filter("info=loud").is_err() && filter("").is_err());
    }
}
