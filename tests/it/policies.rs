//! The promise: each policy that ships places real sockets as its page says, over two workers, across
//! reloads and changes of the backends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use pointsman_tests::{
    Backend, Balancer, Client, Edit, PATIENCE, Reply, ScriptedBackend, accept_upgrade, app,
    eventually,
};

type Placement = BTreeMap<String, SocketAddr>;

/// One upstream with this policy and this `policy_config`.
fn site(policy: &str, config: &str, backends: &[SocketAddr]) -> String {
    app(policy, backends).replace_once(
        "[[route]]",
        &format!("policy_config = {config}\n\n[[route]]"),
    )
}

async fn start(policy: &str, config: &str, backends: &[Backend]) -> Result<Balancer> {
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let balancer = Balancer::start(&site(policy, config, &addresses)).await?;
    assert_eq!(
        balancer.status().await?["upstreams"][0]["policy"]["generation"],
        1
    );
    Ok(balancer)
}

async fn reload(balancer: &Balancer, toml: &str, n_backends: usize) -> Result<()> {
    balancer.reload(toml)?;
    eventually("the reload is in force", PATIENCE, async || {
        let status = balancer.status().await.unwrap_or_default();
        let backends = status["upstreams"][0]["backends"].as_array().cloned();
        backends.is_some_and(|backends| backends.len() == n_backends)
    })
    .await?;
    Ok(())
}

/// Where each of `n` users lands, who name themselves in `X-User`.
async fn users(balancer: &Balancer, n: usize) -> Result<Placement> {
    let mut placement = Placement::new();
    for i in 0..n {
        let user = format!("user-{i}");
        let url = balancer.url("/websocket");
        let client = Client::connect_with(&url, &[("X-User", &user)]).await?;
        placement.insert(user, client.backend()?);
    }
    Ok(placement)
}

/// How many of `n` sockets, held open together, each backend has.
async fn held(balancer: &Balancer, n: usize) -> Result<(Vec<Client>, BTreeMap<SocketAddr, usize>)> {
    let (mut clients, mut shares) = (Vec::new(), BTreeMap::new());
    for _ in 0..n {
        let client = Client::connect(&balancer.url("/websocket")).await?;
        *shares.entry(client.backend()?).or_default() += 1;
        clients.push(client);
    }
    Ok((clients, shares))
}

const BY_USER: &str = "{ key = \"header\", name = \"X-User\" }";
/// Loads move nobody.
const UNBOUNDED: &str = "{ key = \"header\", name = \"X-User\", load_factor = 0 }";

#[tokio::test]
async fn a_user_keeps_its_backend_and_only_those_of_one_that_goes_move() -> Result<()> {
    for (policy, config, may_move) in [
        ("rendezvous", BY_USER, 0),
        ("consistent_hash", UNBOUNDED, 0),
        // Maglev's table moves a few others: Eisenbud et al. 2016, section 5.3.
        ("maglev", BY_USER, 6),
    ] {
        let backends = Backend::start_many(4).await?;
        let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
        let balancer = start(policy, config, &backends).await?;
        let before = users(&balancer, 60).await?;
        assert_eq!(
            users(&balancer, 60).await?,
            before,
            "{policy}: a user keeps its backend"
        );
        for address in &addresses {
            let n = before.values().filter(|at| *at == address).count();
            assert!(n > 0, "{policy}: {address} has nobody");
        }
        let gone = addresses[1];
        let rest = [addresses[0], addresses[2], addresses[3]];
        reload(&balancer, &site(policy, config, &rest), 3).await?;
        let after = users(&balancer, 60).await?;
        let moved = |user: &&String| before[*user] != gone && before[*user] != after[*user];
        let n_moved = before.keys().filter(moved).count();
        assert!(n_moved <= may_move, "{policy}: {n_moved} of others moved");
        assert!(after.values().all(|at| *at != gone), "{policy}");
        // It comes back, and so do its users.
        reload(&balancer, &site(policy, config, &addresses), 4).await?;
        assert_eq!(users(&balancer, 60).await?, before, "{policy}: back again");
    }
    Ok(())
}

