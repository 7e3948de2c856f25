//! The promise: a client on whose message a plugin fails ends its own session and, of others, at most those
//! of its instance; it is named, and it waits before it may try again.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pointsman_tests::{
    Backend, Balancer, Chatter, Client, PATIENCE, Wire, eventually, guests, upgrade_request,
};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

const N_OTHERS: u8 = 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Handler,
    Filter,
    FilterThatIsAsked,
}

/// A balancer of one worker, with a guest at `/guest` and `echo` at `/echo`.
struct Site {
    balancer: Balancer,
    _backend: Backend,
}

impl Site {
    async fn new(kind: Kind, how: &str, more: &str) -> Result<Self> {
        let backend = Backend::start().await?;
        let filter = "upstream = \"app\"\nfilters = [\"guest\"]";
        let (target, guest) = match kind {
            Kind::Handler => ("handler = \"guest\"", guests::handler(how)?),
            Kind::Filter => (filter, guests::filter(how)?),
            Kind::FilterThatIsAsked => (filter, guests::filter_that_is_asked(how)?),
        };
        let toml = format!(
            r#"
workers = 1
{more}

[[upstream]]
name = "app"
backends = ["{}"]

[[route]]
path = "/echo"
handler = "echo"

[[route]]
path = "/guest"
{target}
"#,
            backend.address()
        );
        let balancer = Balancer::start_with_plugins(&toml, &[("guest", &guest)]).await?;
        Ok(Self {
            balancer,
            _backend: backend,
        })
    }

    fn url(&self) -> String {
        self.balancer.url("/guest")
    }

    /// As many as there are bystanders, each with an address of its own.
    async fn others(&self) -> Result<Vec<Client>> {
        let mut others = Vec::new();
        for n in 0..N_OTHERS {
            let address = IpAddr::from([127, 0, 1, n]);
            let mut other = Client::connect_from(address, &self.url()).await?;
            other.echo_text("hello").await?;
            others.push(other);
        }
        Ok(others)
    }

    /// Opens a session and has the guest fail in it.
    async fn fail(&self, headers: &[(&str, &str)]) -> Result<()> {
        let mut culprit = Client::connect_with(&self.url(), headers).await?;
        culprit.echo_text("not yet").await?;
        fail(&mut culprit).await
    }

    async fn counted(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let metrics = self.balancer.metrics().await?;
        let labels = [&[("plugin", "guest")], labels].concat();
        ensure!(metrics.has(name, &labels), "there is no {name}");
        Ok(metrics.sum(name, &labels))
    }

    /// Waits for the line of the log that names the client of this request; there is one.
    async fn named(&self, request_id: &str) -> Result<String> {
        let id = format!("request_id=\"{request_id}\"");
        let find = || {
            let log = self.balancer.log().into_iter();
            let is_it = |line: &String| line.contains("plugin call failed") && line.contains(&id);
            log.filter(is_it).collect::<Vec<_>>()
        };
        eventually("the client is named", PATIENCE, async || !find().is_empty()).await?;
        let mut named = find();
        ensure!(named.len() == 1, "{named:#?}");
        Ok(named.remove(0))
    }

    /// Waits for a line of the access log with this event and request id.
    async fn line(&self, event: &str, request_id: &str) -> Result<Value> {
        let find = || {
            let log = self.balancer.access_log().ok()?;
            log.into_iter()
                .find(|line| line["event"] == event && line["request_id"] == request_id)
        };
        let what = format!("a line for {request_id}");
        eventually(what, PATIENCE, async || find().is_some()).await?;
        find().context("it was there")
    }
}

/// On a busy machine a call that should be late may not be: the clock of all calls was held up as well. Then
/// it is asked for again.
async fn fail(culprit: &mut Client) -> Result<()> {
    for _ in 0..5 {
        culprit.send("now!".into()).await?;
        if let Ok(code) = timeout(Duration::from_secs(2), culprit.close_code()).await {
            let code = code?;
            ensure!(code == Some(1011), "closed with {code:?}");
            return Ok(());
        }
    }
    bail!("it does not fail")
}

