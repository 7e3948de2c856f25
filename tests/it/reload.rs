//! The promise: SIGHUP applies a changed configuration under open sockets; one that is wrong,
//! or the same, changes nothing.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};

use pointsman_tests::{
    Backend, Balancer, Chatter, Client, Edit, PATIENCE, app, ask, eventually, get, guests,
    own_address, pointsman,
};
use serde_json::Value;

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

/// What `check --against-running` says of a file, in words and as its one JSON document; both times with
/// this exit code.
async fn check_against_running(
    balancer: &Balancer,
    file: &str,
    code: i32,
) -> Result<(String, Value)> {
    let admin = balancer.admin_address().to_string();
    let check = [
        "check",
        "--config",
        file,
        "--against-running",
        "--admin",
        &admin,
    ];
    let in_words = pointsman(&check).await?;
    assert_eq!(in_words.code, Some(code), "{in_words:?}");
    let as_json = pointsman(&[&check[..], &["--json"]].concat()).await?;
    assert_eq!(as_json.code, Some(code), "{as_json:?}");
    let document = serde_json::from_str(&as_json.stdout).context("one document")?;
    Ok((in_words.stdout, document))
}

#[tokio::test]
async fn a_changed_configuration_is_in_force_for_new_sockets_and_leaves_the_open_ones() -> Result<()>
{
    let backends = Backend::start_many(2).await?;
    let balancer = Balancer::start(&app("round_robin", &[backends[0].address()])).await?;
    let chatter = Chatter::start(50, &balancer.url("/websocket")).await?;

    let both = [backends[0].address(), backends[1].address()];
    balancer.reload(&app("least_connections", &both))?;
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
    let wrong = toml.replace_once("round_robin", "no_such_policy");
    for (toml, logged) in [
        (wrong, "no_such_policy"),
        (format!("colour = 1\n{toml}"), "colour"),
        (
            format!("workers = 1\n{toml}"),
            "cannot change while the process runs",
        ),
    ] {
        // The file's change and the signal may each have it read.
        let before = reloads(&balancer, "failed").await?;
        balancer.reload(&toml)?;
        let what = format!("{logged} in the log, and a failed reload counted");
        eventually(what, PATIENCE, async || {
            let is_logged = balancer.log().iter().any(|line| line.contains(logged));
            let failed = reloads(&balancer, "failed").await;
            is_logged && failed.is_ok_and(|n| n > before)
        })
        .await?;
        assert_eq!(reloads(&balancer, "ok").await?, 0.0);
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

#[tokio::test]
async fn fifty_reloads_of_something_else_touch_no_socket_and_no_handshake() -> Result<()> {
    let backends = Backend::start_many(3).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let site = |n: u32| {
        let timeout = 1000 + n;
        let other = Backend::address(&backends[(n % 2) as usize]);
        let toml = app("least_connections", &addresses);
        let toml = toml.replace_once(
            "[[route]]",
            &format!("connect_timeout_ms = {timeout}\n\n[[route]]"),
        );
        // A route and an upstream that come and go, and weights that change.
        toml + &format!(
            "[[upstream]]\nname = \"other\"\nbackends = [{{ address = \"{other}\", weight = {} }}]\n\
             [[route]]\npath = \"/other/{n}\"\nupstream = \"other\"\n",
            n + 1
        )
    };
    let balancer = Balancer::start(&site(0)).await?;
    let chatter = Chatter::start(200, &balancer.url("/websocket")).await?;
    let mut n_new = 0;
    for n in 1..=50 {
        balancer.reload(&site(n))?;
        eventually(format!("reload {n}"), PATIENCE, async || {
            n_new += 1;
            let mut client = Client::connect(&balancer.url("/websocket"))
                .await
                .expect("no handshake fails during a reload");
            client.echo_text("new").await.expect("nor a new socket");
            reloads(&balancer, "ok")
                .await
                .is_ok_and(|ok| ok == f64::from(n))
        })
        .await?;
    }
    assert!(n_new >= 50);
    chatter.stop().await?;
    let codes: Vec<_> = backends.iter().flat_map(Backend::close_codes).collect();
    assert!(codes.iter().all(|&code| code == 1000), "{codes:?}");
    Ok(())
}

#[tokio::test]
async fn a_written_file_is_read_without_a_signal_and_an_order_reads_it_too() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let balancer = Balancer::start(&toml).await?;
    // In place, as an editor does.
    let running = std::fs::read_to_string(balancer.config_file())?;
    let changed = running.replace_once("round_robin", "random");
    std::fs::write(balancer.config_file(), changed)?;
    let policy = async |name: &str| {
        eventually(format!("{name} in force"), PATIENCE, async || {
            let status = balancer.status().await.unwrap_or_default();
            status["upstreams"][0]["policy"]["name"] == name
        })
        .await
    };
    policy("random").await?;

    let answer = balancer.order("POST", "/api/reload").await?;
    assert_eq!(
        (answer.status, answer.text().trim()),
        (200, r#"{"done":"nothing has changed"}"#)
    );
    balancer.write_config(&toml.replace_once("name = \"app\"", "name = 5"))?;
    let answer = balancer.order("POST", "/api/reload").await?;
    assert_eq!(answer.status, 422);
    assert!(
        answer.text().contains("upstream[0].name: 5 is not allowed"),
        "{}",
        answer.text()
    );
    policy("random").await?;
    Ok(())
}

#[tokio::test]
async fn listeners_come_and_go_and_those_that_stay_keep_their_sockets() -> Result<()> {
    let backend = Backend::start().await?;
    let [stays, comes] = [own_address(), own_address()];
    let at = |addresses: &[SocketAddr]| {
        let mut toml = app("round_robin", &[backend.address()]);
        for address in addresses {
            toml += &format!("[[listener]]\nbind = \"{address}\"\n");
        }
        toml
    };
    let balancer = Balancer::start(&at(&[stays])).await?;
    let chatter = Chatter::start(20, &format!("ws://{stays}/websocket")).await?;

    balancer.reload(&at(&[stays, comes]))?;
    eventually("the new listener answers", PATIENCE, async || {
        get(comes, "/")
            .await
            .is_ok_and(|answer| answer.status == 200)
    })
    .await?;
    let mut held = Client::connect(&format!("ws://{comes}/websocket")).await?;

    balancer.reload(&at(&[stays]))?;
    eventually("it answers no longer", PATIENCE, async || {
        get(comes, "/").await.is_err()
    })
    .await?;
    held.echo_text("a socket outlives its listener").await?;

    // One that cannot be had refuses the whole.
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let wrong = at(&[stays, taken.local_addr()?]).replace_once("round_robin", "random");
    balancer.reload(&wrong)?;
    eventually("the reload is refused", PATIENCE, async || {
        reloads(&balancer, "failed").await.is_ok_and(|n| n >= 1.0)
    })
    .await?;
    let policy = balancer.status().await?["upstreams"][0]["policy"]["name"].clone();
    assert_eq!(policy, "round_robin");
    chatter.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_plan_says_what_changes_and_whom_it_touches() -> Result<()> {
    let backends = Backend::start_many(3).await?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let [a, b, c] = addresses[..] else {
        unreachable!("three")
    };
    let toml = app("round_robin", &[a, b]) + "[[route]]\npath = \"/echo\"\nhandler = \"echo\"\n";
    let balancer = Balancer::start(&toml).await?;
    let mut open = Vec::new();
    for path in ["/ws", "/ws", "/ws", "/ws", "/echo"] {
        open.push(Client::connect(&balancer.url(path)).await?);
    }
    let new = app("random", &[b, c]);
    let written = std::fs::read_to_string(balancer.config_file())?;
    let text = written.replace_once(&toml, &new);
    let folder = tempfile::TempDir::new()?;
    let file = folder.path().join("new.toml");
    std::fs::write(&file, text)?;

    let name = file.display().to_string();
    let (said, found) = check_against_running(&balancer, &name, 0).await?;
    let expected = format!(
        "~ upstream app (policy round_robin -> random)\n\
         - upstream app: backend {a}: ends 2 sessions\n\
         + upstream app: backend {c}\n\
         - route /echo: ends 1 session\n\
         4 changes, which end 3 sessions\n"
    );
    assert_eq!(said, expected);
    assert_eq!(found["file"], name.as_str());
    assert_eq!(found["problems"], serde_json::json!([]));
    assert_eq!(found["changes"].as_array().map(Vec::len), Some(4));
    assert_eq!(found["changes"][1]["sessions_ended"], 2);
    for client in &mut open {
        client.echo_text("a plan changes nothing").await?;
    }
    let wrong = ask(balancer.admin_address(), "POST", "/api/plan", "{}").await?;
    assert_eq!(wrong.status, 400);
    Ok(())
}

#[tokio::test]
async fn a_plan_is_refused_for_what_a_reload_would_be_refused_for() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let balancer = Balancer::start(&toml).await?;
    let running = std::fs::read_to_string(balancer.config_file())?;
    let folder = tempfile::TempDir::new()?;
    std::fs::create_dir(folder.path().join("plugins"))?;
    let file = folder.path().join("new.toml");
    let name = file.display().to_string();
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let listeners =
        format!("[[listener]]\nbind = \"127.0.0.1:0\"\n[[listener]]\nbind = \"{address}\"\n");
    let at = |text: &str, of: &str| {
        let line = text.lines().position(|line| line.contains(of));
        line.map(|line| line + 1)
    };
    for (text, key, of) in [
        (
            running.replace_once("workers = 2", "workers = 1"),
            "workers",
            "workers = 1",
        ),
        (
            running.replace_once("[admin]", "[admin]\ntoken = \"0123456789abcdef\""),
            "admin",
            "[admin]",
        ),
        (
            running.replace_once(
                &balancer.plugins_dir().display().to_string(),
                &folder.path().join("plugins").display().to_string(),
            ),
            "plugins.dir",
            "dir = ",
        ),
        (
            running.replace_once("[[listener]]\nbind = \"127.0.0.1:0\"\n", &listeners),
            "listener[1].bind",
            &address.to_string(),
        ),
    ] {
        std::fs::write(&file, &text)?;
        let (said, found) = check_against_running(&balancer, &name, 1).await?;
        let line = at(&text, of).context("it is in the file")?;
        let expected = format!("{name}: line {line}: {key}: ");
        assert!(said.starts_with(&expected), "{expected}: {said}");
        assert_eq!(
            found["problems"].as_array().map(Vec::len),
            Some(1),
            "{found}"
        );
        assert_eq!(found["problems"][0]["key"], key, "{found}");
        assert_eq!(found["problems"][0]["line"], line, "{found}");
        assert_eq!(found["changes"], Value::Null, "{found}");

        // A reload says the same.
        std::fs::write(balancer.config_file(), &text)?;
        let answer = balancer.order("POST", "/api/reload").await?;
        assert_eq!(answer.status, 422);
        let answer: Value = serde_json::from_slice(&answer.body)?;
        assert_eq!(answer["details"], found["problems"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_plan_tries_plugins_and_takes_none() -> Result<()> {
    let backend = Backend::start().await?;
    let toml = app("round_robin", &[backend.address()]);
    let (good, broken) = (guests::policy("traps")?, b"\0asm and no more".to_vec());
    let files = [("mine", good.as_slice()), ("broken", broken.as_slice())];
    let balancer = Balancer::start_with_plugins(&toml, &files).await?;
    let running = std::fs::read_to_string(balancer.config_file())?;
    let status = async || -> Result<Value> {
        let status = balancer.status().await?;
        Ok(serde_json::json!([status["plugins"], status["problems"]]))
    };
    let before = status().await?;
    let plan = async |policy: &str| {
        let text = running.replace_once("round_robin", policy);
        let proposal = serde_json::json!({ "text": text, "dir": "/" }).to_string();
        let answer = ask(balancer.admin_address(), "POST", "/api/plan", &proposal).await?;
        let found: Value = serde_json::from_slice(&answer.body)?;
        Ok::<_, anyhow::Error>((answer.status, found))
    };
    let (code, found) = plan("mine").await?;
    assert_eq!(code, 200, "{found}");
    let details = "policy round_robin -> mine";
    assert_eq!(found["changes"][0]["details"], details, "{found}");
    for (policy, says) in [
        ("broken", "plugin \"broken\": "),
        ("leastconn", "did you mean"),
    ] {
        let (code, found) = plan(policy).await?;
        assert_eq!(code, 422, "{found}");
        assert_eq!(found["details"][0]["key"], "upstream[0].policy", "{found}");
        let message = found["details"][0]["message"].to_string();
        let says = says.replace('"', "\\\"");
        assert!(message.contains(&says), "{found}");
    }
    assert_eq!(status().await?, before);
    Ok(())
}