#[tokio::test]
async fn a_hashed_user_goes_to_the_next_in_its_order_when_its_backend_dies() -> Result<()> {
    for (policy, config) in [
        ("rendezvous", BY_USER),
        ("consistent_hash", UNBOUNDED),
        ("maglev", BY_USER),
    ] {
        let mut backends = Backend::start_many(3).await?;
        let balancer = start(policy, config, &backends).await?;
        let before = users(&balancer, 20).await?;
        let dead = backends.remove(0).address();
        let after = users(&balancer, 20).await?;
        for (user, at) in &before {
            match *at == dead {
                true => assert_ne!(after[user], dead, "{policy}"),
                false => assert_eq!(after[user], *at, "{policy}"),
            }
        }
        assert_eq!(
            users(&balancer, 20).await?,
            after,
            "{policy}: nor do they wander"
        );
    }
    Ok(())
}

#[tokio::test]
async fn bounded_loads_keep_one_popular_user_from_one_backend() -> Result<()> {
    let backends = Backend::start_many(4).await?;
    let config = "{ key = \"header\", name = \"X-User\", load_factor = 1.25 }";
    let balancer = start("consistent_hash", config, &backends).await?;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let url = balancer.url("/websocket");
        clients.push(Client::connect_with(&url, &[("X-User", "everybody")]).await?);
    }
    let open: Vec<_> = backends.iter().map(Backend::n_open).collect();
    assert_eq!(open.iter().sum::<usize>(), 40);
    // 1.25 times the mean of ten, and one for what two workers see late.
    assert!(open.iter().all(|&n| n <= 14), "{open:?}");
    Ok(())
}

#[tokio::test]
async fn least_connections_is_right_across_reloads_and_newcomers() -> Result<()> {
    let backends = Backend::start_many(3).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let balancer = start("least_connections", "{}", &backends[..2]).await?;
    let (first, shares) = held(&balancer, 10).await?;
    assert_eq!(shares.into_values().collect::<Vec<_>>(), [5, 5]);
    reload(&balancer, &site("least_connections", "{}", &addresses), 3).await?;
    let (second, shares) = held(&balancer, 5).await?;
    assert_eq!(
        shares,
        BTreeMap::from([(addresses[2], 5)]),
        "the newcomer catches up"
    );
    let weighted = site("least_connections", "{}", &addresses).replace_once(
        &format!("\"{}\"", addresses[0]),
        &format!("{{ address = \"{}\", weight = 3 }}", addresses[0]),
    );
    balancer.reload(&weighted)?;
    eventually("the weight is in force", PATIENCE, async || {
        let status = balancer.status().await.unwrap_or_default();
        status["upstreams"][0]["backends"][0]["weight"] == 3
    })
    .await?;
    let (_third, shares) = held(&balancer, 10).await?;
    assert_eq!(
        shares,
        BTreeMap::from([(addresses[0], 10)]),
        "15 for three, 5 for one"
    );
    drop((first, second));
    Ok(())
}

#[tokio::test]
async fn power_of_two_and_random_use_everybody_about_alike() -> Result<()> {
    for (policy, most) in [("power_of_two", 50), ("random", 45)] {
        let backends = Backend::start_many(4).await?;
        let balancer = start(policy, "{}", &backends).await?;
        let (_clients, shares) = held(&balancer, 80).await?;
        assert_eq!(shares.len(), 4, "{policy}: {shares:?}");
        assert!(shares.values().all(|&n| n <= most), "{policy}: {shares:?}");
    }
    Ok(())
}

/// Upgrades after this long.
async fn slow(after: Duration) -> Result<ScriptedBackend> {
    ScriptedBackend::start(move |head| Reply::SayLate(after, accept_upgrade(head, &[]))).await
}

