//! What a verify found, for people or for programs.

use super::progress::Progress;
use super::verdict::Counts;

/// `workers` are the members of the group: without any, what is in flight stays so.
#[expect(clippy::print_stdout, reason = "a command-line tool's output")]
pub(super) fn print(progress: &Progress, workers: usize, json: bool) -> anyhow::Result<()> {
    let counts = progress.counts();
    let examples: Vec<&str> = progress.examples().collect();
    if json {
        let holds = counts.holds();
        let report = serde_json::json!({"holds": holds, "counts": counts, "examples": examples, "workers": workers});
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    let Counts { records, stored, duplicates, dead_lettered, expired, trimmed, in_flight, unknown, missing } = counts;
    println!("records        {records:>12}");
    println!("  stored       {stored:>12}  distinct events");
    println!("  duplicates   {duplicates:>12}  of an event stored from another record");
    println!("  dead letters {dead_lettered:>12}");
    println!("  expired      {expired:>12}");
    println!("  trimmed      {trimmed:>12}  early, because Redis was full");
    println!("  in flight    {in_flight:>12}{}", if workers == 0 { "  and no worker is running" } else { "" });
    println!("  unknown      {unknown:>12}  not stored, and Redis has no position");
    println!("  missing      {missing:>12}");
    examples.iter().for_each(|example| println!("    {example}"));
    println!(
        "{}",
        match counts.holds() {
            Some(true) => "the equation holds",
            Some(false) => "THE EQUATION DOES NOT HOLD",
            None => "NOBODY CAN SAY WHETHER THE EQUATION HOLDS",
        }
    );
    Ok(())
}
