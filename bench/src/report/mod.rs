//! What came of it: every round of every subject, on which machine, of which versions.
//!
//! [`Results`] goes in and out of a file of JSON; [`tables`] makes text of it, [`picture`] bars,
//! [`pages`] puts both into the documentation.

pub mod machine;
pub mod pages;
pub mod picture;
pub mod tables;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::subjects::Subject;
use crate::workloads::Workload;
use crate::workloads::figure::{Figure, Figures, medians};
use machine::Machine;

/// A round during which others keep more of a processor busy than this says little.
pub const DISTURBED: f64 = 0.1;

/// All that a reader needs to believe the figures, and to repeat them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Where they were taken.
    pub machine: Machine,
    /// Length of a measured span, in seconds.
    pub seconds: f64,
    /// Versions of the subjects, in their own words.
    pub versions: BTreeMap<Subject, String>,
    /// Command lines of the subjects, without the folders of this machine.
    pub commands: BTreeMap<Subject, String>,
    /// What was measured, in the order in which it was.
    pub measured: Vec<Measured>,
    /// What has no figure, because a run of it failed.
    pub failures: Vec<Failure>,
    /// What a call of a plugin costs, if `plugin_call_cost` has left its figures.
    pub plugin_calls: Vec<PluginCall>,
}

/// One case of a workload and one subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The workload.
    pub workload: Workload,
    /// Place of the case in [`Workload::cases`].
    pub case: usize,
    /// The subject.
    pub subject: Subject,
    /// What each round came to.
    pub rounds: Vec<Figures>,
    /// The median of each figure.
    pub medians: Figures,
    /// Processors that others kept busy during each round.
    #[serde(default)]
    pub others: Vec<f64>,
}

/// A run that failed. What came of other rounds is no figure either: they are those that went well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The workload.
    pub workload: Workload,
    /// Place of the case in [`Workload::cases`].
    pub case: usize,
    /// The subject.
    pub subject: Subject,
    /// What went wrong, in one line.
    pub error: String,
}

/// A line of the bench `plugin_call_cost`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PluginCall {
    /// What was called.
    pub what: String,
    /// The fastest of many batches, in nanoseconds a call.
    pub best_ns: f64,
    /// The median of them, in nanoseconds a call.
    pub median_ns: f64,
}

impl Results {
    /// Adds a round. Rounds of different subjects may alternate.
    /// `others`: see [`Measured::others`].
    pub fn add(
        &mut self,
        (workload, case, subject): (Workload, usize, Subject),
        figures: Figures,
        others: f64,
    ) {
        let is_it = |measured: &&mut Measured| {
            (measured.workload, measured.case, measured.subject) == (workload, case, subject)
        };
        if let Some(measured) = self.measured.iter_mut().find(is_it) {
            measured.rounds.push(figures);
            measured.others.push(others);
            measured.medians = medians(&measured.rounds);
            return;
        }
        self.measured.push(Measured {
            workload,
            case,
            subject,
            medians: figures.clone(),
            rounds: vec![figures],
            others: vec![others],
        });
    }

    /// Whether a run of it failed.
    pub fn has_failed(&self, workload: Workload, case: usize, subject: Subject) -> bool {
        let is_it = |failure: &Failure| {
            (failure.workload, failure.case, failure.subject) == (workload, case, subject)
        };
        self.failures.iter().any(is_it)
    }

    /// The median of a figure, if it was measured and no round failed.
    pub fn median(
        &self,
        workload: Workload,
        case: usize,
        subject: Subject,
        figure: Figure,
    ) -> Option<f64> {
        if self.has_failed(workload, case, subject) {
            return None;
        }
        let measured = self.measured.iter().find(|measured| {
            (measured.workload, measured.case, measured.subject) == (workload, case, subject)
        });
        measured?.medians.get(&figure).copied()
    }

    /// The least and the most that any round came to, if there were several.
    pub fn range(
        &self,
        workload: Workload,
        case: usize,
        subject: Subject,
        figure: Figure,
    ) -> Option<(f64, f64)> {
        self.median(workload, case, subject, figure)?;
        let measured = self.measured.iter().find(|measured| {
            (measured.workload, measured.case, measured.subject) == (workload, case, subject)
        })?;
        let values = measured
            .rounds
            .iter()
            .filter_map(|round| round.get(&figure));
        let least = values.clone().copied().reduce(f64::min)?;
        let most = values.copied().reduce(f64::max)?;
        (measured.rounds.len() > 1).then_some((least, most))
    }

    /// Rounds, and those of them that others disturbed although they were repeated.
    pub fn disturbed(&self) -> (usize, usize) {
        let others = self.measured.iter().flat_map(|measured| &measured.others);
        let n_disturbed = others.clone().filter(|others| **others > DISTURBED).count();
        (others.count(), n_disturbed)
    }

    /// The subjects that a workload was tried with.
    pub fn subjects_of(&self, workload: Workload) -> Vec<Subject> {
        let measured = self.measured.iter().map(|of| (of.workload, of.subject));
        let failed = self.failures.iter().map(|of| (of.workload, of.subject));
        let all = measured.chain(failed).filter(|(of, _)| *of == workload);
        let mut subjects: Vec<Subject> = all.map(|(_, subject)| subject).collect();
        subjects.sort();
        subjects.dedup();
        subjects
    }

