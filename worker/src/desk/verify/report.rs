//! What a verify found, for people or for programs.

use anyhow::bail;

use super::progress::Progress;
use super::verdict::Counts;

#[expect(clippy::print_stdout, reason = "a command-line tool's output")]
pub(super) fn print(progress: &Progress, json: bool) -> anyhow::Result<()> {
    let Counts { records, stored, duplicates, dead_lettered, expired, trimmed, in_flight, missing } = &progress.counts;
    if json {
        println!(
            "{}",
            serde_json::to_string(&serde_json::json!({
                "holds": progress.counts.holds(), "counts": progress.counts, "examples": progress.examples,
            }))?
        );
        return Ok(());
    }
    println!("records        {records:>12}");
    println!("  stored       {stored:>12}  distinct events");
    println!("  duplicates   {duplicates:>12}  of an event stored from another record");
    println!("  dead letters {dead_lettered:>12}");
    println!("  expired      {expired:>12}");
    println!("  trimmed      {trimmed:>12}  early, because Redis was full");
    println!("  in flight    {in_flight:>12}");
    println!("  missing      {missing:>12}");
    progress.examples.iter().for_each(|example| println!("    {example}"));
    println!("{}", if progress.counts.holds() { "the equation holds" } else { "THE EQUATION DOES NOT HOLD" });
    if progress.counts.records == 0 {
        bail!("there was nothing to verify");
    }
    Ok(())
}
