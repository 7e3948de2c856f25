//! Figures as text: Markdown whose columns are even, fit for a terminal and for a page alike.
//!
//! [`of_workload`] is one table for one question, with all subjects under each other.

use super::Results;
use crate::subjects::Subject;
use crate::workloads::Workload;
use crate::workloads::figure::Figure;

/// What stands where nothing was measured.
const NOTHING: &str = "–";

/// The table of a workload; none if nothing of it was measured.
pub fn of_workload(results: &Results, workload: Workload) -> Option<String> {
    let subjects = results.subjects_of(workload);
    let columns = workload.columns();
    let (case, figure) = *columns.get(workload.compared())?;
    let compared = |subject| results.median(workload, case, subject, figure);
    let best = best_peer(figure, &subjects, compared);
    if subjects.is_empty() {
        return None;
    }

    let cases = workload.cases();
    let is_one_figure = columns.iter().all(|column| column.1 == figure) && columns.len() > 1;
    // Behind the column of names and the column compared.
    let ratios = workload.compared() + 2;
    let mut head = vec![String::new()];
    head.extend(columns.iter().map(|(case, figure)| {
        if is_one_figure {
            cases[*case].label.clone()
        } else {
            figure.title().to_owned()
        }
    }));
    let range = |subject| results.range(workload, case, subject, figure);
    let has_ranges = subjects.iter().any(|subject| range(*subject).is_some());
    if has_ranges {
        head.insert(ratios, "rounds".to_owned());
    }
    if best.is_some() {
        head.insert(ratios, "× best peer".to_owned());
    }
    let rows = subjects.iter().map(|&subject| {
        let mut row = vec![subject.title().to_owned()];
        row.extend(columns.iter().map(|&(case, figure)| {
            let value = results.median(workload, case, subject, figure);
            let has_failed = results.has_failed(workload, case, subject);
            let nothing = if has_failed { "failed" } else { NOTHING };
            value.map_or_else(|| nothing.to_owned(), |value| figure.show(value))
        }));
        if has_ranges {
            let range = range(subject)
                .map(|(least, most)| format!("{}–{}", figure.show(least), figure.show(most)));
            row.insert(ratios, range.unwrap_or_else(|| NOTHING.to_owned()));
        }
        if let Some(best) = best {
            let ratio = compared(subject).map(|value| format!("{:.2}", value / best));
            row.insert(ratios, ratio.unwrap_or_else(|| NOTHING.to_owned()));
        }
        row
    });
    Some(markdown(&head, &rows.collect::<Vec<_>>()))
}

/// The best that any subject but Pointsman came to.
fn best_peer(
    figure: Figure,
    subjects: &[Subject],
    value_of: impl Fn(Subject) -> Option<f64>,
) -> Option<f64> {
    let peers = subjects.iter().filter(|subject| !subject.is_pointsman());
    let values = peers.filter_map(|subject| value_of(*subject));
    if figure.is_better_high() {
        values.reduce(f64::max)
    } else {
        values.reduce(f64::min)
    }
}

/// What a call of a plugin costs; none if that was not measured.
pub fn of_plugin_calls(results: &Results) -> Option<String> {
    let head = ["", "best ns", "median ns"].map(str::to_owned);
    let rows = results.plugin_calls.iter().map(|call| {
        vec![
            call.what.clone(),
            Figure::P50Us.show(call.best_ns),
            Figure::P50Us.show(call.median_ns),
        ]
    });
    let rows: Vec<_> = rows.collect();
    (!rows.is_empty()).then(|| markdown(&head, &rows))
}

/// Versions and command lines.
pub fn of_subjects(results: &Results) -> String {
    let head = ["", "version", "command"].map(str::to_owned);
    let rows = results.versions.iter().map(|(subject, version)| {
        let command = results
            .commands
            .get(subject)
            .map_or_else(String::new, |line| format!("`{line}`"));
        vec![subject.title().to_owned(), version.clone(), command]
    });
    left_aligned(&head, &rows.collect::<Vec<_>>())
}

/// A table of names and numbers: the first column to the left, the others to the right.
pub fn markdown(head: &[String], rows: &[Vec<String>]) -> String {
    aligned(head, rows, |column| column > 0)
}

fn left_aligned(head: &[String], rows: &[Vec<String>]) -> String {
    aligned(head, rows, |_| false)
}

fn aligned(head: &[String], rows: &[Vec<String>], is_right: impl Fn(usize) -> bool) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .chain(head.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
            .max(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if is_right(column) {
                    format!(" {cell:>width$} ")
                } else {
                    format!(" {cell:<width$} ")
                }
            });
        format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
    };
    let rule = widths.iter().enumerate().map(|(column, width)| {
        if is_right(column) {
            format!(" {}: ", "-".repeat(width - 1))
        } else {
            format!(" {} ", "-".repeat(*width))
        }
    });
    let rule = format!("|{}|\n", rule.collect::<Vec<_>>().join("|"));
    let rows: String = rows.iter().map(|row| line(row)).collect();
    line(head) + &rule + &rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn a_table_is_even_and_compares_with_the_best_peer() {
        let table = of_workload(&sample(), Workload::Echo64).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert!(
            lines[0].starts_with("|           | CPU µs per echo | × best peer |    rounds |"),
            "{table}"
        );
        assert!(
            lines[1].starts_with("| --------- | --------------: | ----------: | --------: |"),
            "{table}"
        );
        assert!(
            lines[2].starts_with("| Pointsman |            5.00 |        0.50 | 4.00–6.00 |"),
            "{table}"
        );
        assert!(
            lines[3].starts_with("| nginx     |            10.0 |        1.00 | 8.00–12.0 |"),
            "{table}"
        );
        let lengths: Vec<usize> = lines.iter().map(|line| line.chars().count()).collect();
        assert!(
            lengths.iter().all(|length| *length == lengths[0]),
            "{table}"
        );
        assert!(lines[2].contains(" – "), "{table}");
    }

    #[test]
    fn what_was_not_measured_has_no_table() {
        assert_eq!(of_workload(&sample(), Workload::Churn), None);
    }

    #[test]
    fn without_peers_there_is_no_comparison() {
        let mut results = sample();
        results
            .measured
            .retain(|measured| measured.subject.is_pointsman());
        let table = of_workload(&results, Workload::Echo64).unwrap();
        assert!(!table.contains("best peer"), "{table}");
    }

    #[test]
    fn calls_of_plugins_have_a_table() {
        let table = of_plugin_calls(&sample()).unwrap();
        assert!(
            table.contains("| choose |     250 |       260 |"),
            "{table}"
        );
    }
}
