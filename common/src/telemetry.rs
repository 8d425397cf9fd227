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

    fn builder(&self) -> Builder {
        let mut builder = Builder::new();
        builder.parse_filters(&self.filter).target(env_logger::Target::Stderr);
        builder.format(if self.json { write_json } else { write_text });
        builder
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
    log::warn!(filter = level.as_str(); "the log level is now {level}");
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
        let logger = settings.builder().build();
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

/// Whether a character, written to a terminal or a file, does more than show itself: it ends the line, steers the terminal,
/// or turns what follows around.
#[must_use]
pub fn is_active(character: char) -> bool {
    let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    character.is_control() || turns || matches!(character, '\u{2028}' | '\u{2029}')
}

/// Text in which no character [is active](is_active).
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if is_active(character) { line.extend(character.escape_default()) } else { line.push(character) }
    }
    line
}

/// A line as text. Clients choose part of what is in it, as a `userId` or a broker's words: that must not look like another
/// line or field, nor act on a terminal.
fn write_text(out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    let (level, time) = (record.level(), out.timestamp_millis());
    let style = out.default_level_style(level);
    let mut line = one_line(&fmt::format(*record.args()));
    // Visiting a record's own pairs can't fail: this visitor never does.
    record.key_values().visit(&mut Pairs(&mut line)).unwrap_or_default();
    writeln!(out, "[{time} {style}{level:<5}{style:#} {}] {line}", record.target())
}

/// ` key=value`, the value in quotation marks unless it is one plain word.
struct Pairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        let value = value.to_string();
        let plain = |c: char| c.is_alphanumeric() || (c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\'));
        let is_word = !value.is_empty() && value.chars().all(plain);
        let value = if is_word { value } else { format!("{value:?}") };
        self.0.extend([" ", key.as_str(), "=", &value]);
        Ok(())
    }
}

fn write_json(out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, &fields(record))?;
    out.write_all(b"\n")
}

fn fields(record: &Record<'_>) -> Map<String, serde_json::Value> {
    let mut fields = Map::new();
    fields.insert("timestamp".into(), Timestamp::now().to_string().into());
    fields.insert("level".into(), record.level().as_str().into());
    fields.insert("target".into(), record.target().into());
    fields.insert("message".into(), fmt::format(*record.args()).into());
    // Visiting a record's own pairs can't fail: this visitor never does.
    record.key_values().visit(&mut Fields(&mut fields)).unwrap_or_default();
    fields
}

struct Fields<'a>(&'a mut Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        let value = serde_json::to_value(&value).unwrap_or_else(|_| value.to_string().into());
        let mut name = key.as_str().to_owned();
        // What is there already stays: whoever looks for a level must find the line's.
        while self.0.contains_key(&name) {
            name.push('_');
        }
        self.0.insert(name, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn filters_are_checked_before_they_are_used() {
        assert!(filter("info").is_ok() && filter("warn,librdkafka=error").is_ok());
        for wrong in ["loud", "info=loud", "", "api\nERROR a=info"] {
            assert!(filter(wrong).is_err(), "{wrong:?}");
        }
    }

    /// What a line with this message and this field is as text.
    fn text(message: &str, key: &str, value: &str) -> String {
        let (written, pairs) = (Arc::<Mutex<Vec<u8>>>::default(), [(key, value)]);
        let target = env_logger::Target::Pipe(Box::new(Kept(Arc::clone(&written))));
        let settings = LogSettings { filter: "info".into(), json: false };
        let logger = settings.builder().target(target).build();
        let mut record = Record::builder();
        record.level(log::Level::Info).target("worker").key_values(&pairs);
        logger.log(&record.args(format_args!("{message}")).build());
        let written = written.lock().unwrap().clone();
        String::from_utf8(written).unwrap()
    }

    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_plain_line_is_as_it_was_written() {
        let line = text("processed event für \"käte\"", "userId", "käte-1@example.com");
        let (head, rest) = line.split_once("] ").unwrap();
        assert!(head.starts_with('[') && head.ends_with(" INFO  worker"), "{line}");
        assert_eq!(rest, "processed event für \"käte\" userId=käte-1@example.com\n");
    }

    #[test]
    fn nobody_can_forge_a_line_or_a_field_or_steer_a_terminal() {
        let hostile =
            "x\n[2026-11-29T08:00:00.000Z ERROR api] ended: \u{1b}[2J\r\u{9b}1A\u{202e}\u{2028} level=\"ERROR\"";
        let line = text(hostile, "userId", hostile);
        let (shown, end) = line.split_at(line.len() - 1);
        assert!(!shown.chars().any(is_active) && end == "\n", "{line:?}");
        assert!(line.contains(r#"] x\n[2026-11-29T08:00:00.000Z ERROR api] ended: \u{1b}[2J\r\u{9b}1A"#), "{line}");
        assert!(line.contains(r#" userId="x\n[2026"#) && line.contains(r#" level=\"ERROR\"""#), "{line}");
        for (value, shown) in [("a b=c", r#" k="a b=c""#), ("", r#" k="""#), (r"a\b", r#" k="a\\b""#)] {
            assert!(text("m", "k", value).ends_with(&format!("{shown}\n")), "{value}");
        }
    }

    #[test]
    fn a_field_never_takes_the_place_of_another() {
        let pairs = [("level", "info,api=debug"), ("level_", "x"), ("partition", "3")];
        let record = Record::builder().level(log::Level::Warn).key_values(&pairs).args(format_args!("said")).build();
        let fields = fields(&record);
        for (name, value) in
            [("level", "WARN"), ("message", "said"), ("level_", "info,api=debug"), ("level__", "x"), ("partition", "3")]
        {
            assert_eq!(fields[name], value, "{name}");
        }
    }
}