#[tokio::test]
async fn the_quicker_backend_gets_more_where_latency_counts() -> Result<()> {
    for policy in ["least_latency", "power_of_two"] {
        let quick = Backend::start().await?;
        let late = slow(Duration::from_millis(300)).await?;
        let balancer =
            Balancer::start(&site(policy, "{}", &[quick.address(), late.address()])).await?;
        for _ in 0..40 {
            Client::connect(&balancer.url("/websocket"))
                .await?
                .close(1000)
                .await
                .ok();
        }
        let (n_quick, n_late) = (quick.n_connections(), late.heads().len());
        assert_eq!(n_quick + n_late, 40);
        assert!(n_late <= 6, "{policy}: the slow one got {n_late} of 40");
        assert!(n_late >= 1, "{policy}: it was never tried");
    }
    Ok(())
}

#[tokio::test]
async fn first_is_used_alone_until_it_is_gone() -> Result<()> {
    let mut backends = Backend::start_many(3).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let balancer = start("first", "{}", &backends).await?;
    let (_held, shares) = held(&balancer, 10).await?;
    assert_eq!(shares, BTreeMap::from([(addresses[0], 10)]));
    drop(backends.remove(0));
    let (_held, shares) = held(&balancer, 10).await?;
    assert_eq!(shares, BTreeMap::from([(addresses[1], 10)]));
    Ok(())
}

const STICKY: &str = "{ secret = \"0123456789abcdef\" }";

/// The name and value of the cookie that the answer sets.
fn cookie(client: &Client) -> Option<String> {
    let set = client.header("set-cookie")?;
    Some(set.split(';').next()?.to_owned())
}

#[tokio::test]
async fn a_cookie_brings_its_client_back_and_a_forged_or_stale_one_does_not() -> Result<()> {
    let backends = Backend::start_many(3).await?;
    let balancer = start("sticky", STICKY, &backends).await?;
    let url = balancer.url("/websocket");
    let first = Client::connect(&url).await?;
    let (at, ticket) = (first.backend()?, cookie(&first).context("a cookie")?);
    let set = first.header("set-cookie").context("a cookie")?.to_owned();
    assert!(set.contains("HttpOnly") && set.contains("Path=/"), "{set}");
    assert!(
        !set.contains("127.0.0.1"),
        "it tells nothing of the backend: {set}"
    );
    for _ in 0..6 {
        let again = Client::connect_with(&url, &[("Cookie", &ticket)]).await?;
        assert_eq!((again.backend()?, cookie(&again)), (at, None));
    }
    // Plain HTTP goes the same way.
    let forged = ticket.replace_all("=", "=A");
    let stranger = Client::connect_with(&url, &[("Cookie", &forged)]).await?;
    assert!(
        cookie(&stranger).is_some(),
        "a new one in place of the forged"
    );

    // Its backend is drained: another one, and another cookie.
    let order = format!("/api/drain?upstream=app&backend={at}");
    assert_eq!(balancer.order("POST", &order).await?.status, 200);
    balancer.backend_state(at, "draining").await?;
    let moved = Client::connect_with(&url, &[("Cookie", &ticket)]).await?;
    assert_ne!(moved.backend()?, at);
    let other = cookie(&moved).context("another cookie")?;
    assert_ne!(other, ticket);
    assert_eq!(balancer.order("DELETE", &order).await?.status, 200);
    balancer.backend_state(at, "up").await?;
    let stays = Client::connect_with(&url, &[("Cookie", &other)]).await?;
    assert_eq!(stays.backend()?, moved.backend()?);
    Ok(())
}

#[tokio::test]
async fn a_wrong_policy_config_is_a_problem_that_names_its_key() -> Result<()> {
    let backend = Backend::start().await?;
    for (policy, config, said) in [
        ("sticky", "{}", "secret"),
        ("sticky", "{ secret = \"short\" }", "secret"),
        ("rendezvous", "{ key = \"header\" }", "name"),
        ("consistent_hash", "{ key = \"colour\" }", "key"),
        ("maglev", "{ table_size = 1000 }", "table_size"),
    ] {
        let toml = site(policy, config, &[backend.address()]);
        let error = Balancer::start(&toml).await.expect_err("it is refused");
        let text = format!("{error:#}");
        assert!(text.contains(said), "{policy} {config}: {text}");
        assert!(!text.contains("short"), "a secret is not repeated: {text}");
    }
    Ok(())
}
