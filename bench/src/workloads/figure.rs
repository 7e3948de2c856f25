//! What can come of a run: kinds of figures, each with its unit.
//!
//! A run hands over [`Figures`]; tables and pictures ask each figure for its title and its decimals.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What one run of one subject came to.
pub type Figures = BTreeMap<Figure, f64>;

/// A kind of figure; the unit is part of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Echoes a second; sessions a second, for churn.
    PerSecond,
    /// Median time to an answer, in microseconds.
    P50Us,
    /// One in a hundred takes longer, in microseconds.
    P99Us,
    /// One in a thousand takes longer, in microseconds.
    P999Us,
    /// Processor time of the peer for one echo, in microseconds.
    CpuUsPerEcho,
    /// The share of it outside the kernel, in microseconds.
    UserUsPerEcho,
    /// Processor time of the peer for one message to one of its readers, in microseconds.
    CpuUsPerDelivery,
    /// Processor time of the peer from accept to close, in microseconds.
    CpuUsPerSession,
    /// Processor time of the peer for 2^20 bytes of payload, in microseconds.
    CpuUsPerMegabyte,
    /// 2^20 bytes of payload a second.
    MegabytesPerSecond,
    /// Memory that an open session adds to the peer, in bytes.
    BytesPerSession,
    /// From the end of all connections until the last client is served again, in seconds.
    SecondsUntilBack,
    /// Attempts to connect again that were refused.
    Refused,
    /// System calls of the peer for one echo.
    CallsPerEcho,
    /// Those of them that read.
    ReadsPerEcho,
    /// Those of them that write.
    WritesPerEcho,
    /// Those of them that wait for readiness.
    WaitsPerEcho,
    /// Sessions of the busiest worker, divided by the mean.
    WorstWorker,
    /// From the rename of a plugin's file to its new generation, in milliseconds.
    ReloadMs,
    /// As [`Figure::P99Us`], while plugins are replaced.
    ReloadingP99Us,
    /// As [`Figure::P999Us`], while plugins are replaced.
    ReloadingP999Us,
}

impl Figure {
    /// Head of a column.
    pub fn title(self) -> &'static str {
        match self {
            Self::PerSecond => "per second",
            Self::P50Us => "p50 µs",
            Self::P99Us => "p99 µs",
            Self::P999Us => "p99.9 µs",
            Self::CpuUsPerEcho => "CPU µs per echo",
            Self::UserUsPerEcho => "of it user",
            Self::CpuUsPerDelivery => "CPU µs per delivery",
            Self::CpuUsPerSession => "CPU µs per session",
            Self::CpuUsPerMegabyte => "CPU µs per MB",
            Self::MegabytesPerSecond => "MB per second",
            Self::BytesPerSession => "bytes per session",
            Self::SecondsUntilBack => "s until all are back",
            Self::Refused => "refused",
            Self::CallsPerEcho => "calls per echo",
            Self::ReadsPerEcho => "reads",
            Self::WritesPerEcho => "writes",
            Self::WaitsPerEcho => "waits",
            Self::WorstWorker => "worst worker ÷ mean",
            Self::ReloadMs => "ms to the new generation",
            Self::ReloadingP99Us => "p99 µs, reloading",
            Self::ReloadingP999Us => "p99.9 µs, reloading",
        }
    }

    /// Whether more of it is better; of everything else, less is.
    pub fn is_better_high(self) -> bool {
        matches!(self, Self::PerSecond | Self::MegabytesPerSecond)
    }

    /// The number as people read it: as many digits as a repetition would confirm.
    pub fn show(self, value: f64) -> String {
        let decimals = match value.abs() {
            small if small < 10.0 => 2,
            middling if middling < 100.0 => 1,
            _ => 0,
        };
        grouped(&format!("{value:.decimals$}"))
    }
}

/// The middle one; of an even number, the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// The median of each figure over several rounds, taken figure by figure.
pub fn medians(rounds: &[Figures]) -> Figures {
    let figures: BTreeSet<Figure> = rounds
        .iter()
        .flat_map(|round| round.keys().copied())
        .collect();
    let of_figure = |figure: Figure| {
        let values: Vec<f64> = rounds
            .iter()
            .filter_map(|round| round.get(&figure).copied())
            .collect();
        Some((figure, median(&values)?))
    };
    figures.into_iter().filter_map(of_figure).collect()
}

/// `1234567.8` as `1,234,567.8`.
fn grouped(number: &str) -> String {
    let (sign, digits) = number
        .strip_prefix('-')
        .map_or(("", number), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut grouped = String::from(sign);
    for (n, digit) in whole.chars().enumerate() {
        if n > 0 && (whole.len() - n).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if !fraction.is_empty() {
        grouped.push('.');
        grouped += fraction;
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn medians_are_taken_figure_by_figure() {
        let round = |cpu, p50| Figures::from([(Figure::CpuUsPerEcho, cpu), (Figure::P50Us, p50)]);
        let of_three = medians(&[round(1.0, 30.0), round(2.0, 10.0), round(9.0, 20.0)]);
        assert_eq!(of_three, round(2.0, 20.0));
    }

    #[track_caller]
    fn check(value: f64, expected: &str) {
        assert_eq!(Figure::P50Us.show(value), expected);
    }

    #[test]
    fn numbers_have_three_digits_or_more_and_are_grouped() {
        check(0.123, "0.12");
        check(9.876, "9.88");
        check(98.76, "98.8");
        check(987.6, "988");
        check(1_234_567.8, "1,234,568");
        check(-1234.0, "-1,234");
    }
}
