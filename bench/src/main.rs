//! `pointsman-bench`: flags in, figures out.
//!
//! Tables go to stdout, progress to stderr. `serve` is how a run starts the native echo servers: this
//! program once more.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use pointsman_bench::native::{self, Library};
use pointsman_bench::report::machine::Machine;
use pointsman_bench::report::{DISTURBED, Failure, PluginCall, Results, pages, tables};
use pointsman_bench::subjects::Subject;
use pointsman_bench::subjects::configs::Setup;
use pointsman_bench::subjects::process::raise_descriptor_limit;
use pointsman_bench::usage::Disturbance;
use pointsman_bench::workloads::Workload;
use pointsman_bench::workloads::case::Kind;
use pointsman_bench::workloads::figure::Figures;
use pointsman_bench::workloads::run::{Settings, run};

/// Where `plugin_call_cost` leaves its figures.
const PLUGIN_CALLS: &str = "target/bench/plugin_calls.json";
/// Runs of a round that others disturb.
const TRIES: usize = 3;
const WARM_UP: Duration = Duration::from_millis(500);

/// Measures Pointsman beside its peers. Run it in the folder of the workspace.
#[derive(Debug, Parser)]
#[command(name = "pointsman-bench", args_conflicts_with_subcommands = true)]
struct Flags {
    #[command(subcommand)]
    serve: Option<Serve>,
    #[command(flatten)]
    choice: Choice,
}

#[derive(Debug, Subcommand)]
enum Serve {
    /// Echoes on an address until the process is ended.
    #[command(hide = true)]
    Serve {
        library: Subject,
        listen: SocketAddr,
    },
}

#[derive(Debug, Args)]
struct Choice {
    /// What is measured [default: everything]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    workload: Vec<Workload>,
    /// Who is measured [default: whom the workload is about]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    subject: Vec<Subject>,
    /// How often; the medians are shown [default: 5, and 3 for idle]
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Length of a measured span
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Workers of each peer; with 2, nothing is pinned [default: 1]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Names the workloads and the subjects, and ends
    #[arg(long)]
    list: bool,
    /// Writes every round to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Shows the figures of such files instead of measuring; the first that has one counts
    #[arg(long, value_name = "FILE", num_args = 1..)]
    from: Vec<PathBuf>,
    /// Writes the figures into README.md and docs/
    #[arg(long)]
    write: bool,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    if let Some(Serve::Serve { library, listen }) = flags.serve {
        return native::serve(library_of(library)?, listen);
    }
    let choice = flags.choice;
    if choice.list {
        list();
        return Ok(());
    }
    let root = std::env::current_dir()?;
    if !root.join("docs/benchmarks.md").is_file() {
        bail!("there is no docs/benchmarks.md here: run this in the folder of the workspace");
    }
    let results = match choice.from.split_first() {
        Some((first, others)) => read(first, others)?,
        None => measure(&choice, &root)?,
    };
    println!("{}", pages::full(&results));
    if let Some(file) = &choice.json {
        results.save(file)?;
    }
    if choice.write {
        pages::write(&results, &root)?;
    }
    if !results.failures.is_empty() {
        bail!(
            "{} of the runs failed; see \"Failed\" above",
            results.failures.len()
        );
    }
    Ok(())
}

fn library_of(subject: Subject) -> Result<Library> {
    Ok(match subject {
        Subject::TokioTungstenite => Library::TokioTungstenite,
        Subject::TokioTungsteniteChat => Library::TokioTungsteniteChat,
        Subject::Fastwebsockets => Library::Fastwebsockets,
        Subject::Epoll => Library::Epoll,
        other => bail!("{} is a program of its own", other.name()),
    })
}

fn list() {
    println!("workloads:");
    for workload in Workload::value_variants() {
        let subjects: Vec<String> = workload
            .subjects()
            .iter()
            .map(|subject| subject.name())
            .collect();
        println!(
            "  {:14} {} ({})",
            workload.name(),
            workload.title(),
            subjects.join(", ")
        );
    }
    println!("\nsubjects:");
    for subject in Subject::value_variants() {
        println!("  {:18} {}", subject.name(), subject.title());
    }
}

fn read(first: &Path, others: &[PathBuf]) -> Result<Results> {
    let mut results = Results::load(first)?;
    for file in others {
        results.complete(Results::load(file)?);
    }
    Ok(results)
}

