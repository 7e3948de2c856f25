//! Guests for the tests of this room, hostile and harmless, as text: a core module in WAT, and the
//! world that it claims to keep to.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use pointsman_config as config;
use pointsman_contract::handler::{Facts, Handler};
use pointsman_contract::message::Received;
use pointsman_contract::names::PluginName;
use pointsman_contract::outbox::{QueueSettings, outbox};
use pointsman_contract::session::SessionId;
use wit_component::StringEncoding;
use wit_parser::Resolve;

use super::generation::{Generation, GenerationSource};
use super::handler::GuestHandler;
use super::host::PluginHost;
use super::limits::{HttpLimits, Limits};
use super::load::{Compiler, LoadError};

/// As many interfaces of WASI as a test needs.
const WASI: &str = r#"
    package test:wasi;
    package wasi:io@0.2.0 {
        interface error { resource error; }
        interface poll { resource pollable { block: func(); ready: func() -> bool; } }
        interface streams {
            use error.{error};
            variant stream-error { last-operation-failed(error), closed }
            resource output-stream {
                blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
            }
        }
    }
    package wasi:clocks@0.2.0 {
        interface monotonic-clock {
            use wasi:io/poll@0.2.0.{pollable};
            subscribe-duration: func(when: u64) -> pollable;
        }
    }
    package wasi:cli@0.2.0 {
        interface stdout {
            use wasi:io/streams@0.2.0.{output-stream};
            get-stdout: func() -> output-stream;
        }
    }
    package wasi:sockets@0.2.0 {
        interface network {
            enum error-code {
                unknown, access-denied, not-supported, invalid-argument, out-of-memory, timeout,
                concurrency-conflict, not-in-progress, would-block, invalid-state, new-socket-limit,
                address-not-bindable, address-in-use, remote-unreachable, connection-refused,
                connection-reset, connection-aborted, datagram-too-large, name-unresolvable,
                temporary-resolver-failure, permanent-resolver-failure
            }
            enum ip-address-family { ipv4, ipv6 }
        }
        interface udp { resource udp-socket; }
        interface udp-create-socket {
            use network.{error-code, ip-address-family};
            use udp.{udp-socket};
            create-udp-socket: func(family: ip-address-family) -> result<udp-socket, error-code>;
        }
    }
"#;

/// What every core module of ours begins with: two pages, and an allocator that starts over when it
/// has handed out half a page. `$dawdle` takes 40 to 80 ms, between once and five times [`limits`]'
/// call timeout on any machine.
const PREAMBLE: &str = r#"
    (memory (export "memory") 2)
    (global $heap (mut i32) (i32.const 65536))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (local $at i32)
        (if (i32.gt_u (global.get $heap) (i32.const 98304)) (then (global.set $heap (i32.const 65536))))
        (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
        (global.set $heap (i32.add (local.get $at) (local.get 3)))
        (local.get $at))
    (func $spin (loop $again (br $again)))
    (func $dawdle (local $n i64) (local $x i64)
        (local.set $n (i64.const 45000000))
        (loop $again
            (local.set $x (i64.mul (i64.add (local.get $x) (local.get $n)) (i64.const 0x5851f42d4c957f2d)))
            (local.set $n (i64.sub (local.get $n) (i64.const 1)))
            (br_if $again (i64.ne (local.get $n) (i64.const 0))))
        (i64.store (i32.const 1024) (local.get $x)))
"#;

/// The functions of a policy. `choose` is the body of that function, whose answer lies at address 16,
/// where there is `prefer(0)`.
pub(super) fn policy(choose: &str) -> Vec<u8> {
    policy_that_imports("", "", choose)
}

/// A policy that imports more than policies do: `imports` in the module, `world` in its world.
pub(super) fn policy_that_imports(imports: &str, world: &str, choose: &str) -> Vec<u8> {
    let module = format!(
        r#"(module {imports} {PREAMBLE}
            (func (export "pointsman:plugin/policy@0.1.0#configure") (param i32 i32) (result i32) (i32.const 16))
            (func (export "pointsman:plugin/policy@0.1.0#backends-changed") (param i32 i32))
            (func $choose (export "pointsman:plugin/policy@0.1.0#choose")
                (param i64 i64 i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
                {choose} (i32.const 16))
            (func (export "pointsman:plugin/policy@0.1.0#placed")
                (param i64 i64 i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 16))
            (func (export "pointsman:plugin/policy@0.1.0#session-ended")
                (param i32 i32 i32 i32 i32 i64 i64 i64 i64 i64)))"#
    );
    core_module(
        &module,
        &format!("{world} include pointsman:plugin/policy-plugin@0.1.0;"),
    )
}

/// The functions of a handler that echoes, with a counter of its sessions as its state. `message` is
/// the body of that function; the message is `(local 1..3)`, the verdict lies at 128: `ignore`.
pub(super) fn handler(message: &str) -> Vec<u8> {
    handler_that_opens("", message)
}

