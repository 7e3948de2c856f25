//! The documentation: tables and a picture put where the pages keep a place for them.
//!
//! A place is between two markers, which stay; everything else on a page is left alone.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::{DISTURBED, Results, picture, tables};
use crate::workloads::Workload;

const BEGIN: &str = "<!-- figures: begin -->\n";
const END: &str = "<!-- figures: end -->\n";

/// Writes `docs/benchmarks.md`, `docs/benchmarks.svg` and the table of `README.md`.
///
/// # Errors
/// A page is missing or has no place for figures.
pub fn write(results: &Results, root: &Path) -> Result<()> {
    put(&root.join("docs/benchmarks.md"), &full(results))?;
    put(&root.join("README.md"), &picture::summary(results))?;
    let file = root.join("docs/benchmarks.svg");
    fs::write(&file, picture::svg(results))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// All tables with their heads and explanations.
pub fn full(results: &Results) -> String {
    let (fewest, most) = results.rounds();
    let rounds = match (fewest, most) {
        (1, 1) => "1 round".to_owned(),
        (_, _) if fewest == most => format!("{most} rounds"),
        _ => format!("{fewest} to {most} rounds"),
    };
    let mut page = format!(
        "Machine: {}.\nEach figure is the median of {rounds} of {} s each, with the subjects in turn.\n\n",
        results.machine, results.seconds
    );
    page += &disturbance(results);
    page += &tables::of_subjects(results);
    let sections = Workload::value_variants().iter().filter_map(|&workload| {
        let table = tables::of_workload(results, workload)?;
        Some((workload.title(), workload.explanation(), table))
    });
    let calls = tables::of_plugin_calls(results).map(|table| {
        (
            "Calls of a plugin",
            "From the host into a plugin and back.",
            table,
        )
    });
    for (title, explanation, table) in sections.chain(calls) {
        // Writing to a string cannot fail.
        let _ok = write!(page, "\n### {title}\n\n{explanation}\n\n{table}");
    }
    for failure in &results.failures {
        let (workload, subject) = (failure.workload.title(), failure.subject.title());
        let _ok = write!(
            page,
            "\nFailed: {subject} in \"{workload}\": {}\n",
            failure.error
        );
    }
    page
}

/// How far the machine was ours.
fn disturbance(results: &Results) -> String {
    let percent = 100.0 * DISTURBED;
    match results.disturbed() {
        (0, _) => String::new(),
        (all, 0) => format!(
            "In none of {all} runs did others keep over {percent:.0} % of a processor busy.\n\n"
        ),
        (all, n) => format!(
            "In {n} of {all} runs others kept over {percent:.0} % of a processor busy, also when repeated.\n\n"
        ),
    }
}

fn put(file: &Path, text: &str) -> Result<()> {
    let page =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let page = replaced(&page, text).with_context(|| {
        format!(
            "{} has no place between {BEGIN:?} and {END:?}",
            file.display()
        )
    })?;
    fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))
}

fn replaced(page: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{text}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let page = format!("before\n{BEGIN}old\n{END}after\n");
        let once = replaced(&page, "new").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\nnew\n{END}after\n"));
        assert_eq!(replaced(&once, "new").unwrap(), once);
        assert_eq!(replaced("no markers", "new"), None);
    }

    #[test]
    fn the_page_has_the_machine_the_commands_and_every_table() {
        let page = full(&sample());
        for wanted in [
            "A processor, 2 processors, 8 GiB of memory, Linux 6.1.0",
            "median of 2 rounds of 2 s",
            "In 1 of 4 runs others kept over 10 % of a processor busy",
            "`taskset -c 0 nginx`",
            "### Echo of 64 bytes, 64 connections",
            "### Calls of a plugin",
        ] {
            assert!(page.contains(wanted), "{wanted:?} is missing in\n{page}");
        }
    }
}
