//! What does one call of a plugin cost? Prints the best and the median of many batches, in ns.
//!
//! `cargo bench --bench plugin_call_cost`, after `cargo xtask build` has made the shipped plugins. With
//! `-- --json FILE` the figures are in a file as well: `[{"what", "best_ns", "median_ns"}]`.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people, who see its panics"
)]

use std::error::Error;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_config::{self as config, PluginSettings};
use pointsman_contract::handler::{Facts, Handler};
use pointsman_contract::message::{MessageKind, Received};
use pointsman_contract::names::PluginName;
use pointsman_contract::outbox::{QueueSettings, outbox};
use pointsman_contract::policy::{Candidate, ChoiceRequest, Figures, Policy};
use pointsman_contract::session::SessionId;
use pointsman_plugins::generation::{Generation, GenerationSource};
use pointsman_plugins::host::PluginHost;
use pointsman_plugins::limits::Limits;
use pointsman_plugins::policy::GuestPolicy;
use pointsman_plugins::registry::{Loaded, Registry};
use serde_json::{Value, json};
use wit_component::StringEncoding;
use wit_parser::Resolve;

const BATCHES: usize = 40;
const N_BACKENDS: usize = 10;
const N_BACKENDS_MANY: usize = 100;
const HEADERS: [&str; 8] = ["x-a", "x-b", "x-c", "x-d", "x-e", "x-f", "x-g", "x-h"];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let settings = config::Plugins {
        dir: None,
        call_timeout: Duration::from_millis(10),
        memory_max_bytes: 16 << 20,
        compile_timeout: Duration::from_secs(60),
        http: config::HttpLimitsConfig::default(),
    };
    let (mut registry, _failures) = Registry::new(Limits::new(&settings).into(), &[])?;
    let host = registry.host(0);
    let mut bench = Bench::default();
    for (name, config) in policies() {
        let generation = load(&mut registry, name, shipped(name)?)?;
        choose(&mut bench, name, &config, &generation, &host)?;
        change_backends(&mut bench, name, &config, &generation, &host)?;
    }
    let generation = load(&mut registry, "wants_headers", policy_that_wants_headers()?)?;
    choose(
        &mut bench,
        "wants 8 headers, does nothing",
        &json!({}),
        &generation,
        &host,
    )?;

    let echo = load(&mut registry, "echo", shipped("echo")?)?;
    handle(&mut bench, &echo, &host)?;
    if let Some(file) = env::args().skip_while(|word| word != "--json").nth(1) {
        fs::write(file, Value::Array(bench.figures).to_string())?;
    }
    Ok(())
}

/// The shipped ones, with what they cannot be without.
fn policies() -> [(&'static str, Value); 11] {
    let secret = json!({"secret": "of sixteen letters"});
    [
        ("round_robin", json!({})),
        ("least_connections", json!({})),
        ("least_latency", json!({})),
        ("power_of_two", json!({})),
        ("random", json!({})),
        ("first", json!({})),
        ("sticky", secret),
        ("ip_hash", json!({})),
        ("rendezvous", json!({})),
        ("maglev", json!({})),
        ("consistent_hash", json!({})),
    ]
}

fn candidates(n: usize) -> Vec<Candidate> {
    let candidate = |n| Candidate {
        address: format!("127.0.0.1:{n}"),
        weight: 1,
        labels: vec![],
    };
    (3000..3000 + n).map(candidate).collect()
}

/// A policy has the call timeout for whatever it prepares.
fn change_backends(
    bench: &mut Bench,
    what: &str,
    config: &Value,
    generation: &Arc<Generation>,
    host: &PluginHost,
) -> Result<()> {
    let mut policy = generation.policy(config, host)?;
    let candidates = candidates(N_BACKENDS_MANY);
    bench.measure(
        &format!("backends change to {N_BACKENDS_MANY}, {what}"),
        5,
        || policy.try_backends_changed(&candidates).unwrap(),
    );
    Ok(())
}

fn choose(
    bench: &mut Bench,
    what: &str,
    config: &Value,
    generation: &Arc<Generation>,
    host: &PluginHost,
) -> Result<()> {
    let mut policy = generation.policy(config, host)?;
    policy.try_backends_changed(&candidates(N_BACKENDS))?;
    let mut headers = HeaderMap::new();
    for name in HEADERS {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static("a value of 24 characters"),
        );
    }
    measure_choose(bench, &format!("choose, {what}"), &mut policy, &headers);
    bench.measure(
        &format!("instance of {what}: made, configured, dropped"),
        20,
        || {
            black_box(generation.policy(config, host).unwrap());
        },
    );
    Ok(())
}

fn measure_choose(bench: &mut Bench, what: &str, policy: &mut GuestPolicy, headers: &HeaderMap) {
    let figures = if policy.wants().figures {
        vec![Figures::default(); N_BACKENDS]
    } else {
        vec![]
    };
    let mut sequence = 0;
    bench.measure(what, 2000, || {
        sequence += 1;
        let request = ChoiceRequest {
            sequence,
            random: sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15),
            now_ms: 1_800_000_000_000,
            client_ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
            host: "app.example.org",
            path: "/websocket?room=lobby",
            headers,
            figures: &figures,
        };
        black_box(policy.try_choose(&request).unwrap());
    });
}

