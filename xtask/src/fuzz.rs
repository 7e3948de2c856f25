//! Runs libFuzzer over the targets of `fuzz/`, one after the other, and then the search for the slowest
//! messages.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::step::Step;
use crate::{packages, plugins, setup};

const SECONDS: &str = "5";

/// The target that is a program of its own, without libFuzzer.
const SLOWEST: &str = "slowest";

/// `args`: `--seconds N`, and targets; without targets all.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let (seconds, asked) = match args {
        [key, seconds, asked @ ..] if key == "--seconds" => (seconds.as_str(), asked),
        asked => (SECONDS, asked),
    };
    let all = targets(root)?;
    for name in asked {
        ensure!(
            all.contains(name),
            "there is no target `{name}`: {}",
            all.join(", ")
        );
    }
    let chosen = if asked.is_empty() { &all } else { asked };
    let (slowest, with_libfuzzer): (Vec<_>, Vec<_>) =
        chosen.iter().partition(|name| *name == SLOWEST);
    if !with_libfuzzer.is_empty() {
        setup::cpp(root)?;
        build(root)?;
    }
    for name in with_libfuzzer {
        fuzz(root, name, seconds)?;
    }
    if slowest.is_empty() {
        return Ok(());
    }
    search_slowest(root, seconds)
}

/// Those that have seeds.
fn targets(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in fs::read_dir(root.join("fuzz/seeds")).context("fuzz/seeds")? {
        names.push(folder?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// What is fuzzed is compiled with counters, the rest as always; cargo tells the two apart.
fn build(root: &Path) -> Result<()> {
    let wrapper = root.join("fuzz/rustc.sh").display().to_string();
    Step::cargo(root)
        .env("RUSTC_WORKSPACE_WRAPPER", &wrapper)
        .args(["build", "--release", "--locked", "--bin", "fuzz"])
        .args(packages::flags(&packages::with_programs()))
        .args(["--features", "pointsman-fuzz/libfuzzer"])
        .run()
}

/// Compiled as for the tests, without counters.
fn search_slowest(root: &Path, seconds: &str) -> Result<()> {
    plugins::build(root)?;
    Step::cargo(root)
        .args(["build", "--release", "--locked", "--bin", SLOWEST])
        .args(packages::flags(&packages::with_programs()))
        .run()?;
    Step::new(root, root.join("target/release").join(SLOWEST))
        .args([seconds])
        .run()
}

/// Shows what libFuzzer says at its end; the rest is in a file.
fn fuzz(root: &Path, name: &str, seconds: &str) -> Result<()> {
    let found = root.join("target/fuzz").join(name);
    let (corpus, log) = (found.join("corpus"), found.join("log"));
    fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
    let status = Command::new(root.join("target/release/fuzz"))
        .env("FUZZ_TARGET", name)
        .args([&corpus, &root.join("fuzz/seeds").join(name)])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args(["-max_len=8192", "-timeout=5", "-rss_limit_mb=2048"])
        .arg("-print_final_stats=1")
        .stderr(File::create(&log)?)
        .status()
        .context("target/release/fuzz")?;
    let log = fs::read_to_string(&log)?;
    let figure = |name: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or("unknown").trim().to_owned()
    };
    let executions = figure("stat::number_of_executed_units:");
    let done = log
        .lines()
        .find(|line| line.contains("DONE"))
        .unwrap_or_default();
    let covered = done
        .split_whitespace()
        .skip_while(|word| *word != "cov:")
        .nth(1);
    eprintln!(
        "{name}: {executions} executions, {} places covered",
        covered.unwrap_or("unknown")
    );
    ensure!(
        status.success(),
        "{name}: something does not hold; what did it is beside {}/log, and `FUZZ_TARGET={name} target/release/fuzz FILE` does it again",
        found.display()
    );
    Ok(())
}