/// Carries out everything that was chosen: per workload so many rounds, in each of them the subjects in turn,
/// so that what disturbs the machine disturbs all of them.
fn measure(choice: &Choice, root: &Path) -> Result<Results> {
    raise_descriptor_limit()?;
    let machine = Machine::this();
    let settings = Settings {
        root: root.to_owned(),
        duration: Duration::try_from_secs_f64(choice.seconds).context("--seconds")?,
        warm_up: WARM_UP,
        workers: choice.workers.unwrap_or(1),
        cpus: machine.cpus,
    };
    let mut results = Results {
        machine,
        seconds: choice.seconds,
        versions: BTreeMap::new(),
        commands: BTreeMap::new(),
        measured: vec![],
        failures: vec![],
        plugin_calls: plugin_calls(root)?,
    };
    let workloads = match choice.workload.as_slice() {
        [] => Workload::value_variants(),
        chosen => chosen,
    };
    let mut missing = vec![];
    for &workload in workloads {
        let wanted = match choice.subject.as_slice() {
            [] => workload.subjects(),
            chosen => chosen,
        };
        let mut there = vec![];
        for &subject in wanted {
            if is_there(subject, &settings, &mut results, &mut missing)? {
                there.push(subject);
            }
        }
        let rounds = choice.rounds.unwrap_or_else(|| workload.rounds());
        let settings = Settings {
            workers: choice.workers.or(workload.workers()).unwrap_or(1),
            ..settings.clone()
        };
        one_workload(workload, &there, rounds, &settings, &mut results);
    }
    Ok(results)
}

/// Notes the version and the command of a subject; one that is missing is named once and left out.
fn is_there(
    subject: Subject,
    settings: &Settings,
    results: &mut Results,
    missing: &mut Vec<Subject>,
) -> Result<bool> {
    if results.versions.contains_key(&subject) || missing.contains(&subject) {
        return Ok(!missing.contains(&subject));
    }
    match subject.version(&settings.root) {
        Ok(version) => {
            results.versions.insert(subject, version);
            results.commands.insert(subject, command(subject, settings));
            Ok(true)
        }
        Err(error) if subject.is_pointsman() => {
            Err(error).context("`cargo xtask build` makes target/release/pointsman")
        }
        Err(error) => {
            eprintln!(
                "left out: {} ({error:#}). `cargo xtask bench` installs what it can",
                subject.title()
            );
            missing.push(subject);
            Ok(false)
        }
    }
}

/// The command line for the reader: programs by their names, a port for the port of the day.
fn command(subject: Subject, settings: &Settings) -> String {
    let setup = Setup {
        listen: ([127, 0, 0, 1], 8080).into(),
        admin: ([127, 0, 0, 1], 9900).into(),
        backends: vec![],
        workers: settings.workers,
        cpu: (settings.workers == 1 && settings.cpus > 1).then_some(0),
        plugins: None,
        has_access_log: false,
    };
    let words = subject.invocation(&settings.root, &setup).words;
    let name = |word: &String| word.rsplit('/').next().unwrap_or_default().to_owned();
    words.iter().map(name).collect::<Vec<_>>().join(" ")
}

fn plugin_calls(root: &Path) -> Result<Vec<PluginCall>> {
    match fs::read_to_string(root.join(PLUGIN_CALLS)) {
        Ok(text) => {
            serde_json::from_str(&text).with_context(|| format!("no figures in {PLUGIN_CALLS}"))
        }
        Err(_) => Ok(vec![]),
    }
}

/// Runs it again while others disturb it, so often at most; what was disturbed least counts.
fn undisturbed(subject: Subject, kind: Kind, settings: &Settings) -> Result<(Figures, f64)> {
    let mut best: Option<(Figures, f64)> = None;
    for _ in 0..TRIES {
        let disturbance = Disturbance::begin()?;
        let figures = run(subject, kind, settings)?;
        let others = disturbance.end()?;
        if best.as_ref().is_none_or(|(_, least)| others < *least) {
            best = Some((figures, others));
        }
        if others <= DISTURBED {
            break;
        }
        eprintln!(
            "disturbed: others kept {:.0} % of a processor busy",
            100.0 * others
        );
    }
    best.context("nothing was run")
}

/// A run that fails costs its own figure, and not those of the hour before.
fn one_workload(
    workload: Workload,
    subjects: &[Subject],
    rounds: usize,
    settings: &Settings,
    results: &mut Results,
) {
    for round in 1..=rounds {
        for &subject in subjects {
            for (n, case) in workload.cases().iter().enumerate() {
                if results.has_failed(workload, n, subject) {
                    continue;
                }
                let what = format!("{} {}", workload.name(), case.label);
                eprintln!(
                    "{}, round {round} of {rounds}: {}",
                    what.trim_end(),
                    subject.name()
                );
                match undisturbed(subject, case.kind, settings) {
                    Ok((figures, others)) => results.add((workload, n, subject), figures, others),
                    Err(error) => {
                        eprintln!("failed: {error:#}");
                        let error = format!("{error:#}").replace('\n', " ");
                        results.failures.push(Failure {
                            workload,
                            case: n,
                            subject,
                            error,
                        });
                    }
                }
            }
        }
    }
    if let Some(table) = tables::of_workload(results, workload) {
        eprintln!("\n{}\n\n{table}", workload.title());
    }
}