fn handle(bench: &mut Bench, generation: &Arc<Generation>, host: &PluginHost) -> Result<()> {
    let handler = generation.handler(&PluginSettings::default(), host)?;
    let facts = Facts {
        session: SessionId(1),
        route: "/echo".to_owned(),
        client_ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
        is_suspect: false,
        host: "app.example.org".to_owned(),
        path: "/echo".to_owned(),
        request_id: "0123456789abcdef".to_owned(),
        max_message_bytes: 1 << 20,
        offered_subprotocols: vec![],
        subprotocol: None,
        headers: vec![],
    };
    let (outbox, _inbox) = outbox(QueueSettings::default());
    let mut session = handler.open(&facts, outbox.clone())?;
    for (kind, n_bytes) in [
        (MessageKind::Text, 64),
        (MessageKind::Text, 1024),
        (MessageKind::Binary, 64),
        (MessageKind::Binary, 1024),
        (MessageKind::Binary, 64 << 10),
    ] {
        let text = "x".repeat(n_bytes);
        let message = match kind {
            MessageKind::Text => Received::Text(&text),
            MessageKind::Binary => Received::Binary(text.as_bytes()),
        };
        bench.measure(
            &format!("message, echo, {kind:?} of {n_bytes} bytes"),
            2000,
            || {
                black_box(session.message(message).unwrap());
            },
        );
    }
    drop(session);
    bench.measure("session of echo: opened and dropped", 500, || {
        black_box(handler.open(&facts, outbox.clone()).unwrap());
    });
    Ok(())
}

/// What was measured so far.
#[derive(Default)]
struct Bench {
    figures: Vec<Value>,
}

impl Bench {
    fn measure(&mut self, what: &str, n_calls: u32, mut call: impl FnMut()) {
        let mut batches: Vec<f64> = (0..BATCHES)
            .map(|_| {
                let started = Instant::now();
                for _ in 0..n_calls {
                    call();
                }
                started.elapsed().as_secs_f64() * 1e9 / f64::from(n_calls)
            })
            .collect();
        batches.sort_by(f64::total_cmp);
        let (best, median) = (batches[0], batches[BATCHES / 2]);
        println!("{best:>8.0} {median:>8.0}  {what}");
        self.figures
            .push(json!({"what": what, "best_ns": best, "median_ns": median}));
    }
}

fn load(registry: &mut Registry, plugin: &str, bytes: Vec<u8>) -> Result<Arc<Generation>> {
    match registry.load(&name(plugin), bytes, GenerationSource::Embedded)? {
        Loaded::New(generation) => Ok(generation),
        Loaded::Unchanged => Err("nothing serves yet".into()),
    }
}

fn name(plugin: &str) -> PluginName {
    PluginName::parse(plugin).unwrap()
}

fn shipped(plugin: &str) -> Result<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/plugins");
    let path = folder.join(plugin).with_extension("wasm");
    fs::read(&path).map_err(|error| {
        format!("{}: {error}; `cargo xtask build` makes it", path.display()).into()
    })
}

/// A policy whose `configure` asks for [`HEADERS`] and whose `choose` says `prefer(0)` at once.
fn policy_that_wants_headers() -> Result<Vec<u8>> {
    let names = HEADERS.concat();
    let list: String = (0..HEADERS.len() as u32)
        .flat_map(|n| {
            (1024 + 3 * n)
                .to_le_bytes()
                .into_iter()
                .chain(3_u32.to_le_bytes())
        })
        .map(|byte| format!("\\{byte:02x}"))
        .collect();
    let mut module = wat::parse_str(format!(
        r#"(module
            (memory (export "memory") 2)
            (global $heap (mut i32) (i32.const 65536))
            (data (i32.const 1024) "{names}")
            (data (i32.const 2048) "{list}")
            (data (i32.const 20) "\00\08\00\00\08")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (if (i32.gt_u (global.get $heap) (i32.const 98304)) (then (global.set $heap (i32.const 65536))))
                (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
                (global.set $heap (i32.add (local.get $at) (local.get 3)))
                (local.get $at))
            (func (export "pointsman:plugin/policy@0.1.0#configure") (param i32 i32) (result i32) (i32.const 16))
            (func (export "pointsman:plugin/policy@0.1.0#backends-changed") (param i32 i32))
            (func (export "pointsman:plugin/policy@0.1.0#choose")
                (param i64 i64 i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 64))
            (func (export "pointsman:plugin/policy@0.1.0#placed")
                (param i64 i64 i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 64))
            (func (export "pointsman:plugin/policy@0.1.0#session-ended")
                (param i32 i32 i32 i32 i32 i64 i64 i64 i64 i64)))"#
    ))?;
    let mut resolve = Resolve::default();
    let package = resolve.push_str("plugin.wit", include_str!("../../../sdk/wit/plugin.wit"))?;
    let world = resolve.select_world(&[package], Some("policy-plugin"))?;
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    Ok(module)
}