    /// Most and fewest rounds of anything.
    pub fn rounds(&self) -> (usize, usize) {
        let rounds = self.measured.iter().map(|measured| measured.rounds.len());
        (rounds.clone().min().unwrap_or(0), rounds.max().unwrap_or(0))
    }

    /// Reads what [`Results::save`] wrote.
    ///
    /// # Errors
    /// The file is missing, or of another shape.
    pub fn load(file: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("no figures in {}", file.display()))
    }

    /// Takes over from another set of figures what this one does not have.
    pub fn complete(&mut self, others: Self) {
        let is_new = |measured: &Measured| {
            let Measured {
                workload,
                case,
                subject,
                ..
            } = *measured;
            !self.measured.iter().any(|known| {
                (known.workload, known.case, known.subject) == (workload, case, subject)
            })
        };
        let new: Vec<Measured> = others.measured.into_iter().filter(is_new).collect();
        let new_failures = others.failures.into_iter().filter(|of| {
            !self.measured.iter().any(|known| {
                (known.workload, known.case, known.subject) == (of.workload, of.case, of.subject)
            })
        });
        self.failures.extend(new_failures.collect::<Vec<_>>());
        self.measured.extend(new);
        for (subject, version) in others.versions {
            self.versions.entry(subject).or_insert(version);
        }
        for (subject, command) in others.commands {
            self.commands.entry(subject).or_insert(command);
        }
        if self.plugin_calls.is_empty() {
            self.plugin_calls = others.plugin_calls;
        }
    }

    /// Writes everything to `file`, as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Echoes of two relays, Pointsman's at half the cost, in two rounds.
    pub(crate) fn sample() -> Results {
        let mut results = Results {
            machine: Machine {
                processor: "A processor".to_owned(),
                cpus: 2,
                memory_bytes: 8 << 30,
                kernel: "6.1.0".to_owned(),
            },
            seconds: 2.0,
            versions: BTreeMap::from([(Subject::Nginx, "1.22.1".to_owned())]),
            commands: BTreeMap::from([(Subject::Nginx, "taskset -c 0 nginx".to_owned())]),
            measured: vec![],
            failures: vec![],
            plugin_calls: vec![PluginCall {
                what: "choose".to_owned(),
                best_ns: 250.0,
                median_ns: 260.5,
            }],
        };
        for cpu in [4.0, 6.0] {
            let round =
                |cpu| Figures::from([(Figure::CpuUsPerEcho, cpu), (Figure::PerSecond, 1e5)]);
            let nginx = (Workload::Echo64, 0, Subject::Nginx);
            results.add(nginx, round(2.0 * cpu), 0.01);
            let pointsman = (Workload::Echo64, 0, Subject::Pointsman);
            results.add(pointsman, round(cpu), 0.02 * cpu);
        }
        results
    }

    #[test]
    fn rounds_of_a_subject_are_gathered_and_their_median_is_taken() {
        let results = sample();
        assert_eq!(results.measured.len(), 2);
        assert_eq!(results.rounds(), (2, 2));
        let median = |subject| results.median(Workload::Echo64, 0, subject, Figure::CpuUsPerEcho);
        assert_eq!(median(Subject::Pointsman), Some(5.0));
        assert_eq!(median(Subject::Nginx), Some(10.0));
        assert_eq!(median(Subject::Envoy), None);
    }

    #[test]
    fn the_range_and_the_disturbed_rounds_are_known() {
        let results = sample();
        let range = |subject| results.range(Workload::Echo64, 0, subject, Figure::CpuUsPerEcho);
        assert_eq!(range(Subject::Pointsman), Some((4.0, 6.0)));
        assert_eq!(range(Subject::Envoy), None);
        assert_eq!(results.disturbed(), (4, 1));
    }

    #[test]
    fn what_failed_once_has_no_figure() {
        let mut results = sample();
        results.failures.push(Failure {
            workload: Workload::Echo64,
            case: 0,
            subject: Subject::Nginx,
            error: "closed".to_owned(),
        });
        let median = |subject| results.median(Workload::Echo64, 0, subject, Figure::CpuUsPerEcho);
        assert_eq!(median(Subject::Nginx), None);
        assert_eq!(median(Subject::Pointsman), Some(5.0));
        let subjects = results.subjects_of(Workload::Echo64);
        assert_eq!(subjects, [Subject::Pointsman, Subject::Nginx]);
        let table = tables::of_workload(&results, Workload::Echo64).unwrap();
        assert!(table.contains("| nginx     |          failed |"), "{table}");
    }

    #[test]
    fn figures_survive_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        sample().save(file.path()).unwrap();
        assert_eq!(Results::load(file.path()).unwrap(), sample());
    }

    #[test]
    fn figures_are_completed_but_not_replaced() {
        let mut results = sample();
        let mut others = sample();
        let round = Figures::from([(Figure::CpuUsPerEcho, 99.0)]);
        others.add((Workload::Echo64, 0, Subject::Nginx), round.clone(), 0.0);
        others.add((Workload::Echo64, 0, Subject::Envoy), round, 0.0);
        results.complete(others);
        let median = |subject| results.median(Workload::Echo64, 0, subject, Figure::CpuUsPerEcho);
        assert_eq!(median(Subject::Nginx), Some(10.0));
        assert_eq!(median(Subject::Envoy), Some(99.0));
    }
}
