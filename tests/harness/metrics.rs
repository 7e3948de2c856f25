//! The Prometheus text format, as far as tests read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::LazyLock;

use anyhow::{Context, Result};

use crate::config::repository;

/// One reading of `/metrics`.
#[derive(Clone, Debug)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads `text`, which is in the Prometheus or the OpenMetrics text format.
    ///
    /// # Errors
    ///
    /// A line is neither a comment nor a sample.
    pub fn parse(text: &str) -> Result<Self> {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| sample(line).with_context(|| format!("not a sample: {line:?}")))
            .collect::<Result<_>>()?;
        Ok(Self { samples })
    }

    /// The sum of the samples called `name` that carry all of `labels`; 0 if there is none, which
    /// is what a counter that was never touched means.
    ///
    /// # Panics
    ///
    /// There is no such metric, or it has no such label. Some families have samples only once
    /// something has happened: what is not on this page must be in `docs/metrics.md`, which
    /// `admin::promtool_reads_what_is_documented` compares with a page that has them all.
    #[track_caller]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.must_exist(name, labels);
        // The sum of no floats is -0.
        self.matching(name, labels)
            .map(|s| s.value)
            .fold(0.0, |sum, value| sum + value)
    }

    /// Whether there is a sample called `name` that carries all of `labels`.
    ///
    /// # Panics
    ///
    /// See [`Metrics::sum`].
    #[track_caller]
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.must_exist(name, labels);
        self.matching(name, labels).next().is_some()
    }

    #[track_caller]
    fn must_exist(&self, name: &str, labels: &[(&str, &str)]) {
        let mut on_page = self.samples.iter().filter(|s| s.name == name).peekable();
        let documented = DOCUMENTED.get(family(name).as_str());
        assert!(
            on_page.peek().is_some() || documented.is_some(),
            "no metric is called {name}: it is neither on the page nor in docs/metrics.md"
        );
        let known: BTreeSet<&String> = on_page
            .flat_map(|sample| sample.labels.keys())
            .chain(documented.into_iter().flatten())
            .collect();
        for (label, _) in labels {
            assert!(
                known.iter().any(|known| known == label),
                "{name} has no label {label}, but {known:?}"
            );
        }
    }

    /// The labels of all families on the page; `le` is no label, as in the documentation.
    pub fn families(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut families = BTreeMap::<_, BTreeSet<_>>::new();
        for sample in &self.samples {
            let labels = sample.labels.keys().filter(|label| *label != "le");
            families
                .entry(family(&sample.name))
                .or_default()
                .extend(labels.cloned());
        }
        families
    }

    fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        })
    }
}

/// The families of `docs/metrics.md` with their labels: the first and the third cells of its tables.
static DOCUMENTED: LazyLock<BTreeMap<String, BTreeSet<String>>> = LazyLock::new(|| {
    let docs = fs::read_to_string(repository("docs/metrics.md")).expect("docs/metrics.md");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let (name, _) = cells.next()?.split_once('`')?;
        let is_metric = name.starts_with("pointsman_") || name.starts_with("process_");
        // Every other piece between backticks is a label.
        let labels = cells.nth(1)?.split('`').skip(1).step_by(2);
        is_metric.then(|| (name.to_owned(), labels.map(str::to_owned).collect()))
    };
    docs.lines().filter_map(row).collect()
});

/// The families of `docs/metrics.md` with their labels.
pub fn documented_metrics() -> &'static BTreeMap<String, BTreeSet<String>> {
    &DOCUMENTED
}

/// What a sample of a histogram belongs to.
fn family(sample: &str) -> String {
    let of_histogram = ["_bucket", "_sum", "_count"]
        .iter()
        .find_map(|suffix| sample.strip_suffix(suffix));
    of_histogram.unwrap_or(sample).to_owned()
}

/// `name{key="value",...} number`. Values with escapes do not occur in tests.
fn sample(line: &str) -> Option<Sample> {
    let (name, labels, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, rest) = rest.rsplit_once('}')?;
            (name, labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, "", rest)
        }
    };
    let labels = labels
        .split_terminator(',')
        .map(|pair| {
            let (key, value) = pair.split_once('=')?;
            Some((key.to_owned(), value.trim_matches('"').to_owned()))
        })
        .collect::<Option<_>>()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: rest.split_whitespace().next()?.parse().ok()?,
    })
}
