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

What Pointsman, nginx and HAProxy do with malformed requests and malformed
answers. `cargo xtask hostile --write` writes this page; `tests/harness/hostile/` holds the table, and the
test `hostile` checks Pointsman against the column *wanted*. nginx and HAProxy are Debian's packages, configured
as WebSocket proxies according to their manuals (`tests/harness/hostile/peers.rs`), each with a time limit of one second
for a request head. Outcomes that differ from *wanted* are in **bold**. A difference is not always a fault: a
proxy may follow another reading of an RFC, or leave to the backend what Pointsman decides.
*forwarded* means that a backend received the request, *with* what it should not have received.

Known and accepted: lines may end in a bare LF (RFC 9112 section 2.2 allows it); a fragment in a target is
removed rather than refused; with both a length and chunks, only the chunks count, and the connection
is closed afterwards (section 6.3). The HTTP library decides these before Pointsman sees the request; backends
get CRLF, no fragment and one framing. A path that is escaped twice is decoded once.

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
