//! The promise: bad configuration is refused whole, with every mistake named by key and line.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Backend, Balancer, Edit, app, pointsman, repository};
use tempfile::TempDir;

/// Five mistakes of five kinds: a key that there is not, a wrong unit, text that is no address, a
/// number out of range, a name that nothing has.
const FIVE_MISTAKES: &str = r#"wokers = 2
drain_timeout_secs = "30s"

[[listener]]
bind = "everywhere"

[[upstream]]
name = "app"
backends = [
  "127.0.0.1:3001",
  { address = "127.0.0.1:3002", weight = 0 },
]

[[route]]
path = "/websocket"
upstream = "ap"
"#;

const GOOD: &str = r#"
[[listener]]
bind = "127.0.0.1:0"

[[upstream]]
name = "app"
policy = "least_connections"
backends = ["127.0.0.1:3001", { address = "127.0.0.1:3002", weight = 2 }]

[[route]]
path = "/websocket"
upstream = "app"

[[route]]
path = "/echo"
handler = "echo"

[[route]]
path = "/"
http = "hello"
"#;

/// Runs `check` on `toml`: the exit code, and all that it says.
async fn check(toml: &str) -> Result<(Option<i32>, String)> {
    let folder = TempDir::new()?;
    let file = folder.path().join("pointsman.toml");
    fs::write(&file, toml)?;
    let file = file.to_str().context("a path that is UTF-8")?;
    let ended = pointsman(&["check", "--config", file]).await?;
    Ok((ended.code, ended.stdout + &ended.stderr))
}

/// Whether a line of `said` holds `word` and the number `line`.
fn names(said: &str, word: &str, line: usize) -> bool {
    said.lines().any(|l| {
        let mut numbers = l.split(|c: char| !c.is_ascii_digit());
        l.contains(word) && numbers.any(|n| n == line.to_string())
    })
}

#[tokio::test]
async fn five_mistakes_are_all_named_with_key_and_line() -> Result<()> {
    let (code, said) = check(FIVE_MISTAKES).await?;
    let line_of = |text: &str| {
        let at = FIVE_MISTAKES.lines().position(|l| l.contains(text));
        at.map(|i| i + 1)
            .with_context(|| format!("{text} is in the file"))
    };
    for (key, text) in [
        ("wokers", "wokers"),
        ("drain_timeout_secs", "drain_timeout_secs"),
        ("bind", "everywhere"),
        ("weight", "weight = 0"),
        ("upstream", "\"ap\""),
    ] {
        let line = line_of(text)?;
        ensure!(
            names(&said, key, line),
            "{key} of line {line} is not named in:\n{said}"
        );
    }
    assert_eq!(code, Some(1));
    Ok(())
}