/// How many do not echo any more, each of which was told why. They are taken out.
async fn n_ended(clients: &mut Vec<Client>) -> Result<f64> {
    let mut n = 0.0;
    for mut client in std::mem::take(clients) {
        match client.echo_text("still there").await {
            Ok(()) => clients.push(client),
            Err(error) => {
                ensure!(error.to_string().contains("plugin failed"), "{error:#}");
                n += 1.0;
            }
        }
    }
    Ok(n)
}

fn instances_of(n: u32) -> String {
    format!("[plugin.guest]\nsessions_per_instance = {n}\n")
}

const FAILURES: &str = "pointsman_plugin_session_failures_total";
const LOST: &str = "pointsman_plugin_sessions_lost_total";
const PENALTIES: &str = "pointsman_plugin_penalties_total";

#[tokio::test]
async fn calls_that_come_back_late_end_their_own_sessions_and_nobody_elses() -> Result<()> {
    for kind in [Kind::Handler, Kind::Filter] {
        // All in one instance.
        let site = Site::new(kind, "dawdles", &instances_of(64)).await?;
        let others = Chatter::start(N_OTHERS.into(), &site.url()).await?;
        let mut culprits = Vec::new();
        for _ in 0..8 {
            culprits.push(Client::connect(&site.url()).await?);
        }
        for culprit in &mut culprits {
            culprit.echo_text("not yet").await?;
            fail(culprit).await?;
        }
        let n_messages = others.stop().await.with_context(|| format!("{kind:?}"))?;
        let calls = [("call", "message")];
        let seconds = site
            .counted("pointsman_plugin_call_seconds_sum", &calls)
            .await?;
        let n_calls = site
            .counted("pointsman_plugin_call_seconds_count", &calls)
            .await?;
        eprintln!(
            "{kind:?}: 8 late among {n_calls} calls of {:.0} ms in all; {n_messages} echoes of {N_OTHERS} others, none ended",
            seconds * 1e3
        );
        let failures = async |scope| site.counted(FAILURES, &[("scope", scope)]).await;
        assert_eq!(failures("session").await?, 8.0, "{kind:?}");
        assert_eq!(failures("instance").await?, 0.0, "{kind:?}");
        assert_eq!(site.counted(LOST, &[]).await?, 0.0, "{kind:?}");
        let instances = site.counted("pointsman_plugin_instances", &[]).await?;
        assert_eq!(instances, 1.0, "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_call_that_never_comes_back_ends_no_more_than_its_instance_holds() -> Result<()> {
    for (kind, how) in [
        (Kind::Handler, "loops"),
        (Kind::Handler, "traps"),
        (Kind::Filter, "loops"),
        (Kind::Filter, "traps"),
    ] {
        let site = Site::new(kind, how, &instances_of(8)).await?;
        let mut others = site.others().await?;
        // Three instances are full, and the fourth has six sessions.
        site.fail(&[]).await?;
        assert_eq!(n_ended(&mut others).await?, 6.0, "{kind:?} {how}");
        assert_eq!(site.counted(LOST, &[]).await?, 6.0);
        assert_eq!(site.counted(FAILURES, &[("scope", "instance")]).await?, 1.0);
        let elsewhere = Ipv4Addr::new(127, 0, 0, 2).into();
        let mut next = Client::connect_from(elsewhere, &site.url()).await?;
        next.echo_text("a new instance").await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_client_that_did_it_is_named_and_those_it_cost_are_told_apart() -> Result<()> {
    for kind in [Kind::Handler, Kind::Filter] {
        let site = Site::new(kind, "traps", "").await?;
        let id = |id| [("X-Request-Id", id)];
        let mut bystander = Client::connect_with(&site.url(), &id("bystander")).await?;
        let _another = Client::connect(&site.url()).await?;
        site.fail(&id("culprit")).await?;
        assert_eq!(bystander.close_code().await?, Some(1011));

        let named = site.named("culprit").await?;
        for part in [
            "WARN",
            "plugin=\"guest\"",
            "generation=1",
            "call=\"message\"",
            "client=127.0.0.1",
            "request_id=\"culprit\"",
            "session=",
            "route=/guest",
            "scope=\"instance\"",
            "sessions_lost=2",
            "penalty_ms=1000",
            "trapped",
        ] {
            ensure!(named.contains(part), "{part} is not in {named}");
        }

        let close = site.line("close", "culprit").await?;
        let reason = close["reason"].as_str().unwrap_or_default();
        ensure!(reason.starts_with("plugin call failed: guest: "), "{close}");
        let lost = site.line("close", "bystander").await?;
        assert_eq!(lost["reason"], "plugin instance lost: guest");
        for line in [close, lost] {
            assert_eq!(line["closed_by"], "plugin", "{line}");
            assert_eq!(line["close_code"], 1011, "{line}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_made_a_plugin_fail_waits_and_others_get_in_at_once() -> Result<()> {
    for kind in [Kind::Handler, Kind::Filter] {
        let site = Site::new(kind, "traps", "").await?;
        let began = Instant::now();
        site.fail(&[]).await?;
        let mut again = JoinSet::new();
        let url = site.url();
        again.spawn(async move { Client::connect(&url).await });

        let elsewhere = Ipv4Addr::new(127, 0, 0, 2).into();
        let mut other = Client::connect_from(elsewhere, &site.url()).await?;
        other.echo_text("no wait").await?;
        let mut elsewhere = Client::connect(&site.balancer.url("/echo")).await?;
        elsewhere.echo_text("another plugin").await?;
        ensure!(again.try_join_next().is_none(), "{kind:?}: it did not wait");

        let mut again = again.join_next().await.context("it connects")???;
        let waited = began.elapsed();
        ensure!(waited >= Duration::from_secs(1), "{kind:?}: {waited:?}");
        again.echo_text("after a wait").await?;
        let delayed = site.counted(PENALTIES, &[("result", "delayed")]).await?;
        assert_eq!(delayed, 1.0, "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn those_who_wait_are_let_in_one_by_one_or_told_when_to_come_again() -> Result<()> {
    let site = Site::new(Kind::Handler, "traps", "").await?;
    site.fail(&[]).await?;
    let mut answers = JoinSet::new();
    for n in 0..30 {
        let address = site.balancer.address();
        answers.spawn(async move {
            let mut wire = Wire::connect(address).await?;
            let id = format!("X-Request-Id: again-{n}");
            wire.send(upgrade_request("/guest", &[&id])).await?;
            let answer = wire.head().await?;
            let after = answer.header("retry-after").map(str::to_owned);
            anyhow::Ok((n, answer.status, after, wire))
        });
    }
    let (mut open, mut refused) = (Vec::new(), Vec::new());
    while let Some(answer) = answers.join_next().await {
        let (n, status, after, wire) = answer??;
        match status {
            101 => open.push(wire),
            429 => refused.push((n, after)),
            other => anyhow::bail!("answered with {other}"),
        }
    }
    eprintln!("{} of 30 that came at once were let in", open.len());
    // A tenth of a second apart, from one second on, and for two seconds at most.
    ensure!((1..=20).contains(&open.len()), "{} let in", open.len());
    ensure!(refused.len() == 30 - open.len());
    for (n, after) in &refused {
        let after: u64 = after.as_deref().context("no retry-after")?.parse()?;
        ensure!((1..=3).contains(&after), "{after} s");
        let line = site.line("request", &format!("again-{n}")).await?;
        let reason = line["reason"].as_str().unwrap_or_default();
        ensure!(reason.starts_with("client penalty: plugin guest"), "{line}");
    }
    let rejected = site.counted(PENALTIES, &[("result", "rejected")]).await?;
    assert_eq!(rejected, refused.len() as f64);
    let metrics = site.balancer.metrics().await?;
    let upgrades = metrics.sum("pointsman_upgrades_total", &[("result", "penalized")]);
    assert_eq!(upgrades, refused.len() as f64);
    Ok(())
}

#[tokio::test]
async fn a_client_that_comes_back_meets_none_of_those_it_could_cost_again() -> Result<()> {
    for kind in [Kind::Handler, Kind::Filter] {
        let site = Site::new(kind, "loops", "").await?;
        site.fail(&[]).await?;
        let mut others = site.others().await?;
        site.fail(&[]).await?;
        assert_eq!(n_ended(&mut others).await?, 0.0, "{kind:?}");
        assert_eq!(site.counted(FAILURES, &[("scope", "instance")]).await?, 2.0);
    }
    Ok(())
}

#[tokio::test]
async fn behind_a_trusted_proxy_only_a_client_that_it_names_waits() -> Result<()> {
    let site = Site::new(Kind::Handler, "traps", "trusted_proxies = [\"127.0.0.1\"]").await?;
    let delayed = async || site.counted(PENALTIES, &[("result", "delayed")]).await;
    site.fail(&[]).await?;
    site.fail(&[]).await?;
    assert_eq!(delayed().await?, 0.0, "it stands for everybody behind it");

    let named = |client| [("X-Forwarded-For", client)];
    site.fail(&named("203.0.113.1")).await?;
    let _other = Client::connect_with(&site.url(), &named("203.0.113.2")).await?;
    assert_eq!(delayed().await?, 0.0);
    let _same = Client::connect_with(&site.url(), &named("203.0.113.1")).await?;
    assert_eq!(delayed().await?, 1.0);
    Ok(())
}

#[tokio::test]
async fn a_filter_that_is_passed_by_names_the_client_all_the_same() -> Result<()> {
    let site = Site::new(Kind::Filter, "dawdles", "").await?;
    let toml = std::fs::read_to_string(site.balancer.config_file())?;
    let (before, after) = toml.split_once("filters =").context("there is one")?;
    let toml = format!("{before}on_failure = \"bypass\"\nfilters ={after}");
    site.balancer.reload(&toml)?;
    eventually("the reload is counted", PATIENCE, async || {
        let labels = [("kind", "config"), ("result", "ok")];
        let metrics = site.balancer.metrics().await;
        metrics.is_ok_and(|m| m.sum("pointsman_reloads_total", &labels) == 1.0)
    })
    .await?;

    let id = [("X-Request-Id", "passed")];
    let mut client = Client::connect_with(&site.url(), &id).await?;
    client.echo_text("now!").await?;
    client.echo_text("drop this, if you still look").await?;
    client.close(1000).await?;
    let close = site.line("close", "passed").await?;
    assert_eq!(close["reason"], Value::Null, "it went on: {close}");
    site.named("passed").await?;
    let _next = Client::connect(&site.url()).await?;
    let delayed = site.counted(PENALTIES, &[("result", "delayed")]).await?;
    assert_eq!(delayed, 1.0);
    Ok(())
}

#[tokio::test]
async fn a_request_on_which_a_filter_fails_is_as_a_message() -> Result<()> {
    for how in ["loops", "traps"] {
        let site = Site::new(Kind::FilterThatIsAsked, how, &instances_of(8)).await?;
        let mut others = site.others().await?;
        let answer = site.balancer.get("/guest?now!").await?;
        assert_eq!(answer.status, 500, "{how}");
        // The oldest instance is asked.
        assert_eq!(n_ended(&mut others).await?, 8.0, "{how}");
        assert_eq!(site.counted(LOST, &[]).await?, 8.0, "{how}");

        let answer = site.balancer.get("/guest?now!").await?;
        assert_eq!(answer.status, 500, "{how}");
        let delayed = site.counted(PENALTIES, &[("result", "delayed")]).await?;
        assert_eq!(delayed, 1.0, "{how}: it did not wait");
        assert_eq!(n_ended(&mut others).await?, 0.0, "{how}: others again");
    }
    Ok(())
}
