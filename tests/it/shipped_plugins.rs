//! The promise: whatever one client sends to a plugin that ships, in a head or in messages, the sessions
//! beside it go on. They share an instance, which a call that took too long or too much memory would end
//! with all of them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use pointsman_tests::{Backend, Balancer, Client, PATIENCE, Wire, frame, upgrade_request};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

const N_BYSTANDERS: usize = 30;

/// `max_message_bytes` of a route, unless it says otherwise.
const MAX_BYTES: usize = 1 << 20;

/// How often each of the hostile messages is sent.
const N_TIMES: usize = 2;

/// Between two messages of a bystander.
const PACE: Duration = Duration::from_millis(20);

/// How long an answer to a ping is waited for.
const PING_AGAIN: Duration = Duration::from_millis(100);

const SECRET: &str = "thirty-two letters, or even more";

const POLICIES: [&str; 6] = [
    "policy = \"sticky\"\npolicy_config = { secret = \"sixteen letters.\", cookie = \"a\" }",
    "policy = \"consistent_hash\"\npolicy_config = { key = \"cookie\", name = \"b\" }",
    "policy = \"maglev\"\npolicy_config = { key = \"query\", name = \"b\" }",
    "policy = \"rendezvous\"\npolicy_config = { key = \"header\", name = \"x\" }",
    "policy = \"rendezvous\"\npolicy_config = { key = \"path\" }",
    "policy = \"ip_hash\"",
];

#[tokio::test]
async fn sessions_at_broadcast_go_on_beside_a_hostile_client() -> Result<()> {
    beside_a_hostile_client("broadcast", "").await
}

#[tokio::test]
async fn sessions_at_chat_go_on_beside_a_hostile_client() -> Result<()> {
    beside_a_hostile_client("chat", "").await
}

#[tokio::test]
async fn sessions_at_echo_go_on_beside_a_hostile_client() -> Result<()> {
    beside_a_hostile_client("echo", "").await
}

#[tokio::test]
async fn sessions_behind_json_schema_go_on_beside_a_hostile_client() -> Result<()> {
    let schema = r##"{"anyOf": [
        {"type": "object", "propertyNames": {"pattern": "^[a-z]*$"}, "additionalProperties": {"$ref": "#"}},
        {"type": "array", "uniqueItems": true, "items": {"$ref": "#"}},
        {"type": "string", "pattern": "(a|b)*a(a|b){12}c|^s"},
        {"type": "number"}
    ]}"##;
    for on_invalid in ["close", "answer", "drop"] {
        let config = format!(
            "schema = '''{schema}'''\non_invalid = \"{on_invalid}\"\ndirections = \"both\""
        );
        beside_a_hostile_client("json_schema", &config).await?;
    }
    Ok(())
}

#[tokio::test]
async fn sessions_behind_jwt_go_on_beside_a_hostile_client() -> Result<()> {
    let config =
        format!("secret = \"{SECRET}\"\nrefresh = {{}}\nsources = [\"header\", \"cookie\"]");
    beside_a_hostile_client("jwt", &config).await
}

#[tokio::test]
async fn sessions_behind_rate_limit_go_on_beside_a_hostile_client() -> Result<()> {
    let config = "messages_per_sec = 500\nper = \"query\"\nname = \"room\"\ndirections = \"both\"";
    beside_a_hostile_client("rate_limit", config).await
}

