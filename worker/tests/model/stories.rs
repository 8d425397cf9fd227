//! The shortest ways into trouble with one guard broken, as docs/RELIABILITY.md tells them.

use std::fmt::Write as _;
use std::path::{Path as File, PathBuf};

use stateright::{Checker, HasDiscoveries, Model, Path};

use crate::actions::Action;
use crate::guards::Guard;
use crate::world::World;
use crate::{Rule, STORES_ALL, calm};

/// Around the part of the document that is written here.
const BEGIN: &str = "<!-- Written by `scripts/model-check --stories`, and compared by a test. -->\n";
const END: &str = "<!-- End of what is written. -->\n";

/// Two records, one or two faults.
const SMALL: Rule = Rule::fine(2, 2);
/// Two records of one bucket, one of which can overtake the other.
const TWO_OF_A_BUCKET: Rule = Rule::fine(3, 1);

/// A violated property and the way to it.
type Story = (&'static str, Path<World, Action>);

/// The shortest way to a violated property: breadth first, by one thread, so that it is the same each time.
fn shortest(rule: Rule) -> Option<Story> {
    let search = |depth: usize| {
        let checker = rule.checker().finish_when(HasDiscoveries::AnyFailures).target_max_depth(depth);
        let mut found: Vec<Story> = checker.spawn_bfs().join().discoveries().into_iter().collect();
        found.sort_by_key(|(property, path)| (path.clone().into_actions().len(), *property));
        found.into_iter().next()
    };
    let mut found = search(usize::MAX)?;
    // The checker goes on a little after the first, and keeps the last.
    while let Some(shorter) = search(found.1.clone().into_actions().len() + 1) {
        found = shorter;
    }
    Some(found)
}

fn tell(guard: Guard) -> String {
    let log = if guard == Guard::WriteAnyway { TWO_OF_A_BUCKET } else { SMALL };
    let rule = Rule { broken: Some(guard), ..log };
    let (name, words) = guard.describe();
    let Some((property, path)) = shortest(rule) else { return format!("**`{name}`** is not needed.\n") };
    let mut steps = Vec::new();
    let mut happened = None;
    for (world, action) in path.into_vec() {
        steps.push((happened, world));
        happened = action;
    }
    let violated = steps.len() - 1;
    let mut then = String::new();
    if property == STORES_ALL
        && let Some((_, last)) = steps.last()
        && let Some(calm) = calm::bad_end(last, rule.broken, World::is_stored)
    {
        steps.extend(calm.into_iter().map(|(action, world)| (Some(action), world)));
        let missing = steps.last().map(|(_, world)| world.missing()).unwrap_or_default();
        then = format!("; the calm run that follows leaves out record {missing}");
    }
    let mut story = format!(
        "**`{name}`**: {words} Violates *{property}* after {violated} steps{then}:\n\n\
         | | what happens | bucket 0 | bucket 1 | commit |\n|---|---|---|---|---|\n"
    );
    for (nth, (happened, world)) in steps.into_iter().enumerate() {
        let happened = happened.map_or_else(|| world.setting(), |action| action.to_string());
        let [first, second] = world.redis;
        let commit = world.committed.map_or("none".to_owned(), |next| next.to_string());
        // Writing to a string can't fail.
        let _ = writeln!(story, "| {nth} | {happened} | {first} | {second} | {commit} |");
    }
    story
}

fn document() -> PathBuf {
    File::new(env!("CARGO_MANIFEST_DIR")).join("../docs/RELIABILITY.md")
}

#[test]
fn the_documented_counterexamples_are_the_shortest() {
    let told = Guard::NEEDED.map(tell).join("\n");
    let text = std::fs::read_to_string(document()).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (written, after) = rest.split_once(END).unwrap();
    if std::env::var_os("WRITE_STORIES").is_some() {
        return std::fs::write(document(), format!("{before}{BEGIN}\n{told}\n{END}{after}")).unwrap();
    }
    assert_eq!(written.trim(), told.trim(), "docs/RELIABILITY.md is out of date: run scripts/model-check --stories");
}
