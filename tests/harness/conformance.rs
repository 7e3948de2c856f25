//! Autobahn's fuzzing client, run against a server of `ws` directly and through Pointsman.
//!
//! The client is `kosoku`, a port to Python 3 that is installed below `target/` from PyPI. In go
//! patterns of cases, out comes what each case came to, in each of the four ways.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::balancer::Balancer;
use crate::config::repository;
use crate::edit::Edit;
use crate::guests;
use crate::node::NodeStory;

/// The version that the verdicts on the page are of.
const KOSOKU: &str = "kosoku==0.1.0";

/// Where the cases of compression are, below the folder of the venv's packages.
const COMPRESSION_CASES: &str = "kosoku/cases/case12_x_x.py";

/// What keeps most of them from being judged in this version: a message may come to them as a string,
/// and they take it for bytes. Where it came compressed, or is binary, each character stands for a byte of it;
/// where not, for itself. The second is put in behind the first.
const MENDED: [&str; 2] = [
    "def onMessage(self, msg, binary):\n",
    "   if isinstance(msg, str):\n      try:\n         raw = msg.encode(\"latin-1\")\n         if not binary: raw.decode(\"utf-8\")\n      except UnicodeError:\n         raw = msg.encode(\"utf-8\")\n      msg = raw\n",
];

/// What the cases of a run may take together.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Where the cases are run against, in the order of the columns.
pub const WAYS: [&str; 4] = ["`ws` itself", "relay", "two filters", "`echo` handler"];

/// What a case came to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Verdict {
    /// `OK`, `NON-STRICT`, `INFORMATIONAL`, `UNIMPLEMENTED`, `FAILED` or `ERROR`.
    pub behavior: String,
    /// Of the closing handshake: `OK`, `INFORMATIONAL`, `UNCLEAN`, `FAILED` or `WRONG CODE`.
    pub close: String,
    /// In words.
    pub result: String,
}

/// By the number of the case: a verdict in each way.
pub type Verdicts = BTreeMap<CaseNumber, [Verdict; WAYS.len()]>;

/// `12.1.3`, in the order of its numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CaseNumber(Vec<u32>);

impl Verdict {
    /// Whether the protocol is kept to: nothing failed and nothing went unjudged.
    pub fn is_good(&self) -> bool {
        let is_fine = |said: &str| matches!(said, "OK" | "NON-STRICT" | "INFORMATIONAL");
        is_fine(&self.behavior) && is_fine(&self.close)
    }
}

/// Runs the cases that match, `12.*` for example, in all four ways.
///
/// # Errors
/// A server or the client does not run, or a case was not run in every way.
pub async fn run(patterns: &[&str]) -> Result<Verdicts> {
    let client = install().await?;
    let backend = NodeStory::start("echo.mjs", &[]).await?;
    let filter = guests::filter_that_forwards()?;
    let site = |leads_to: &str| {
        format!(
            r#"
access_log = "off"

[plugins]
dir = "PLUGINS_DIR"
memory_max_bytes = 134217728
call_timeout_ms = 2000

[[upstream]]
name = "app"
backends = ["{}"]

[[route]]
path = "/*"
{leads_to}
"#,
            backend.address()
        )
    };
    let plugins: [(&str, &[u8]); 2] = [("one", &filter), ("two", &filter)];
    let relay = Balancer::start(&site("upstream = \"app\"")).await?;
    let filters = "upstream = \"app\"\nfilters = [\"one\", \"two\"]\nmax_message_bytes = 33554432";
    let filtered = Balancer::start_with_plugins(&site(filters), &plugins).await?;
    let handler = "handler = \"echo\"\nmax_message_bytes = 33554432";
    let handled = Balancer::start(&site(handler)).await?;
    let targets = [
        backend.address(),
        relay.address(),
        filtered.address(),
        handled.address(),
    ];
    let mut columns = Vec::new();
    for target in targets {
        columns.push(client.run(&target.to_string(), patterns).await?);
    }
    let mut verdicts = Verdicts::new();
    for number in columns[0].keys() {
        let of_way = |way: usize| columns[way].get(number).cloned();
        let row = [of_way(0), of_way(1), of_way(2), of_way(3)];
        let [Some(a), Some(b), Some(c), Some(d)] = row else {
            bail!("case {number:?} was not run in every way");
        };
        verdicts.insert(number.clone(), [a, b, c, d]);
    }
    ensure!(!verdicts.is_empty(), "no case matches {patterns:?}");
    Ok(verdicts)
}

/// What breaks the promise: that nothing fails, that a relay changes no verdict, and that filters and
/// handler are NON-STRICT no more often than `ws` is.
pub fn breaches(verdicts: &Verdicts) -> Vec<String> {
    let mut breaches = Vec::new();
    for (number, row) in verdicts {
        let number = number.text();
        let [direct, relayed, ..] = row;
        if (&direct.behavior, &direct.close) != (&relayed.behavior, &relayed.close) {
            breaches.push(format!(
                "{number}: {relayed:?} in a relay, {direct:?} without"
            ));
        }
        for (way, verdict) in WAYS.iter().zip(row).skip(2) {
            if !verdict.is_good() {
                breaches.push(format!("{number}, {way}: {verdict:?}"));
            }
        }
    }
    let n_lax = |way: usize| {
        let is_lax = |row: &&[Verdict; WAYS.len()]| row[way].behavior == "NON-STRICT";
        verdicts.values().filter(is_lax).count()
    };
    for (place, way) in WAYS.iter().enumerate().skip(2) {
        let (n, lax) = (n_lax(place), n_lax(0));
        if n > lax {
            breaches.push(format!("{way}: {n} are NON-STRICT, {lax} of `ws`"));
        }
    }
    breaches
}