#[tokio::test]
async fn a_ca_file_that_cannot_be_used_is_named_with_its_own_line() -> Result<()> {
    let upstream = "[[upstream]]\nname = \"app\"\nbackends = [\"127.0.0.1:3001\"]\n";
    let route =
        "[[route]]\npath = \"/*\"\nupstream = \"app\"\n[[listener]]\nbind = \"127.0.0.1:0\"\n";
    for (tls, line) in [
        ("tls = { ca = \"none.pem\" }\n", 4),
        (
            "[upstream.tls]\nserver_name = \"app\"\nca = \"none.pem\"\n",
            6,
        ),
    ] {
        let (code, said) = check(&format!("{upstream}{tls}{route}")).await?;
        assert_eq!(code, Some(1));
        ensure!(names(&said, "upstream[0].tls.ca", line), "{tls}:\n{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_good_file_passes() -> Result<()> {
    let (code, said) = check(GOOD).await?;
    assert_eq!(code, Some(0), "{said}");
    Ok(())
}

#[tokio::test]
async fn the_examples_pass() -> Result<()> {
    for example in ["fastify", "plugins-only"] {
        let file = repository("examples").join(example).join("pointsman.toml");
        let file = file.to_str().context("a path that is UTF-8")?;
        let ended = pointsman(&["check", "--config", file]).await?;
        assert_eq!(ended.code, Some(0), "{example}: {ended:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_toml_is_named_with_its_line() -> Result<()> {
    let (code, said) = check("workers = 2\n\n[[listener]\nbind = \"127.0.0.1:0\"\n").await?;
    assert_eq!(code, Some(1));
    ensure!(names(&said, "", 3), "line 3 is not named in:\n{said}");
    Ok(())
}

#[tokio::test]
async fn a_policy_that_there_is_not_is_named() -> Result<()> {
    // A slip, and what nginx, HAProxy and Envoy call it.
    for (written, meant) in [
        ("least_conections", "least_connections"),
        ("leastconn", "least_connections"),
        ("least_conn", "least_connections"),
        ("LEAST_CONN", "least_connections"),
        ("roundrobin", "round_robin"),
        ("ip-hash", "ip_hash"),
        ("source", "ip_hash"),
        ("uri", "consistent_hash"),
        ("least_request", "power_of_two"),
    ] {
        let toml = GOOD.replace_once("\"least_connections\"", &format!("\"{written}\""));
        let (code, said) = check(&toml).await?;
        assert_eq!(code, Some(1));
        ensure!(names(&said, "upstream[0].policy", 7), "no line in:\n{said}");
        ensure!(said.contains(written), "{written} is not named in:\n{said}");
        let meant = format!("did you mean \"{meant}\"?");
        ensure!(said.contains(&meant), "{meant} is not in:\n{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_value_that_is_nearly_right_says_which_was_meant() -> Result<()> {
    let toml = GOOD.replace_once(
        "upstream = \"app\"",
        "upstream = \"apps\"\ndeflate = \"stripp\"",
    ) + "\n[plugin.echo]\nslow_consumer = \"drop-oldest\"\nisolation = \"Session\"\n";
    let (code, said) = check(&toml).await?;
    assert_eq!(code, Some(1));
    for meant in ["app", "strip", "drop_oldest", "session"] {
        let meant = format!("did you mean \"{meant}\"?");
        ensure!(said.contains(&meant), "{meant} is not in:\n{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_written_twice_is_named() -> Result<()> {
    let (code, said) = check(&format!(
        "workers = 1\ndrain_timeout_secs = 3\nworkers = 2\n{GOOD}"
    ))
    .await?;
    assert_eq!(code, Some(1));
    ensure!(
        names(&said, "duplicate key workers", 3),
        "not named in:\n{said}"
    );
    Ok(())
}

/// What cannot be had is a problem of its key, whether it is checked or run, and says its cause once.
#[tokio::test]
async fn a_folder_or_an_address_that_cannot_be_had_is_named_with_its_line() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("pointsman.toml");
    let path = file.to_str().context("a path that is UTF-8")?;
    fs::write(&file, format!("plugins.dir = \"nowhere\"\n{GOOD}"))?;
    for command in ["check", "run"] {
        let ended = pointsman(&[command, "--config", path]).await?;
        let said = ended.stdout + &ended.stderr;
        assert_eq!(ended.code, Some(1), "{said}");
        ensure!(names(&said, "plugins.dir", 1), "no line in:\n{said}");
        assert_eq!(said.matches("No such file").count(), 1, "{said}");
    }
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let free = "[[listener]]\nbind = \"127.0.0.2:0\"\n";
    fs::write(
        &file,
        format!("{free}{}", GOOD.replace_once("127.0.0.1:0", &address)),
    )?;
    let ended = pointsman(&["run", "--config", path]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    ensure!(names(&ended.stderr, "listener[1].bind", 5), "{ended:?}");
    assert_eq!(ended.stderr.matches("in use").count(), 1, "{ended:?}");

    let flags = ["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let flags = [
        &flags[..],
        &["--backend", "127.0.0.1:1", "--plugins", "nowhere"],
    ]
    .concat();
    let ended = pointsman(&flags).await?;
    ensure!(ended.stderr.contains("\n--plugins: "), "{ended:?}");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_plugin_file_that_cannot_be_loaded_is_named() -> Result<()> {
    let folder = TempDir::new()?;
    fs::write(folder.path().join("broken.wasm"), "this is no plugin\n")?;
    let toml = GOOD.replace_once("least_connections", "broken")
        + &format!("\n[plugins]\ndir = \"{}\"\n", folder.path().display());
    let (code, said) = check(&toml).await?;
    assert_eq!(code, Some(1));
    ensure!(said.contains("broken"), "not named in:\n{said}");
    Ok(())
}

#[tokio::test]
async fn a_wrong_call_exits_2() -> Result<()> {
    for args in [
        &["check", "--no-such-flag"][..],
        &["frobnicate"],
        &["run", "--workers-of-the-world"],
        &["status", "--admin", "not an address"],
    ] {
        let ended = pointsman(args).await?;
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        ensure!(!ended.stderr.is_empty(), "{args:?} fails without a word");
    }
    Ok(())
}

#[tokio::test]
async fn help_exits_0_on_every_command() -> Result<()> {
    for args in [
        &["-h"][..],
        &["run", "-h"],
        &["check", "-h"],
        &["demo", "-h"],
        &["status", "-h"],
    ] {
        let ended = pointsman(args).await?;
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_file_does_not_start() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("pointsman.toml");
    fs::write(&file, FIVE_MISTAKES)?;
    let file = file.to_str().context("a path that is UTF-8")?;
    let ended = pointsman(&["run", "--config", file]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    ensure!(ended.stderr.contains("wokers"), "{ended:?}");
    ensure!(ended.stderr.contains("weight"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_taken_port_is_named_at_the_start() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let first = Balancer::start(&toml).await?;
    let admin = first.admin_address().to_string();
    let second = format!("{toml}\n[admin]\nlisten = \"{admin}\"\n");
    match Balancer::start(&second).await {
        Ok(_) => anyhow::bail!("started twice on {admin}"),
        Err(e) => ensure!(
            format!("{e:#}").contains(&admin),
            "{admin} is not named in: {e:#}"
        ),
    }
    Ok(())
}
