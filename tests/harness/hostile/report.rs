//! The outcomes side by side, as Markdown.

use std::fmt::Write as _;

use super::{Case, Outcome};

/// One table per group: what came of each case, column by column. Where it is not as the table wants it,
/// it is in bold.
pub fn page(cases: &[Case], columns: &[(String, Vec<Outcome>)]) -> String {
    let mut page = String::new();
    let mut group = "";
    for (n, case) in cases.iter().enumerate() {
        if case.group != group {
            group = case.group;
            let titles: Vec<_> = columns.iter().map(|(title, _)| title.as_str()).collect();
            let _ = write!(
                page,
                "\n## {group}\n\n| case | wanted | {} |\n| --- | --- |{}\n",
                titles.join(" | "),
                " --- |".repeat(titles.len())
            );
        }
        let cells: Vec<_> = columns
            .iter()
            .filter_map(|(_, outcomes)| Some(cell(case, outcomes.get(n)?)))
            .collect();
        let note = match case.note {
            "" => String::new(),
            note => format!(" ({note})"),
        };
        let _ = writeln!(
            page,
            "| {}{note} | {} | {} |",
            case.name,
            wanted(case),
            cells.join(" | ")
        );
    }
    page
}

/// In how many cases each column is as the table wants it, and what a refusal too few costs.
pub fn summary(cases: &[Case], columns: &[(String, Vec<Outcome>)]) -> String {
    let mut text = format!(
        "| of {} cases | as wanted | forwarded, though to be refused here | a tunnel, though none is wanted | no end in time |\n\
         | --- | ---: | ---: | ---: | ---: |\n",
        cases.len()
    );
    for (title, outcomes) in columns {
        let count = |holds: &dyn Fn(&Case, &Outcome) -> bool| {
            let all = cases.iter().zip(outcomes);
            all.filter(|(case, outcome)| holds(case, outcome)).count()
        };
        let _ = writeln!(
            text,
            "| {title} | {} | {} | {} | {} |",
            count(&|case, outcome| case.expected.problems(outcome).is_empty()),
            count(&|case, outcome| case.expected.n_heard == Some(0) && outcome.n_heard() > 0),
            count(&|case, outcome| outcome.statuses.contains(&101)
                && !case.expected.statuses.contains(&101)
                && case.expected.or != Some(101)),
            count(&|case, outcome| case
                .expected
                .ends_within
                .is_some_and(|limit| outcome.ended.is_none_or(|after| after > limit))),
        );
    }
    text
}

fn wanted(case: &Case) -> String {
    let expected = &case.expected;
    let mut answers: Vec<_> = expected.statuses.iter().map(u16::to_string).collect();
    if let (Some(or), [only]) = (expected.or, &mut answers[..]) {
        *only = format!("{only} or {or}");
    }
    let answers = match answers.is_empty() {
        true => "no answer".to_owned(),
        false => answers.join(", "),
    };
    match expected.n_heard {
        Some(0) => format!("{answers}, not forwarded"),
        _ => answers,
    }
}

fn cell(case: &Case, outcome: &Outcome) -> String {
    let answers: Vec<_> = outcome.statuses.iter().map(u16::to_string).collect();
    let mut cell = match (answers.is_empty(), outcome.ended) {
        (false, _) => answers.join(", "),
        (true, Some(_)) if outcome.received.is_empty() => "closed".to_owned(),
        (true, Some(_)) => "no HTTP/1 answer".to_owned(),
        (true, None) => "silence".to_owned(),
    };
    if outcome.n_heard() > 0 {
        cell.push_str(", forwarded");
    }
    if case.expected.problems(outcome).is_empty() {
        cell
    } else {
        let sent = outcome.sent();
        let leaks = case
            .expected
            .unsent
            .iter()
            .find(|text| sent.contains(*text));
        if let Some(text) = leaks {
            let _ = write!(cell, " with `{}`", text.trim().escape_debug());
        }
        format!("**{cell}**")
    }
}