/// The same; `open` is what the constructor of a session does besides.
pub(super) fn handler_that_opens(open: &str, message: &str) -> Vec<u8> {
    let module = format!(
        r#"(module
            (import "[export]pointsman:plugin/handler@0.1.0" "[resource-new]session"
                (func $session (param i32) (result i32)))
            {PREAMBLE}
            (global $sessions (mut i32) (i32.const 0))
            (func (export "pointsman:plugin/handler@0.1.0#configure") (param i32 i32) (result i32) (i32.const 16))
            (func (export "pointsman:plugin/handler@0.1.0#accept")
                (param $facts i32) (result i32) (i32.const 16))
            (func (export "pointsman:plugin/handler@0.1.0#[constructor]session")
                (param $facts i32) (result i32)
                {open}
                (global.set $sessions (i32.add (global.get $sessions) (i32.const 1)))
                (call $session (i32.const 7)))
            (func (export "pointsman:plugin/handler@0.1.0#[method]session.interest") (param i32) (result i32)
                (i32.const 3))
            (func (export "pointsman:plugin/handler@0.1.0#[method]session.tick-interval-ms") (param i32) (result i32)
                (i32.const 0))
            (func (export "pointsman:plugin/handler@0.1.0#[method]session.opened") (param i32) (result i32)
                (i32.const 128))
            (func (export "pointsman:plugin/handler@0.1.0#[method]session.message")
                (param i32 i32 i32 i32) (result i32)
                {message} (i32.const 128))
            (func (export "pointsman:plugin/handler@0.1.0#[method]session.tick") (param i32) (result i32)
                (i32.const 128))
            (func (export "pointsman:plugin/handler@0.1.0#[method]session.closed")
                (param i32 i32 i32 i32 i64 i64 i64 i64 i64))
            (func (export "pointsman:plugin/handler@0.1.0#[dtor]session") (param i32)
                (global.set $sessions (i32.sub (global.get $sessions) (i32.const 1))))
            (func (export "pointsman:plugin/state@0.1.0#version") (result i32) (i32.const 1))
            (func (export "pointsman:plugin/state@0.1.0#save") (result i32)
                (i32.store (i32.const 256) (global.get $sessions))
                (i32.store (i32.const 260) (i32.const 256))
                (i32.store (i32.const 264) (i32.const 4))
                (i32.const 260))
            (func (export "pointsman:plugin/state@0.1.0#restore") (param i32 i32 i32) (result i32)
                (global.set $sessions (i32.load (local.get 0)))
                (i32.const 16)))"#
    );
    core_module(
        &module,
        "include pointsman:plugin/stateful-handler-plugin@0.1.0;",
    )
}

/// A core module that says which world it keeps to.
fn core_module(text: &str, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(text).unwrap();
    let mut resolve = Resolve::default();
    let contract = include_str!("../../../sdk/wit/plugin.wit");
    resolve.push_str("plugin.wit", contract).unwrap();
    resolve.push_str("wasi.wit", WASI).unwrap();
    let guest = format!("package test:guest; world guest {{ {world} }}");
    let package = resolve.push_str("guest.wit", &guest).unwrap();
    let world = resolve.select_world(&[package], Some("guest")).unwrap();
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .unwrap();
    module
}

pub(super) fn limits() -> Limits {
    Limits {
        call_timeout: Duration::from_millis(20),
        memory_max_bytes: 4 << 20,
        http: HttpLimits::new(config::HttpLimitsConfig::default(), Duration::ZERO),
    }
}

pub(super) fn host() -> PluginHost {
    PluginHost::for_trial(limits())
}

pub(super) fn load(bytes: &[u8]) -> Result<Arc<Generation>, LoadError> {
    let code = Compiler::new()?.compile(bytes)?;
    Ok(Arc::new(Generation {
        name: PluginName::parse("guest").unwrap(),
        number: 1,
        source: GenerationSource::Embedded,
        code: Arc::new(code),
    }))
}

/// A plugin that ships.
pub(super) fn shipped(name: &str) -> Arc<Generation> {
    load(&shipped_bytes(name)).unwrap()
}

/// Its file.
pub(super) fn shipped_bytes(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/plugins");
    let path = format!("{folder}/{name}.wasm");
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{path}: {error}: `cargo xtask plugins` makes it"))
}

/// Opens a session and sends it a message, which must fail.
pub(super) fn fail_once(handler: &GuestHandler) {
    let facts = Facts {
        session: SessionId(1),
        route: String::new(),
        client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        is_suspect: false,
        host: String::new(),
        path: String::new(),
        request_id: String::new(),
        max_message_bytes: 1 << 20,
        offered_subprotocols: Vec::new(),
        subprotocol: None,
        headers: Vec::new(),
    };
    let (outbox, _inbox) = outbox(QueueSettings::default());
    let mut session = handler.open(&facts, outbox).unwrap();
    session.message(Received::Binary(b"hello")).unwrap_err();
}
