//! The promise: SIGHUP puts a changed configuration in force under open sockets; one that is wrong,
//! or the same, changes nothing.

use anyhow::Result;
use pointsman_tests::{Backend, Balancer, Chatter, Client, PATIENCE, app, eventually};

async fn reloads(balancer: &Balancer, result: &str) -> Result<f64> {
    let labels = [("kind", "config"), ("result", result)];
    Ok(balancer
        .metrics()
        .await?
        .sum("pointsman_reloads_total", &labels))
}

async fn counted(balancer: &Balancer, result: &str) -> Result<()> {
    let what = format!("a reload that is {result}");
    eventually(what, PATIENCE, async || {
        reloads(balancer, result).await.is_ok_and(|n| n == 1.0)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_changed_configuration_is_in_force_for_new_sockets_and_leaves_the_open_ones() -> Result<()>
{
    let backends = Backend::start_many(2).await?;
    let balancer = Balancer::start(&app("round_robin", &[backends[0].address()])).await?;
    let chatter = Chatter::start(50, &balancer.url("/websocket")).await?;

    balancer.reload(&app("least_connections", &[backends[1].address()]))?;
    counted(&balancer, "ok").await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    assert_eq!(client.backend()?, backends[1].address());
    client.echo_text("by the new configuration").await?;
    let status = balancer.status().await?;
    assert_eq!(
        status["upstreams"][0]["policy"]["name"],
        "least_connections"
    );

    assert_eq!(
        backends[0].n_open(),
        50,
        "the sockets of before stay where they are"
    );
    chatter.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_backend_that_stays_keeps_its_figures() -> Result<()> {
    let backends = Backend::start_many(2).await?;
    let both = [backends[0].address(), backends[1].address()];
    let balancer = Balancer::start(&app("least_connections", &both[..1])).await?;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(Client::connect(&balancer.url("/websocket")).await?);
    }
    balancer.reload(&app("least_connections", &both))?;
    counted(&balancer, "ok").await?;
    for _ in 0..3 {
        let client = Client::connect(&balancer.url("/websocket")).await?;
        assert_eq!(client.backend()?, both[1], "the first has three already");
        held.push(client);
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_configuration_changes_nothing_and_every_problem_is_in_the_log() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let balancer = Balancer::start(&toml).await?;
    let wrong = toml.replace("round_robin", "no_such_policy");
    for (i, (toml, logged)) in [
        (wrong, "no_such_policy"),
        (format!("colour = 1\n{toml}"), "colour"),
        (
            format!("workers = 1\n{toml}"),
            "cannot change while the process runs",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        balancer.reload(&toml)?;
        let what = format!("{logged} in the log, and a failed reload counted");
        eventually(what, PATIENCE, async || {
            let is_logged = balancer.log().iter().any(|line| line.contains(logged));
            is_logged
                && reloads(&balancer, "failed")
                    .await
                    .is_ok_and(|n| n == i as f64 + 1.0)
        })
        .await?;
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        client.echo_text("as before").await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_same_configuration_is_unchanged() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let balancer = Balancer::start(&toml).await?;
    balancer.reload(&format!("# a remark\n{toml}"))?;
    counted(&balancer, "unchanged").await?;
    assert_eq!(reloads(&balancer, "ok").await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn the_access_log_is_turned_on_under_open_sockets() -> Result<()> {
    let backend = Backend::start().await?;
    let on = app("round_robin", &[backend.address()]);
    let balancer = Balancer::start(&format!("access_log = \"off\"\n{on}")).await?;
    let mut unseen = Client::connect(&balancer.url("/websocket")).await?;
    unseen.echo_text("with the log off").await?;

    balancer.reload(&on)?;
    counted(&balancer, "ok").await?;
    let mut seen = Client::connect(&balancer.url("/websocket")).await?;
    seen.echo_text("with the log on").await?;
    eventually("a line", PATIENCE, async || {
        balancer.access_log().is_ok_and(|log| !log.is_empty())
    })
    .await?;
    assert_eq!(
        balancer.access_log()?.len(),
        1,
        "the session of before had none"
    );
    Ok(())
}
