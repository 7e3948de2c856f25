//! The promise: whatever is put into the watched folder, and however fast, what serves goes on serving,
//! no handshake fails, and the process stays within its bounds.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Balancer, Chatter, Client, PATIENCE, app, eventually, guests, pointsman,
};
use rustix::process::Signal;

const NAME: &str = "victim";

struct Site {
    _backends: Vec<Backend>,
    last: std::net::SocketAddr,
    first: std::net::SocketAddr,
    balancer: Balancer,
}

/// Two backends behind a policy that prefers the last, as a file in the watched folder.
async fn site(before: &str) -> Result<Site> {
    let backends = Backend::start_many(2).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let toml = format!("{before}{}", app(NAME, &addresses));
    let good = guests::policy("traps")?;
    let balancer = Balancer::start_with_plugins(&toml, &[(NAME, &good)]).await?;
    Ok(Site {
        _backends: backends,
        last: addresses[1],
        first: addresses[0],
        balancer,
    })
}

impl Site {
    async fn serves_as_before(&self) -> Result<()> {
        for _ in 0..3 {
            let client = Client::connect(&self.balancer.url("/websocket")).await?;
            assert_eq!(client.backend()?, self.last);
        }
        Ok(())
    }

    async fn n_refused(&self) -> Result<f64> {
        let labels = [("kind", "plugin"), ("result", "failed")];
        let metrics = self.balancer.metrics().await?;
        Ok(metrics.sum("pointsman_reloads_total", &labels))
    }

    /// Drops in a file that must be refused with a reason that says `why`.
    async fn refuses(&self, bytes: &[u8], why: &str) -> Result<Duration> {
        let n_before = self.n_refused().await?;
        let generation = self.balancer.generation(NAME).await?;
        self.balancer.drop_plugin(NAME, bytes)?;
        let took = eventually("it is refused", PATIENCE, async || {
            self.n_refused().await.is_ok_and(|n| n == n_before + 1.0)
        })
        .await?;
        let status = self.balancer.plugin(NAME).await?;
        let said = status["last_error"].as_str().unwrap_or_default();
        ensure!(said.contains(why), "refused because {said:?}");
        assert_eq!(self.balancer.generation(NAME).await?, generation);
        Ok(took)
    }
}

