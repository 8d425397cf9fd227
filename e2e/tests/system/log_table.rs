//! docs/LOGGING.md, held to the code: each row of its table is a line that is logged with this level and these fields, and
//! each line that is logged, but for debug lines, has a row. It reads the sources; no process is started.

use std::{collections::BTreeSet, fs, path::Path};

const DOCUMENT: &str = include_str!("../../../docs/LOGGING.md");
/// What differs from line to line: placeholders in the code.
const ANY: char = '…';

type Fields = BTreeSet<String>;

/// A call of `log::…!`.
#[derive(Debug)]
struct Statement {
    krate: &'static str,
    /// Empty where the level is chosen at run time.
    level: String,
    fields: Fields,
    message: String,
}

/// A row of the table, for one of the beginnings that it names.
#[derive(Debug)]
struct Row {
    begins: String,
    levels: String,
    fields: Fields,
    role: String,
}

impl Row {
    /// Whether a line of this crate may be meant.
    fn is_of(&self, krate: &str) -> bool {
        krate == "common" || self.role == "both" || self.role == krate
    }

    /// Whether it describes this call. A message that is all placeholder is told by its level and fields.
    fn describes(&self, statement: &Statement) -> bool {
        let says = statement.message.starts_with(&self.begins) || statement.message.starts_with(ANY) && !self.is_open();
        let level = statement.level.is_empty() || self.levels.split(' ').any(|level| level == statement.level);
        says && level && self.fields == statement.fields && self.is_of(statement.krate)
    }

    fn is_open(&self) -> bool {
        self.begins.starts_with(ANY)
    }
}

/// Files without their tests, with placeholders as [`ANY`] and literals in one line.
fn sources(krate: &str) -> Vec<String> {
    fn read(folder: &Path, into: &mut Vec<String>) {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                read(&path, into);
            } else if !path.ends_with("mutation.rs") {
                let text = fs::read_to_string(&path).unwrap();
                into.push(normal(text.split("#[cfg(test)]").next().unwrap()));
            }
        }
    }
    let mut texts = Vec::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(krate).join("src"), &mut texts);
    texts
}

fn normal(text: &str) -> String {
    let mut lines = text.split("\\\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let text = lines.fold(first, |all, line| all + line.trim_start());
    let mut parts = text.split('{');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| match part.split_once('}') {
        Some((name, behind)) if !name.contains([' ', '\n', '"', ';']) => format!("{all}{ANY}{behind}"),
        _ => format!("{all}{{{part}"),
    })
}

/// The calls in a file.
fn statements(krate: &'static str, text: &str) -> Vec<Statement> {
    let calls = text.match_indices("log::").filter_map(|(start, found)| {
        let (macro_name, arguments) = text[start + found.len()..].split_once("!(")?;
        let level = match macro_name {
            "log" => "",
            "error" | "warn" | "info" | "debug" => macro_name,
            _ => return None,
        };
        let (before, rest) = arguments.split_once('"').unwrap();
        // What the client of Kafka says is its own.
        let own = !before.contains("target:");
        let fields = before.rsplit_once(';').map_or("", |(fields, _)| fields);
        let fields =
            fields.split(", ").map(field).filter(|name| !(name.is_empty() || level.is_empty() && name == "level"));
        let message = rest.split('"').next().unwrap().to_owned();
        own.then(|| Statement { krate, level: level.to_owned(), fields: fields.collect(), message })
    });
    calls.collect()
}

/// The name in `name`, `name = value` and `name:% = value`.
fn field(text: &str) -> String {
    text.trim().chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect()
}

/// What stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

fn documented() -> Vec<Row> {
    let rows = DOCUMENT.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').map(str::trim));
    let mut found = Vec::new();
    for cells in rows.map(Iterator::collect::<Vec<_>>) {
        let [_, begins, levels, fields, role, _] = cells[..] else { continue };
        found.extend(quoted(begins).map(|begins| Row {
            begins,
            levels: levels.replace([',', ';'], ""),
            fields: quoted(fields).collect(),
            role: role.to_owned(),
        }));
    }
    found
}

#[test]
fn the_table_of_log_lines_says_what_the_code_logs() {
    let (rows, mut all) = (documented(), Vec::new());
    assert!(rows.len() > 30, "the table is not read: {rows:#?}");
    let texts = ["api", "worker", "common"].map(|krate| (krate, sources(krate)));
    for (krate, texts) in &texts {
        all.extend(texts.iter().flat_map(|text| statements(krate, text)));
    }
    assert!(all.len() > 50, "the calls are not found: {all:#?}");
    for row in &rows {
        assert!(all.iter().any(|statement| row.describes(statement)), "documented, but not logged: {row:?}");
        // Also where a placeholder is all that the call says: the words come from somewhere.
        let words = row.begins.trim_end_matches(':');
        let mut texts = texts.iter().filter(|(krate, _)| row.is_of(krate)).flat_map(|(_, texts)| texts);
        assert!(texts.any(|text| text.contains(words)), "documented, but said nowhere: {row:?}");
    }
    for statement in all.iter().filter(|statement| statement.level != "debug") {
        assert!(rows.iter().any(|row| row.describes(statement)), "logged, but not documented: {statement:?}");
    }
}