/// The tables of `docs/conformance.md`.
pub fn page(verdicts: &Verdicts) -> String {
    let mut text = String::from("| cases |");
    WAYS.iter().for_each(|way| text += &format!(" {way} |"));
    text += "\n| --- |";
    WAYS.iter().for_each(|_| text += " --- |");
    text.push('\n');
    let mut groups: BTreeMap<u32, Vec<&[Verdict; WAYS.len()]>> = BTreeMap::new();
    for (number, row) in verdicts {
        groups.entry(number.0[0]).or_default().push(row);
    }
    for (group, rows) in groups {
        let _ = write!(text, "| {group}.* ({}) |", rows.len());
        for way in 0..WAYS.len() {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for row in &rows {
                *counts.entry(row[way].behavior.as_str()).or_default() += 1;
            }
            let counts: Vec<_> = counts.iter().map(|(b, n)| format!("{n} {b}")).collect();
            let _ = write!(text, " {} |", counts.join(", "));
        }
        text.push('\n');
    }
    let others = verdicts.iter().filter(|(_, row)| {
        let is_same = |verdict: &Verdict| verdict.behavior == row[0].behavior;
        !row.iter().all(is_same) || !row.iter().all(Verdict::is_good)
    });
    text += "\nCases whose verdicts are not all the same, or not all good:\n\n| case |";
    WAYS.iter().for_each(|way| text += &format!(" {way} |"));
    text += "\n| --- |";
    WAYS.iter().for_each(|_| text += " --- |");
    text.push('\n');
    for (number, row) in others {
        let _ = write!(text, "| {} |", number.text());
        for verdict in row {
            let _ = match verdict.close.as_str() {
                "OK" | "INFORMATIONAL" => write!(text, " {} |", verdict.behavior),
                close => write!(text, " {}, close {close} |", verdict.behavior),
            };
        }
        text.push('\n');
    }
    text
}

impl CaseNumber {
    /// None: it is no case's number.
    fn parse(text: &str) -> Option<Self> {
        let numbers: Option<_> = text.split('.').map(|part| part.parse().ok()).collect();
        numbers.map(Self)
    }

    /// As Autobahn writes it.
    pub fn text(&self) -> String {
        let numbers: Vec<_> = self.0.iter().map(u32::to_string).collect();
        numbers.join(".")
    }
}

/// The installed client.
struct Fuzzer(PathBuf);

async fn install() -> Result<Fuzzer> {
    let venv = repository("target/conformance/venv");
    let program = venv.join("bin/kosoku");
    if !program.exists() {
        let python = venv.join("bin/python3");
        spawn(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&venv),
        )
        .await?;
        spawn(Command::new(python).args(["-m", "pip", "install", "--quiet", KOSOKU])).await?;
    }
    mend(&venv)?;
    Ok(Fuzzer(program))
}

fn mend(venv: &Path) -> Result<()> {
    let [before, mended] = MENDED;
    for entry in fs::read_dir(venv.join("lib"))? {
        let path = entry?.path().join("site-packages").join(COMPRESSION_CASES);
        let Ok(cases) = fs::read_to_string(&path) else {
            continue;
        };
        if !cases.contains(mended) {
            fs::write(&path, cases.replace_all(before, &MENDED.concat()))?;
        }
        return Ok(());
    }
    bail!("there is no {COMPRESSION_CASES}")
}

async fn output(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    Ok(timeout(DEADLINE, output).await.context("too late")??)
}

async fn spawn(command: &mut Command) -> Result<()> {
    let output = output(command).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {said}",
        output.status
    );
    Ok(())
}

impl Fuzzer {
    async fn run(&self, target: &str, patterns: &[&str]) -> Result<BTreeMap<CaseNumber, Verdict>> {
        let reports = tempfile::tempdir()?;
        let mut command = Command::new(&self.0);
        command.arg(target);
        command
            .args(["--parallelism", "2", "--outdir"])
            .arg(reports.path());
        for pattern in patterns {
            command.args(["--include", pattern]);
        }
        // It ends with 1 where a case has failed, which its report says better.
        let output = output(&mut command).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        read(reports.path()).with_context(|| format!("no reports of {target}: {said}"))
    }
}

fn read(folder: &Path) -> Result<BTreeMap<CaseNumber, Verdict>> {
    let mut verdicts = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_case = path.to_string_lossy().contains("_case_");
        if !is_case || path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let report: Value = serde_json::from_reader(io::BufReader::new(fs::File::open(&path)?))?;
        let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
        let number = CaseNumber::parse(&text("id"))
            .with_context(|| format!("{} has no number", path.display()))?;
        let verdict = Verdict {
            behavior: text("behavior"),
            close: text("behaviorClose"),
            result: text("result"),
        };
        verdicts.insert(number, verdict);
    }
    Ok(verdicts)
}