#[tokio::test]
async fn sessions_behind_redact_go_on_beside_a_hostile_client() -> Result<()> {
    for what in [
        "pointers = [\"/user/email\", \"/orders/*/card\"]",
        "pointers = [\"/*/*\", \"/k\"]\nreplacement = 0",
        "pointers = [\"/*/k\", \"/k\"]\nremove = true",
    ] {
        for on_invalid in ["forward", "close"] {
            let config = format!("{what}\ndirections = \"both\"\non_invalid = \"{on_invalid}\"");
            beside_a_hostile_client("redact", &config).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn sessions_behind_tap_go_on_beside_a_hostile_client() -> Result<()> {
    beside_a_hostile_client("tap", "sample_every = 1\nsample_bytes = 3072").await
}

#[tokio::test]
async fn a_hostile_head_makes_no_policy_fail() -> Result<()> {
    let backends = Backend::start_many(3).await?;
    let addresses: Vec<_> = backends.iter().map(|b| b.address().to_string()).collect();
    let mut toml = "workers = 1\n".to_owned();
    for (n, policy) in POLICIES.iter().enumerate() {
        toml += &format!(
            "[[upstream]]\nname = \"u{n}\"\nbackends = {addresses:?}\n{policy}\n\
             [[route]]\npath = \"/{n}/*\"\nupstream = \"u{n}\"\n"
        );
    }
    let balancer = Balancer::start(&toml).await?;
    for n in 0..POLICIES.len() {
        for head in hostile_heads(&format!("/{n}/"), &[]) {
            upgraded(&balancer, &head).await?;
        }
    }
    for policy in [
        "sticky",
        "consistent_hash",
        "maglev",
        "rendezvous",
        "ip_hash",
    ] {
        no_failures(&balancer, policy).await?;
    }
    Ok(())
}

/// One worker, so that all sessions are at one instance.
async fn beside_a_hostile_client(plugin: &str, config: &str) -> Result<()> {
    let backend = Backend::start().await?;
    let is_handler = matches!(plugin, "broadcast" | "chat" | "echo");
    let uses = match is_handler {
        true => format!("handler = \"{plugin}\""),
        false => format!("upstream = \"app\"\nfilters = [\"{plugin}\"]"),
    };
    let toml = format!(
        "workers = 1\n\
         [[upstream]]\nname = \"app\"\nbackends = [\"{}\"]\n\
         [[route]]\npath = \"/*\"\n{uses}\n\
         [plugin.{plugin}.config]\n{config}\n",
        backend.address()
    );
    let balancer = Balancer::start(&toml).await?;
    let token = format!(
        "Bearer {}",
        token(&json!({"sub": "ada", "exp": 4_000_000_000_u64}))
    );
    let headers = match plugin {
        "jwt" => vec![("authorization", token.as_str())],
        _ => Vec::new(),
    };
    let bystanders = Bystanders::start(&balancer, &headers).await?;
    let attack = attack(&balancer, &headers).await;
    bystanders.stop().await.with_context(|| config.to_owned())?;
    no_failures(&balancer, plugin).await?;
    attack
}

async fn attack(balancer: &Balancer, headers: &[(&str, &str)]) -> Result<()> {
    for message in hostile_messages() {
        for _ in 0..N_TIMES {
            send(balancer, headers, &message).await?;
        }
    }
    flood(balancer, headers).await?;
    for head in hostile_heads("/", headers) {
        upgraded(balancer, &head).await?;
    }
    Ok(())
}

/// A counter that is missing is none.
async fn no_failures(balancer: &Balancer, plugin: &str) -> Result<()> {
    let metrics = balancer.metrics().await?;
    for kind in ["memory", "output", "timeout", "trap"] {
        let labels = [("plugin", plugin), ("kind", kind)];
        let name = "pointsman_plugin_failures_total";
        ensure!(metrics.has(name, &labels), "no {name} {labels:?}");
        let n = metrics.sum(name, &labels);
        ensure!(n == 0.0, "{plugin}: {n} failures of the kind {kind}");
    }
    Ok(())
}

/// Sessions that talk the whole time.
struct Bystanders {
    stop: watch::Sender<bool>,
    talking: JoinSet<Result<()>>,
}

impl Bystanders {
    async fn start(balancer: &Balancer, headers: &[(&str, &str)]) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut talking = JoinSet::new();
        for n in 0..N_BYSTANDERS {
            let url = balancer.url(&format!("/{n}?room={n}"));
            let mut client = Client::connect_with(&url, headers).await?;
            let stopped = stopped.clone();
            talking.spawn(async move {
                // Chat says who is there.
                let mut is_over = false;
                let mut said = 0;
                while !is_over {
                    is_over = *stopped.borrow();
                    said += 1;
                    talk(&mut client, &format!("session {n}, message {said}")).await?;
                    sleep(PACE).await;
                }
                Ok(())
            });
        }
        Ok(Self { stop, talking })
    }

    /// Each gets one more message round.
    async fn stop(mut self) -> Result<()> {
        self.stop.send_replace(true);
        let (mut n_gone_on, mut first) = (0, None);
        while let Some(ended) = self.talking.join_next().await {
            match ended? {
                Ok(()) => n_gone_on += 1,
                Err(error) => first = first.or(Some(error)),
            }
        }
        match first {
            None => Ok(()),
            Some(error) => Err(error.context(format!("{n_gone_on} of {N_BYSTANDERS} went on"))),
        }
    }
}

/// A text goes round, in whatever the plugin puts around it; what chat says besides is passed over.
async fn talk(client: &mut Client, text: &str) -> Result<()> {
    let message = json!({"type": "say", "room": "s", "text": text});
    client.send(Message::text(message.to_string())).await?;
    loop {
        let heard: Value = serde_json::from_str(client.receive().await?.to_text()?)?;
        if heard["type"] == "welcome" {
            continue;
        }
        ensure!(heard["text"] == text, "{heard} in place of {text:?}");
        return Ok(());
    }
}

/// Messages of the longest kind that a route lets in, and of 900 KB.
fn hostile_messages() -> Vec<Message> {
    let filled = |head: &str, repeated: &str, tail: &str, n_bytes: usize| {
        let n = (n_bytes - head.len() - tail.len()) / repeated.len();
        Message::text([head, &repeated.repeat(n), tail].concat())
    };
    let nested = |open: &str, close: &str| {
        let n = MAX_BYTES / (open.len() + close.len());
        Message::text([open.repeat(n), close.repeat(n)].concat())
    };
    let numbered = (0..90_000).map(|n| format!("\"{n}\":1,"));
    let numbered = numbered.collect::<String>();
    vec![
        filled("{", "\"k\":1,", "\"k\":1}", 900_000),
        filled("{", "\"k\":1,", "\"k\":1}", MAX_BYTES),
        Message::text(format!("{{{numbered}\"k\":1}}")),
        filled("{", "\"\":\"\",", "\"k\":1}", MAX_BYTES),
        filled("{", "\"\\u006b\":1,", "\"k\":1}", MAX_BYTES),
        filled("", "[", "", MAX_BYTES),
        filled("", "{\"k\":", "", MAX_BYTES),
        nested("[", "]"),
        filled("[", "0,", "0]", MAX_BYTES),
        filled("[", "{},", "0]", MAX_BYTES),
        filled("[", "\"\",", "0]", MAX_BYTES),
        filled("[", "[0],", "0]", MAX_BYTES),
        filled("[", "{\"k\":1},", "0]", MAX_BYTES),
        filled("{\"k\":{", "\"k\":1,", "\"k\":1}}", MAX_BYTES),
        filled("[", "1", ".5e-3]", MAX_BYTES),
        filled("[", " ", "0]", MAX_BYTES),
        filled("[\"", "\\u0000", "\"]", MAX_BYTES),
        filled("[\"", "\\n", "\"]", MAX_BYTES),
        filled("", "\"", "", MAX_BYTES),
        filled("", "\0", "", MAX_BYTES),
        filled("", " ", "", MAX_BYTES),
        filled("", "a", "", MAX_BYTES),
        filled("\"", "ab", "c\"", MAX_BYTES),
        filled("\"", "\u{1f980}", "\"", MAX_BYTES),
        filled("{\"type\":\"say\",\"text\":\"", "\\u0001", "\"}", MAX_BYTES),
        filled("{\"type\":\"say\",\"text\":\"", "\\u0001", "\"}", 24_000),
        filled("{\"type\":\"", "\\u0001", "\"}", 24_000),
        filled("{\"type\":\"join\",\"name\":\"", "\\u0001", "\"}", 24_000),
        filled("{\"type\":\"say\",", "\"k\":1,", "\"text\":\"\"}", 24_000),
        filled(
            "{\"type\":\"auth.refresh\",\"token\":\"",
            "A",
            "\"}",
            MAX_BYTES,
        ),
        filled("{\"type\":\"auth.refresh\",\"token\":\"", ".", "\"}", 9000),
        filled("[", "[", "\"auth.refresh\"", 9000),
        Message::binary(vec![0xff; MAX_BYTES]),
        Message::binary(Vec::new()),
    ]
}

/// Sends one message by a session of its own, and waits until it is dealt with.
async fn send(balancer: &Balancer, headers: &[(&str, &str)], message: &Message) -> Result<()> {
    let mut client = hostile_session(balancer, headers).await?;
    // A session that was closed has had its answer, too.
    if client.send(message.clone()).await.is_ok() {
        until_read(&mut client).await?;
    }
    Ok(())
}

/// Waits until a ping is answered or the session is over. A session that has much to send leaves pings
/// out, so there may be several.
async fn until_read(client: &mut Client) -> Result<()> {
    let answered = async {
        while client.send(Message::Ping("read?".into())).await.is_ok() {
            while let Ok(received) = timeout(PING_AGAIN, client.receive()).await {
                if received.map_or(true, |message| message.is_pong()) {
                    return;
                }
            }
        }
    };
    timeout(PATIENCE, answered)
        .await
        .context("nothing is answered")
}

async fn hostile_session(balancer: &Balancer, headers: &[(&str, &str)]) -> Result<Client> {
    Client::connect_with(&balancer.url("/hostile?room=hostile"), headers).await
}

/// Small messages without a pause, in pieces, and what is no text.
async fn flood(balancer: &Balancer, headers: &[(&str, &str)]) -> Result<()> {
    let mut client = hostile_session(balancer, headers).await?;
    for n in 0..2000 {
        let text = [
            r#"{"type":"who"}"#,
            "{",
            "[]",
            r#"{"type":"join","room":"a"}"#,
        ][n % 4];
        if client.send(Message::text(text)).await.is_err() {
            break;
        }
        if n % 50 == 0 {
            until_read(&mut client).await?;
        }
    }
    let head = upgrade("/hostile?room=hostile", headers);
    for text in [&[0xc3, 0x28][..], &[0xed, 0xa0, 0x80], &[0xff; 60_000]] {
        let mut wire = Wire::connect(balancer.address()).await?;
        wire.send(&head).await?;
        wire.head().await?;
        wire.send(frame(0x81, text)).await?;
        wire.rest().await?;
    }
    Ok(())
}

/// Upgrades whose target or fields are as long as they may be.
fn hostile_heads(path: &str, headers: &[(&str, &str)]) -> Vec<String> {
    let filled = |repeated: &str, n_bytes: usize| repeated.repeat(n_bytes / repeated.len());
    let targets = [
        "&",
        "b&",
        "%62=%62&",
        "+=&",
        "room=%01&",
        "%",
        "b",
        "/",
        "?",
    ];
    let targets = targets.map(|repeated| {
        let target = format!("{path}?{}", filled(repeated, 8000 - path.len()));
        upgrade(&target, headers)
    });
    let values = ["a=x;", ";", "=;", "b=", "bearer.a,", "a", " ", ",", "."];
    let fields = [
        "cookie",
        "authorization",
        "x",
        "sec-websocket-protocol",
        "x-publisher",
    ];
    let heads = fields.map(|name| {
        values.map(|repeated| {
            let value = filled(repeated, 15_000);
            let headers = [headers, &[(name, value.as_str())]].concat();
            upgrade(path, &headers)
        })
    });
    let cookies = vec![("cookie", "a=b; a=c; b=d"); 80];
    let cookies = upgrade(path, &[headers, &cookies].concat());
    let all = targets.into_iter().chain(heads.into_iter().flatten());
    all.chain([cookies]).collect()
}

fn upgrade(path: &str, headers: &[(&str, &str)]) -> String {
    let lines = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}"));
    let lines: Vec<_> = lines.collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    upgrade_request(path, &lines)
}

/// Whatever the answer, there is one, and it blames nobody else.
async fn upgraded(balancer: &Balancer, head: &str) -> Result<()> {
    let mut wire = Wire::connect(balancer.address()).await?;
    wire.send(head).await?;
    let answer = wire.head().await?;
    let is_fair = matches!(answer.status, 101 | 400 | 401 | 431);
    ensure!(is_fair, "{} for {:?}", answer.status, &head[..60]);
    Ok(())
}

fn token(claims: &Value) -> String {
    let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let head = encode(br#"{"alg":"HS256"}"#);
    let signed = format!("{head}.{}", encode(claims.to_string().as_bytes()));
    let mut code = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length is a key");
    code.update(signed.as_bytes());
    format!("{signed}.{}", encode(&code.finalize().into_bytes()))
}
