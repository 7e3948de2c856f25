//! Runs the table of hostile clients and lying backends against Pointsman, nginx and HAProxy, and prints
//! what came of it side by side; with `--write FILE` it writes the page to that file instead.

use std::io::Write as _;
use std::{env, fs, io};

use anyhow::{Context, Result, bail};
use pointsman_tests::Balancer;
use pointsman_tests::hostile::{
    Case, Outcome, Peer, Recorder, cases, config, page, run, summary, trusting_config,
};

const INTRODUCTION: &str = "\
# Hostile clients and lying backends

What Pointsman, nginx and HAProxy do with requests that are no requests and with answers that are no
answers. `cargo xtask hostile --write` writes this page; `tests/harness/hostile/` holds the table, and the
test `hostile` holds Pointsman to the column *wanted*. The peers are Debian's packages, set up as proxies
for WebSockets as their manuals say (`tests/harness/hostile/peers.rs`), each with a deadline of one second
for a head. An outcome that is not as wanted is in **bold**; that is a difference, not always a fault: a
peer may be right by another reading of an RFC, or may leave to the backend what Pointsman decides.
*forwarded* says that a backend heard of the request, *with* what it should not have heard.

Known, and left so: lines may end in a bare LF (RFC 9112 section 2.2 allows it), a fragment in a target is
left out rather than refused, and of a length beside chunks only the chunks count, after which the connection
is ended (section 6.3). The HTTP library decides these before Pointsman sees the request; what a backend is
sent has CRLF, no fragment and one framing. A path that is escaped twice is read once.

";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let file = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        ["--write", file] => Some(file.to_owned()),
        _ => bail!("usage: hostile [--write FILE]"),
    };
    let all = cases();
    let mut columns = vec![("Pointsman".to_owned(), pointsman(&all).await?)];
    for peer in [Peer::Nginx, Peer::Haproxy] {
        let backends = [Recorder::start().await?, Recorder::start().await?];
        let running = peer.start(&backends).await?;
        let title = format!("{} {}", peer.title(), peer.version().await?);
        let mut outcomes = Vec::new();
        for case in &all {
            outcomes.push(run(case, running.address, &backends).await?);
        }
        columns.push((title, outcomes));
    }
    let text = format!(
        "{INTRODUCTION}{}{}",
        summary(&all, &columns),
        page(&all, &columns)
    );
    match file {
        Some(file) => fs::write(&file, text).with_context(|| format!("cannot write {file}")),
        None => Ok(io::stdout().write_all(text.as_bytes())?),
    }
}

async fn pointsman(all: &[Case]) -> Result<Vec<Outcome>> {
    let backends = [Recorder::start().await?, Recorder::start().await?];
    let strict = Balancer::start(&config(&backends)).await?;
    let trusting = Balancer::start(&trusting_config(&backends)).await?;
    let mut outcomes = Vec::new();
    for case in all {
        let balancer = if case.is_trusted { &trusting } else { &strict };
        outcomes.push(run(case, balancer.address(), &backends).await?);
    }
    Ok(outcomes)
}
