//! Runs Autobahn's cases and prints what they came to; with `--write FILE` it writes the page to that
//! file instead. What else is said is patterns of cases.

use std::io::Write as _;
use std::{env, fs, io};

use anyhow::{Context, Result, bail};
use pointsman_tests::conformance::{breaches, page, run};

const INTRODUCTION: &str = "\
# Conformance

Autobahn's fuzzing client, run against an echo server of the npm package `ws` and against Pointsman: as a plain relay
in front of that server, as a relay with two filters that inspect every message, and with the `echo` handler.
`cargo xtask conformance --write` writes this page; `cargo xtask conformance '1.*' '12.1.*'` shows selected cases. The client is
the PyPI package `kosoku` 0.1.0, a port of Autobahn's test suite to Python 3. One of its bugs is patched
in the installed copy (`MENDED` in `tests/harness/conformance.rs`): compression cases get messages as strings but treat them as bytes.

The test `conformance` checks this promise for all but the longest groups: through a plain relay,
every verdict equals the backend's own; with filters and at a handler nothing fails, and no more cases
are NON-STRICT than with `ws`. INFORMATIONAL means that the standard leaves a choice. Groups 12.* and 13.* cover compression; 9.* measures
how fast large messages return.

";

/// All of them.
const ALL: &[&str] = &["*"];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (file, patterns) = match args.as_slice() {
        ["--write", file, patterns @ ..] => (Some(*file), patterns),
        patterns => (None, patterns),
    };
    let patterns = if patterns.is_empty() { ALL } else { patterns };
    let verdicts = run(patterns).await?;
    let cases: Vec<_> = patterns.iter().map(|p| format!("`{p}`")).collect();
    let cases = cases.join(", ");
    let text = format!("{INTRODUCTION}Cases shown: {cases}.\n\n{}", page(&verdicts));
    match file {
        Some(file) => fs::write(file, text).with_context(|| format!("cannot write {file}"))?,
        None => io::stdout().write_all(text.as_bytes())?,
    }
    let breaches = breaches(&verdicts);
    if !breaches.is_empty() {
        bail!("{}", breaches.join("\n"));
    }
    Ok(())
}
