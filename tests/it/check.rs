//! The promise: bad configuration is refused whole, with every mistake named by key and line.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{Backend, Balancer, Edit, PATIENCE, app, eventually, pointsman, repository};
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

/// Mistakes of the file, of plugins and of files beside it; with the line of each.
const EVERYTHING: &str = r#"workers = 2
access_log = "file:/nowhere/access.log"
[admin]
listen = "127.0.0.1:0"
[[listener]]
bind = "127.0.0.1:0"
[[upstream]]
name = "app"
policy = "nothing_like_it"
backends = ["127.0.0.1:3001"]
retries = "two"
[[upstream]]
name = "one"
policy = "rendezvous"
policy_config = { key = "nonsense" }
backends = ["127.0.0.1:3001"]
[[upstream]]
name = "two"
policy = "rendezvous"
policy_config = { key = "rubbish" }
backends = ["127.0.0.1:3001"]
tls = { ca = "/nowhere/ca.pem" }
[[route]]
path = "/websocket"
handler = "no_handler"
orgins = []
[[route]]
path = "/*"
upstream = "app"
filters = ["tap", "no_filter"]
[[route]]
path = "/echo"
handler = "echo"
max_message_bytes = 8000000
"#;

/// The key of each, a word of what is said, and the line.
const ALL_OF_IT: [(&str, &str, usize); 10] = [
    ("access_log", "/nowhere/access.log", 2),
    ("upstream[0].policy", "nothing_like_it", 9),
    ("upstream[0].retries", "two", 11),
    ("upstream[1].policy", "nonsense", 14),
    ("upstream[2].policy", "rubbish", 19),
    ("upstream[2].tls.ca", "/nowhere/ca.pem", 22),
    ("route[0].handler", "no_handler", 25),
    ("route[0].orgins", "did you mean origins", 26),
    ("route[1].filters[1]", "no_filter", 30),
    ("route[2].max_message_bytes", "8000000", 34),
];

fn lacks(said: &str, expected: &[(&str, &str, usize)]) -> Vec<String> {
    let is_there = |(key, word, line): &(&str, &str, usize)| {
        let begins = format!("line {line}: {key}: ");
        said.lines()
            .any(|l| l.contains(&begins) && l.contains(word))
    };
    let lacking = expected.iter().filter(|one| !is_there(one));
    lacking.map(|one| format!("{one:?}")).collect()
}

#[tokio::test]
async fn what_plugins_and_files_lack_is_said_beside_what_the_file_has_wrong() -> Result<()> {
    let (code, said) = check(EVERYTHING).await?;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(lacks(&said, &ALL_OF_IT), [""; 0], "{said}");
    let n_problems = said.lines().filter(|line| line.contains(": line ")).count();
    assert_eq!(n_problems, ALL_OF_IT.len(), "and nothing else:\n{said}");

    // Messages of any length are no reason not to serve.
    let refused: Vec<_> = ALL_OF_IT[..9].to_vec();
    let folder = TempDir::new()?;
    let file = folder.path().join("pointsman.toml");
    fs::write(&file, EVERYTHING)?;
    let path = file.to_str().context("a path that is UTF-8")?;
    let ended = pointsman(&["run", "--config", path]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(lacks(&ended.stderr, &refused), [""; 0], "{}", ended.stderr);

    let balancer = Balancer::start(GOOD).await?;
    balancer.reload(EVERYTHING)?;
    eventually("the reload is refused", PATIENCE, async || {
        let said = balancer.log().join("\n");
        said.contains("configuration refused") && lacks(&said, &refused).is_empty()
    })
    .await
    .with_context(|| balancer.log().join("\n"))?;
    Ok(())
}

#[tokio::test]
async fn where_a_plugin_may_be_meant_otherwise_it_is_not_tried() -> Result<()> {
    // The policy's key is misspelled, and the plugin's settings: what they come to is no matter.
    let toml = GOOD.replace_once(
        "policy = \"least_connections\"",
        "policy = \"rendezvous\"\npolicy_confg = { key = \"path\" }",
    ) + "[plugin.echo]\nmemory_max_bytes = 1\n[plugins]\ndirr = \"somewhere\"\n";
    let (code, said) = check(&toml).await?;
    assert_eq!(code, Some(1));
    let n_problems = said.lines().filter(|line| line.contains(": line ")).count();
    assert_eq!(n_problems, 3, "{said}");
    // And where the folder of plugins is, nobody knows.
    let toml = GOOD.replace_once("least_connections", "of_the_folder") + "[plugins]\ndir = 5\n";
    let (code, said) = check(&toml).await?;
    assert_eq!(code, Some(1));
    ensure!(!said.contains("of_the_folder"), "{said}");
    Ok(())
}

#[tokio::test]
async fn messages_for_which_a_plugin_has_no_room_are_named() -> Result<()> {
    let site = |filter: &str, max: &str, more: &str| {
        format!(
            "[[listener]]\nbind = \"127.0.0.1:0\"\n\
             [[upstream]]\nname = \"app\"\nbackends = [\"127.0.0.1:3001\"]\n\
             [[route]]\npath = \"/*\"\nupstream = \"app\"\nfilters = [\"{filter}\"]\n{max}\n{more}\n"
        )
    };
    let jwt = "[plugin.jwt.config]\nsecret = \"a secret of at least 32 characters.\"";
    for (toml, is_fine) in [
        (site("tap", "max_message_bytes = 5592405", ""), true),
        (site("tap", "max_message_bytes = 5592406", ""), false),
        (
            site("tap", "", "[plugin.tap]\nmemory_max_bytes = 2000000"),
            true,
        ),
        (
            site(
                "tap",
                "max_message_bytes = 1000000",
                "[plugin.tap]\nmemory_max_bytes = 2000000",
            ),
            false,
        ),
        (
            site(
                "tap",
                "max_message_bytes = 8000000",
                "[plugin.tap]\nmemory_max_bytes = 24000000",
            ),
            true,
        ),
        // It is asked about requests, and sees no message.
        (site("jwt", "max_message_bytes = 80000000", jwt), true),
    ] {
        let (code, said) = check(&toml).await?;
        let is_named = said.contains("route[0].max_message_bytes");
        assert_eq!(
            (code, is_named),
            (Some(i32::from(!is_fine)), !is_fine),
            "{toml}{said}"
        );
    }
    Ok(())
}
