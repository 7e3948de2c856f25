//! The promise: who the client is, and what it has asked for, backends, plugins and the access log are told alike, as
//! far as those say so who may.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Answer, Backend, Balancer, Edit, PATIENCE, Reply, ScriptedBackend, Wire, accept_upgrade, app,
    eventually, upgrade_request,
};
use serde_json::Value;

const TRUSTED: &str = "trusted_proxies = [\"127.0.0.0/8\"]\n";

async fn ask(balancer: &Balancer, request: &str) -> Result<Answer> {
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(request).await?;
    wire.answer().await
}

/// What a backend is told for an upgrade with these fields: X-Forwarded-For, X-Forwarded-Proto, Forwarded and
/// X-Real-IP; and the lines of the access log.
async fn told(top: &str, fields: &[&str]) -> Result<([String; 4], Vec<Value>)> {
    let backend =
        ScriptedBackend::start(|head| Reply::SayAndHangUp(accept_upgrade(head, &[]))).await?;
    let toml = top.to_owned() + &app("round_robin", &[backend.address()]);
    let balancer = Balancer::start(&toml).await?;
    let mut client = Wire::connect(balancer.address()).await?;
    client.send(upgrade_request("/", fields)).await?;
    ensure!(client.head().await?.status == 101, "no session");
    client.rest().await?;
    drop(client);
    let head = backend.heads().pop().context("a head")?;
    let values = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        let found = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        let values: Vec<_> = found.map(|(_, value)| value.trim()).collect();
        values.join(" AND ")
    };
    let told = [
        "x-forwarded-for",
        "x-forwarded-proto",
        "forwarded",
        "x-real-ip",
    ]
    .map(values);
    let mut log = Vec::new();
    eventually("both lines are there", PATIENCE, async || {
        log = balancer.access_log().unwrap_or_default();
        log.len() == 2
    })
    .await?;
    Ok((told, log))
}

#[tokio::test]
async fn a_terminator_that_writes_one_family_is_understood_by_readers_of_the_other() -> Result<()> {
    let all = [
        "203.0.113.7, 127.0.0.1",
        "https",
        "for=203.0.113.7;host=\"www.example.org\";proto=https, for=127.0.0.1",
        "203.0.113.7",
    ];
    let x_forwarded = [
        "X-Forwarded-For: 203.0.113.7",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: www.example.org",
    ];
    let forwarded = ["Forwarded: for=203.0.113.7;host=\"www.example.org\";proto=https"];
    for fields in [&x_forwarded[..], &forwarded] {
        let (told, log) = told(TRUSTED, fields).await?;
        assert_eq!(told, all, "{fields:?}");
        for line in log {
            assert_eq!(line["client_ip"], "203.0.113.7", "{line}");
            let far_end = line["client"].as_str().context("client")?;
            ensure!(far_end.starts_with("127.0.0.1:"), "{line}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_client_without_a_proxy_is_named_in_every_field_whatever_it_says() -> Result<()> {
    let lies = [
        "X-Real-IP: 203.0.113.7",
        "Forwarded: for=203.0.113.7;proto=https",
        "Connection: Upgrade, X-Real-IP, Forwarded, X-Forwarded-For",
    ];
    for fields in [&[][..], &lies] {
        let (told, log) = told("", fields).await?;
        let [x_forwarded_for, proto, forwarded, real] = &told;
        assert_eq!((&**x_forwarded_for, &**proto), ("127.0.0.1", "http"));
        ensure!(forwarded.starts_with("for=127.0.0.1;host="), "{forwarded}");
        ensure!(forwarded.ends_with(";proto=http"), "{forwarded}");
        assert_eq!(real, "127.0.0.1");
        assert!(log.iter().all(|line| line["client_ip"] == "127.0.0.1"));
    }
    Ok(())
}

#[tokio::test]
async fn a_policy_is_shown_the_fields_that_a_backend_gets() -> Result<()> {
    let backends = Backend::start_many(3).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let toml = app("rendezvous", &addresses).replace_once(
        "policy = \"rendezvous\"",
        "policy = \"rendezvous\"\npolicy_config = { key = \"header\", name = \"x-real-ip\" }",
    );
    // Of a stranger, what it says makes no difference; of a proxy, it does.
    for (top, n_at_least, n_at_most) in [("", 1, 1), (TRUSTED, 2, 3)] {
        let balancer = Balancer::start(&(top.to_owned() + &toml)).await?;
        let mut landed = BTreeSet::new();
        for n in 0..40 {
            let real = format!("X-Real-IP: 203.0.113.{n}");
            let answer = ask(&balancer, &upgrade_request("/websocket", &[&real])).await?;
            ensure!(answer.status == 101, "{}", answer.status);
            landed.insert(answer.backend()?);
        }
        let n = landed.len();
        ensure!(
            (n_at_least..=n_at_most).contains(&n),
            "{top}: at {n} backends"
        );
    }
    Ok(())
}
