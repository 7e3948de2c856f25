//! The promise: a backend in TLS has to prove who it is before it hears of a request, and then all is as
//! it is without.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use pointsman_tests::{
    Backend, Balancer, Client, Edit, PATIENCE, Refused, eventually, get, payload, pointsman,
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
};
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// A certificate authority of the test's own.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);
        Ok(Self {
            certificate,
            issuer,
        })
    }

    /// A backend with a certificate for this name; `until`: the year of its end.
    async fn backend(&self, name: &str, until: i32) -> Result<Backend> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Backend::start_tls(certificate.der().clone(), key).await
    }
}

/// `tls`: the value of the key.
fn site(backend: SocketAddr, tls: &str) -> String {
    format!(
        "[[upstream]]\nname = \"app\"\nbackends = [\"{backend}\"]\nretries = 0\ntls = {tls}\n\
         [[route]]\npath = \"/*\"\nupstream = \"app\"\n"
    )
}

/// The folder, and the inline table that trusts this authority.
fn trusting(authority: &Authority) -> Result<(TempDir, String)> {
    let folder = TempDir::new()?;
    let file = folder.path().join("ca.pem");
    fs::write(&file, authority.certificate.pem())?;
    let ca = format!("ca = \"{}\"", file.display());
    Ok((folder, ca))
}

#[tokio::test]
async fn messages_and_requests_pass_and_the_name_is_sent() -> Result<()> {
    let authority = Authority::new("ours")?;
    let backend = authority.backend("app.internal", 2090).await?;
    let (_folder, ca) = trusting(&authority)?;
    let tls = format!("{{ {ca}, server_name = \"app.internal\" }}");
    let balancer = Balancer::start(&site(backend.address(), &tls)).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_text("hello").await?;
    for n_bytes in [1, 1000, 70_000, 1 << 20] {
        client.echo_binary(payload(n_bytes)).await?;
    }
    assert_eq!(client.close(4001).await?, Some(4001));
    assert_eq!(backend.close_codes(), [4001]);
    for _ in 0..3 {
        let answer = get(balancer.address(), "/").await?;
        assert_eq!((answer.status, answer.backend()?), (200, backend.address()));
    }
    let names = backend.server_names();
    assert!(names.iter().all(|name| name == "app.internal"), "{names:?}");
    assert!(
        names.len() <= 3,
        "connections for plain requests are kept: {names:?}"
    );
    Ok(())
}

#[tokio::test]
async fn who_cannot_prove_who_it_is_hears_nothing() -> Result<()> {
    let (authority, stranger) = (Authority::new("ours")?, Authority::new("another")?);
    let (_folder, ca) = trusting(&authority)?;
    let named = format!("{{ {ca}, server_name = \"app.internal\" }}");
    let by_address = format!("{{ {ca} }}");
    for (backend, tls, said) in [
        (
            stranger.backend("app.internal", 2090).await?,
            &named,
            "UnknownIssuer",
        ),
        (
            authority.backend("app.internal", 2020).await?,
            &named,
            "xpired",
        ),
        (
            authority.backend("other.internal", 2090).await?,
            &named,
            "not valid for",
        ),
        (
            authority.backend("app.internal", 2090).await?,
            &by_address,
            "not valid for",
        ),
    ] {
        let balancer = Balancer::start(&site(backend.address(), tls)).await?;
        let refused = Client::connect(&balancer.url("/websocket")).await;
        let refused = refused.expect_err("it proves nothing");
        let status = refused
            .downcast_ref::<Refused>()
            .map(|refused| refused.status);
        assert_eq!(status, Some(502));
        assert_eq!(get(balancer.address(), "/").await?.status, 502);
        assert!(backend.requests().is_empty(), "{said}");
        eventually(format!("{said} in the log"), PATIENCE, async || {
            balancer
                .log()
                .iter()
                .any(|line| line.contains("no TLS") && line.contains(said))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_address_is_proved_by_a_certificate_for_it_and_anybody_where_that_is_asked_for()
-> Result<()> {
    let authority = Authority::new("ours")?;
    let (_folder, ca) = trusting(&authority)?;
    for (name, tls) in [
        ("127.0.0.1", format!("{{ {ca} }}")),
        ("anything", "{ insecure_skip_verify = true }".to_owned()),
    ] {
        let backend = authority.backend(name, 2090).await?;
        let balancer = Balancer::start(&site(backend.address(), &tls)).await?;
        let mut client = Client::connect(&balancer.url("/websocket")).await?;
        client.echo_text("hello").await?;
    }
    Ok(())
}

#[tokio::test]
async fn probes_are_in_tls_too() -> Result<()> {
    let (authority, stranger) = (Authority::new("ours")?, Authority::new("another")?);
    let (_folder, ca) = trusting(&authority)?;
    let tls = format!("{{ {ca}, server_name = \"app.internal\" }}");
    let good = authority.backend("app.internal", 2090).await?;
    let bad = stranger.backend("app.internal", 2090).await?;
    for kind in ["tcp", "http", "websocket"] {
        let toml = site(good.address(), &tls)
            .replace_once(
                &format!("\"{}\"", good.address()),
                &format!("\"{}\", \"{}\"", good.address(), bad.address()),
            )
            .replace_once(
                "[[route]]",
                &format!("[upstream.health]\nkind = \"{kind}\"\ninterval_ms = 50\n[[route]]"),
            );
        let balancer = Balancer::start(&toml).await?;
        let reason = balancer.backend_state(bad.address(), "down").await?;
        assert!(reason.contains("UnknownIssuer"), "{kind}: {reason}");
        let metrics = balancer.metrics().await?;
        let address = good.address().to_string();
        let healthy = metrics.sum("pointsman_backend_healthy", &[("backend", &address)]);
        assert_eq!(healthy, 1.0, "{kind}");
    }
    Ok(())
}

#[tokio::test]
async fn certificates_are_read_again_by_a_reload_and_wrong_ones_are_refused() -> Result<()> {
    let (first, second) = (Authority::new("ours")?, Authority::new("another")?);
    let (folder, ca) = trusting(&first)?;
    let tls = format!("{{ {ca}, server_name = \"app.internal\" }}");
    let backend = second.backend("app.internal", 2090).await?;
    let toml = site(backend.address(), &tls);
    let balancer = Balancer::start(&toml).await?;
    assert!(Client::connect(&balancer.url("/websocket")).await.is_err());

    let file = folder.path().join("ca.pem");
    fs::write(&file, second.certificate.pem())?;
    let answer = balancer.order("POST", "/api/reload").await?;
    assert_eq!(answer.text().trim(), r#"{"done":"configuration applied"}"#);
    let connected = eventually("it is trusted", PATIENCE, async || {
        Client::connect(&balancer.url("/websocket")).await.is_ok()
    });
    connected.await?;

    fs::write(&file, "nothing")?;
    let answer = balancer.order("POST", "/api/reload").await?;
    assert_eq!(answer.status, 422);
    assert!(
        answer.text().contains("upstream[0].tls.ca: "),
        "{}",
        answer.text()
    );
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_text("the running one stays").await?;
    let name = balancer.config_file().display().to_string();
    let checked = pointsman(&["check", "--config", &name]).await?;
    assert_eq!(checked.code, Some(1));
    let line = checked.stdout.lines().next().context("a problem")?;
    assert!(line.contains("there is no certificate in it"), "{line}");
    Ok(())
}