#[tokio::test]
async fn files_that_attack_are_refused_by_name_and_what_serves_goes_on() -> Result<()> {
    let site = site("").await?;
    let chatter = Chatter::start(10, &site.balancer.url("/websocket")).await?;
    let mut too_large = guests::policy("traps")?;
    too_large.resize((64 << 20) + 1, 0);
    let attacks = [
        ("too large a file", too_large, "67108865 bytes"),
        (
            "a start that loops",
            guests::policy("start_loops")?,
            "ran longer than 10 ms",
        ),
        (
            "a start that traps",
            guests::policy("start_traps")?,
            "trapped",
        ),
        (
            "a huge memory",
            guests::policy("huge_memory")?,
            "more memory than 16777216 bytes",
        ),
        ("a huge table", guests::policy("huge_table")?, "more memory"),
        (
            "an unknown import",
            guests::stranger("unknown_import")?,
            "acme:db/sql",
        ),
        (
            "packages that depend on each other, without end for a parser",
            include_bytes!("../../fuzz/seeds/plugin/module-of-packages-in-a-circle").to_vec(),
            "crashes the compiler",
        ),
    ];
    for (what, bytes, why) in &attacks {
        site.refuses(bytes, why).await.context(*what)?;
        site.serves_as_before().await.context(*what)?;
    }
    chatter.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_compile_that_takes_for_ever_is_stopped_and_nobody_waits_for_it() -> Result<()> {
    let site = site("[plugins]\ndir = \"PLUGINS_DIR\"\ncompile_timeout_ms = 300\n\n").await?;
    let busy = guests::policy_of_many_functions(10_000)?;
    let chatter = Chatter::start(10, &site.balancer.url("/websocket")).await?;
    let took = site.refuses(&busy, "takes longer than 300 ms").await?;
    eprintln!(
        "a plugin of {} bytes is given up after {took:?}",
        busy.len()
    );
    site.serves_as_before().await?;
    chatter.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_compile_does_not_delay_the_end_of_the_process() -> Result<()> {
    let toml =
        "drain_timeout_secs = 1\n[plugins]\ndir = \"PLUGINS_DIR\"\ncompile_timeout_ms = 600000\n\n";
    let mut site = site(toml).await?;
    // Another one than above, which must not be found in the cache.
    let busy = guests::policy_of_many_functions(9_900)?;
    site.balancer.drop_plugin(NAME, &busy)?;
    let mut compiling = Vec::new();
    eventually("it is being compiled", PATIENCE, async || {
        compiling = site.balancer.children().unwrap_or_default();
        !compiling.is_empty()
    })
    .await?;
    site.balancer.signal(Signal::TERM)?;
    let ended = site.balancer.wait_exit(PATIENCE).await?;
    assert_eq!(ended.code(), Some(0));
    let runs = |child: &u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
    };
    eventually("the compiler has ended, too", PATIENCE, async || {
        !compiling.iter().any(runs)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_large_plugin_that_compiles_in_time_is_taken() -> Result<()> {
    let site = site("").await?;
    let large = guests::policy_of_many_functions(300)?;
    ensure!(large.len() > 256 << 10, "{} bytes", large.len());
    let generation = site.balancer.generation(NAME).await?;
    site.balancer.drop_plugin(NAME, &large)?;
    eventually("it serves", PATIENCE * 3, async || {
        let now = site.balancer.generation(NAME).await;
        now.is_ok_and(|now| now > generation)
    })
    .await?;
    site.serves_as_before().await
}

#[tokio::test]
async fn what_is_no_file_is_left_alone_and_a_link_is_followed() -> Result<()> {
    let site = site("").await?;
    let folder = site.balancer.plugins_dir();
    let logged = |text: &str| {
        let log = site.balancer.log();
        log.iter().any(|line| line.contains(text))
    };
    fs::create_dir(folder.join("folder.wasm"))?;
    symlink("circle.wasm", folder.join("circle.wasm"))?;
    symlink("/dev/zero", folder.join("zeros.wasm"))?;
    for name in ["folder.wasm", "circle.wasm", "zeros.wasm"] {
        eventually(format!("{name} is named"), PATIENCE, async || logged(name)).await?;
    }
    let elsewhere = site.balancer.config_file().with_file_name("elsewhere.wasm");
    fs::write(&elsewhere, guests::shipped("first"))?;
    let generation = site.balancer.generation(NAME).await?;
    let link = folder.join(format!("{NAME}.new"));
    symlink(&elsewhere, &link)?;
    fs::rename(&link, folder.join(format!("{NAME}.wasm")))?;
    eventually("what the link leads to serves", PATIENCE, async || {
        let now = site.balancer.generation(NAME).await;
        now.is_ok_and(|now| now > generation)
    })
    .await?;
    let client = Client::connect(&site.balancer.url("/websocket")).await?;
    assert_eq!(client.backend()?, site.first);
    Ok(())
}

#[tokio::test]
async fn the_folder_may_be_removed_and_made_again() -> Result<()> {
    let site = site("").await?;
    let chatter = Chatter::start(5, &site.balancer.url("/websocket")).await?;
    let folder = site.balancer.plugins_dir();
    fs::remove_dir_all(&folder)?;
    eventually("the loss is logged", PATIENCE, async || {
        let log = site.balancer.log();
        log.iter()
            .any(|line| line.contains("its last generation goes on serving"))
    })
    .await?;
    site.serves_as_before().await?;
    fs::create_dir(&folder)?;
    let generation = site.balancer.generation(NAME).await?;
    site.balancer.drop_plugin(NAME, &guests::shipped("first"))?;
    eventually("the new file serves", PATIENCE, async || {
        let now = site.balancer.generation(NAME).await;
        now.is_ok_and(|now| now > generation)
    })
    .await?;
    chatter.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_file_that_a_full_disk_cut_short_is_refused_until_it_is_whole() -> Result<()> {
    let site = site("").await?;
    let whole = guests::shipped("first");
    let path = site.balancer.plugins_dir().join(format!("{NAME}.wasm"));
    let n_before = site.n_refused().await?;
    // As `cp` does where the disk is full: part of the file, and an end.
    fs::write(&path, &whole[..whole.len() - 100])?;
    eventually("it is refused", PATIENCE, async || {
        site.n_refused().await.is_ok_and(|n| n > n_before)
    })
    .await?;
    site.serves_as_before().await?;
    let mut file = File::options().append(true).open(&path)?;
    std::io::Write::write_all(&mut file, &whole[whole.len() - 100..])?;
    drop(file);
    eventually("it serves", PATIENCE, async || {
        let client = Client::connect(&site.balancer.url("/websocket")).await;
        client.is_ok_and(|client| client.backend().is_ok_and(|at| at == site.first))
    })
    .await?;
    Ok(())
}

/// A copy that was interrupted: it is there at the next start.
#[tokio::test]
async fn a_file_that_cannot_be_a_plugin_never_stops_the_process() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("least_connections", &[backend.address()]);
    let module = guests::core_policy("traps")?;
    // Names that nothing refers to, and one that is embedded, too.
    let name = |i: usize| match i {
        8 => "least_connections".to_owned(),
        i => format!("cut{i}"),
    };
    let names: Vec<_> = (1..16).map(name).collect();
    let cuts = (1..16).map(|i| &module[..module.len() * i / 16]);
    let files: Vec<_> = names.iter().map(String::as_str).zip(cuts).collect();
    let balancer = Balancer::start_with_plugins(&toml, &files).await?;
    let mut client = Client::connect(&balancer.url("/websocket")).await?;
    client.echo_text("placed by the embedded one").await?;
    for name in &names {
        let said = balancer.plugin(name).await?["last_error"].to_string();
        ensure!(said.contains("the file ends early"), "{name}: {said}");
        let file = format!("/{name}.wasm");
        let log = balancer.log();
        let lines = log.iter().filter(|line| line.contains(&file));
        assert_eq!(lines.count(), 1, "{log:#?}");
    }
    ensure!(!balancer.log().join("\n").contains("panick"));
    assert_eq!(
        balancer.plugin("least_connections").await?["source"],
        "embedded"
    );

    let config = balancer.config_file();
    let config = config.to_str().context("a path that is UTF-8")?;
    let ended = pointsman(&["check", "--config", config]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), files.len(), "{ended:?}");
    assert!(
        lines
            .iter()
            .all(|line| line.contains("the file ends early")),
        "{ended:?}"
    );
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    Ok(())
}

/// Components within components: a few bytes each, for which a parser takes memory by the square of their
/// number. It is the process that compiles which takes it.
#[tokio::test]
async fn a_small_file_that_takes_hundreds_of_megabytes_to_parse_takes_none_of_ours() -> Result<()> {
    let site = site("").await?;
    // No run finds what another has left in the cache of compiled plugins.
    let nested = guests::marked(&guests::nested_components(3000), std::process::id());
    ensure!(nested.len() < 64 << 10, "{} bytes", nested.len());
    site.balancer.forget_memory_peak()?;
    let before = site.balancer.memory_peak_bytes()?;
    site.refuses(&nested, "it exports none of").await?;
    let grown = site.balancer.memory_peak_bytes()?.saturating_sub(before);
    eprintln!("a file of {} bytes: {grown} bytes more", nested.len());
    ensure!(grown < 32 << 20, "{grown} bytes");
    site.serves_as_before().await
}

#[tokio::test]
async fn a_file_that_nothing_refers_to_is_not_compiled_until_something_does() -> Result<()> {
    let site = site("[plugins]\ndir = \"PLUGINS_DIR\"\ncompile_timeout_ms = 300\n\n").await?;
    let busy = guests::policy_of_many_functions(10_000)?;
    site.balancer.drop_plugin("busy", &busy)?;
    eventually("it is noted", PATIENCE, async || {
        let plugin = site.balancer.plugin("busy").await;
        plugin.is_ok_and(|plugin| plugin["unused"] == true)
    })
    .await?;
    assert_eq!(
        site.balancer.plugin("busy").await?["last_error"],
        serde_json::Value::Null
    );
    assert_eq!(site.n_refused().await?, 0.0);

    let toml = "[plugins]\ndir = \"PLUGINS_DIR\"\ncompile_timeout_ms = 300\n\n";
    let toml = format!("{toml}{}", app("busy", &[site.last]));
    site.balancer.reload(&toml)?;
    eventually("the reload is refused", PATIENCE, async || {
        let log = site.balancer.log();
        log.iter()
            .any(|line| line.contains("upstream[0].policy") && line.contains("300 ms"))
    })
    .await?;
    site.serves_as_before().await?;

    // What is put in its place is loaded by the next reload.
    site.balancer
        .drop_plugin("busy", &guests::shipped("first"))?;
    eventually("it is noted", PATIENCE, async || {
        let plugin = site.balancer.plugin("busy").await;
        plugin.is_ok_and(|plugin| plugin["unused"] == true)
    })
    .await?;
    site.balancer.reload(&toml)?;
    eventually("it serves", PATIENCE, async || {
        let generation = site.balancer.generation("busy").await;
        generation.is_ok_and(|generation| generation == 1)
    })
    .await?;
    let mut client = Client::connect(&site.balancer.url("/websocket")).await?;
    client.echo_text("placed by it").await?;

    // A file that is gone is not spoken of any more.
    site.balancer.drop_plugin("late", b"this is no plugin\n")?;
    eventually("it is refused", PATIENCE, async || {
        let plugin = site.balancer.plugin("late").await;
        plugin.is_ok_and(|plugin| plugin["last_error"].is_string())
    })
    .await?;
    site.balancer.delete_plugin("late")?;
    eventually("it is forgotten", PATIENCE, async || {
        site.balancer.plugin("late").await.is_err()
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_storm_of_traps_opens_the_breaker_and_spares_the_worker() -> Result<()> {
    let toml = r#"
workers = 1

[[route]]
path = "/storm"
handler = "storm"

[[route]]
path = "/echo"
handler = "echo"
"#;
    let guest = guests::handler("traps")?;
    let balancer = Balancer::start_with_plugins(toml, &[("storm", &guest)]).await?;
    let chatter = Chatter::start(10, &balancer.url("/echo")).await?;
    let mut n_trapped = 0_u8;
    eventually("new sessions are refused", PATIENCE, async || {
        // Each time another client: the same one would have to wait.
        let address = IpAddr::from([127, 0, 2, n_trapped]);
        let url = balancer.url("/storm");
        let Ok(mut client) = Client::connect_from(address, &url).await else {
            return true;
        };
        // Each in an instance of its own, once the one before is dead.
        let sent = client.send("now!".into()).await;
        n_trapped += u8::from(sent.is_ok() && client.close_code().await.is_ok());
        false
    })
    .await?;
    eprintln!("the breaker has opened after {n_trapped} traps");
    ensure!((19..=40).contains(&n_trapped), "after {n_trapped}");
    let is_resting = |line: &serde_json::Value| {
        let reason = line["reason"].as_str().unwrap_or_default();
        reason.contains("rests for a while")
    };
    eventually("the reason is logged", PATIENCE, async || {
        let log = balancer.access_log();
        log.is_ok_and(|log| log.iter().any(is_resting))
    })
    .await?;
    eventually("new sessions are taken again", PATIENCE, async || {
        Client::connect(&balancer.url("/storm")).await.is_ok()
    })
    .await?;
    chatter.stop().await?;
    Ok(())
}
