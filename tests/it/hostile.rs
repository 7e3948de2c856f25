//! The promise: what is no request is refused before a backend hears of it, what is no answer never
//! becomes a session, and the process lives on whatever it is sent.

use anyhow::{Result, ensure};
use pointsman_tests::hostile::{Case, Recorder, cases, config, run, trusting_config};
use pointsman_tests::{Balancer, Wire, upgrade_request};

#[tokio::test]
async fn hostile_clients_and_lying_backends_get_what_the_table_says() -> Result<()> {
    let all = cases();
    ensure!(all.len() >= 120, "only {} cases", all.len());
    let backends = [Recorder::start().await?, Recorder::start().await?];
    let strict = Balancer::start(&config(&backends)).await?;
    let trusting = Balancer::start(&trusting_config(&backends)).await?;
    let mut wrong = Vec::new();
    for case in &all {
        let balancer = if case.is_trusted { &trusting } else { &strict };
        let outcome = run(case, balancer.address(), &backends).await?;
        for problem in case.expected.problems(&outcome) {
            wrong.push(format!("{}, {}: {problem}", case.group, case.name));
        }
        good_requests_are_served(balancer, &backends, case).await?;
    }
    ensure!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        all.len(),
        wrong.join("\n")
    );
    for balancer in [&strict, &trusting] {
        let is_panic = |line: &String| line.contains("panicked");
        ensure!(!balancer.log().iter().any(is_panic), "panicked");
    }
    Ok(())
}

/// The process is the same, and still serves.
async fn good_requests_are_served(
    balancer: &Balancer,
    backends: &[Recorder; 2],
    after: &Case,
) -> Result<()> {
    backends[0].usual();
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(upgrade_request("/good", &[])).await?;
    let status = wire.head().await?.status;
    ensure!(
        status == 101,
        "{status} to a good upgrade after {}",
        after.name
    );
    Ok(())
}
