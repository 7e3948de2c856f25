//! The figures that are told first: a picture of bars, and the same as a small table.
//!
//! Each panel is one figure of the relays. The picture brings its own white ground, so that it is
//! read the same on a light page and on a dark one.

use std::fmt::Write as _;

use super::{Results, tables};
use crate::subjects::Subject;
use crate::workloads::Workload;
use crate::workloads::figure::Figure;

/// One figure of all relays.
struct Panel {
    title: &'static str,
    /// Unit, as it stands behind a number and in the head of a column.
    unit: &'static str,
    workload: Workload,
    case: usize,
    figure: Figure,
    /// How many of the figure's own unit are one of `unit`.
    divisor: f64,
}

const PANELS: [Panel; 4] = [
    Panel {
        title: "CPU per echo of 64 bytes",
        unit: "µs",
        workload: Workload::Echo64,
        case: 0,
        figure: Figure::CpuUsPerEcho,
        divisor: 1.0,
    },
    Panel {
        title: "CPU per session, from connect to close",
        unit: "µs",
        workload: Workload::Churn,
        case: 0,
        figure: Figure::CpuUsPerSession,
        divisor: 1.0,
    },
    Panel {
        title: "Memory per idle session, of 9,000",
        unit: "KiB",
        workload: Workload::Idle,
        case: 1,
        figure: Figure::BytesPerSession,
        divisor: 1024.0,
    },
    Panel {
        title: "CPU per MB streamed to the client",
        unit: "µs",
        workload: Workload::Download64k,
        case: 0,
        figure: Figure::CpuUsPerMegabyte,
        divisor: 1.0,
    },
];

impl Panel {
    /// What each subject came to, in the panel's unit.
    fn bars(&self, results: &Results) -> Vec<(Subject, f64)> {
        let subjects = results.subjects_of(self.workload).into_iter();
        let bars = subjects.filter_map(|subject| Some((subject, self.value(results, subject)?)));
        bars.collect()
    }

    fn value(&self, results: &Results, subject: Subject) -> Option<f64> {
        let value = results.median(self.workload, self.case, subject, self.figure)?;
        Some(value / self.divisor)
    }
}

/// The panels as a table, a row for each relay.
pub fn summary(results: &Results) -> String {
    let mut head = vec![String::new()];
    head.extend(
        PANELS
            .iter()
            .map(|panel| format!("{}, {}", panel.title, panel.unit)),
    );
    let mut subjects: Vec<Subject> = PANELS
        .iter()
        .flat_map(|panel| panel.bars(results))
        .map(|(subject, _)| subject)
        .collect();
    subjects.sort();
    subjects.dedup();
    let rows = subjects.iter().map(|&subject| {
        let cells = PANELS.iter().map(|panel| {
            let value = panel.value(results, subject);
            value.map_or_else(|| "–".to_owned(), |value| panel.figure.show(value))
        });
        std::iter::once(subject.title().to_owned())
            .chain(cells)
            .collect()
    });
    tables::markdown(&head, &rows.collect::<Vec<_>>())
}

const WIDTH: usize = 860;
const MARGIN: usize = 24;
const PANEL_WIDTH: usize = 394;
/// Where bars begin within a panel; names stand before.
const BARS_X: usize = 140;
const LONGEST_BAR: f64 = 180.0;
const BAR_HEIGHT: usize = 18;
const ROW_HEIGHT: usize = 26;
const TITLE_HEIGHT: usize = 36;
const OURS: &str = "#9c5400";
const THEIRS: &str = "#9fb3c8";

/// The panels as a picture, two by two. Less is better in all of them.
pub fn svg(results: &Results) -> String {
    let bars = PANELS.each_ref().map(|panel| panel.bars(results));
    let height_of = |row: usize| {
        let n_bars = bars[2 * row].len().max(bars[2 * row + 1].len());
        TITLE_HEIGHT + n_bars * ROW_HEIGHT + MARGIN
    };
    let tops = [MARGIN, MARGIN + height_of(0)];
    let height = tops[1] + height_of(1) + MARGIN / 2;
    let mut picture = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="ui-sans-serif, system-ui, sans-serif" font-size="14" role="img" aria-label="{}">
  <rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>
"##,
        description(results)
    );
    for (n, (panel, bars)) in PANELS.iter().zip(&bars).enumerate() {
        let x = MARGIN + (n % 2) * (PANEL_WIDTH + MARGIN);
        draw(&mut picture, panel, bars, x, tops[n / 2]);
    }
    // Writing to a string cannot fail, here and below.
    let _ok = writeln!(
        picture,
        r##"  <text x="{}" y="{}" text-anchor="end" font-size="12" fill="#627d98">less is better; {}</text>
</svg>"##,
        WIDTH - MARGIN,
        height - MARGIN / 2,
        results.machine.processor,
    );
    picture
}

fn draw(picture: &mut String, panel: &Panel, bars: &[(Subject, f64)], x: usize, y: usize) {
    let longest = bars
        .iter()
        .map(|(_, value)| *value)
        .fold(f64::MIN_POSITIVE, f64::max);
    let _ok = writeln!(
        picture,
        r##"  <text x="{x}" y="{}" font-weight="600" fill="#102a43">{}, {}</text>"##,
        y + 16,
        panel.title,
        panel.unit,
    );
    for (n, (subject, value)) in bars.iter().enumerate() {
        let top = y + TITLE_HEIGHT + n * ROW_HEIGHT;
        let baseline = top + 14;
        let width = (value.max(0.0) / longest * LONGEST_BAR).max(1.0);
        let (fill, weight) = if subject.is_pointsman() {
            (OURS, 600)
        } else {
            (THEIRS, 400)
        };
        let bars_x = x + BARS_X;
        let number = panel.figure.show(*value);
        let (name, unit) = (subject.short_title(), panel.unit);
        let _ok = writeln!(
            picture,
            r##"  <g font-weight="{weight}" fill="#243b53"><text x="{}" y="{baseline}" text-anchor="end">{name}</text><rect x="{bars_x}" y="{top}" width="{width:.1}" height="{BAR_HEIGHT}" rx="3" fill="{fill}"/><text x="{:.1}" y="{baseline}">{number} {unit}</text></g>"##,
            bars_x - 10,
            f64::from(u32::try_from(bars_x).unwrap_or(0)) + width + 8.0,
        );
    }
}

/// The picture in words, for whoever cannot see it.
fn description(results: &Results) -> String {
    let panels = PANELS.iter().map(|panel| {
        let bars = panel.bars(results);
        let bars = bars.iter().map(|(subject, value)| {
            format!(
                "{} {} {}",
                subject.title(),
                panel.figure.show(*value),
                panel.unit
            )
        });
        format!("{}: {}", panel.title, bars.collect::<Vec<_>>().join(", "))
    });
    panels.collect::<Vec<_>>().join(". ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn the_picture_has_a_bar_and_a_number_for_each_subject() {
        let picture = svg(&sample());
        assert!(picture.contains(">5.00 µs</text>"), "{picture}");
        assert!(picture.contains(r#"width="180.0""#), "{picture}");
        assert!(picture.contains(r#"width="90.0""#), "{picture}");
        assert_eq!(picture.matches("<g ").count(), 2);
        assert_eq!(
            picture.matches("<g ").count(),
            picture.matches("</g>").count()
        );
        assert!(picture.ends_with("</svg>\n"));
    }

    #[test]
    fn the_summary_has_a_row_for_each_relay() {
        let table = summary(&sample());
        assert!(table.contains("| Pointsman |"), "{table}");
        assert_eq!(table.lines().count(), 4);
    }
}
