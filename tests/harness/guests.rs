//! Hostile guests: text in `fixtures/` in, the bytes of a `.wasm` file out.
//!
//! The guests are core modules under the canonical ABI's names, because that is text that people
//! can read; `wit-component` wraps them for the contract in `sdk/wit`, as it does for real ones.

use std::fs;

use anyhow::{Context, Result};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::config::repository;
use crate::edit::Edit;

/// Where a well-behaved guest's text takes in how it misbehaves.
const MARK: &str = ";;! misbehave";

/// A policy that prefers the last backend, and misbehaves as `fixtures/{how}.wat` says when the
/// path ends in `!`.
///
/// # Errors
///
/// The text is no module, or not one that the contract fits.
pub fn policy(how: &str) -> Result<Vec<u8>> {
    component(&core_policy(how)?)
}

/// The same policy with the state that `fixtures/{state}.wat` keeps.
///
/// # Errors
///
/// See [`policy`].
pub fn stateful_policy(state: &str) -> Result<Vec<u8>> {
    component(&core(&spliced("policy", state)?, "stateful-policy-plugin")?)
}

/// The same as a core module that carries its contract in a custom section, which is what
/// `cargo build --target wasm32-unknown-unknown` leaves.
///
/// # Errors
///
/// See [`policy`].
pub fn core_policy(how: &str) -> Result<Vec<u8>> {
    core(&spliced("policy", how)?, "policy-plugin")
}

/// A handler that echoes, and misbehaves as `fixtures/{how}.wat` says when a message ends in `!`.
///
/// # Errors
///
/// See [`policy`].
pub fn handler(how: &str) -> Result<Vec<u8>> {
    component(&core(&spliced("handler", how)?, "handler-plugin")?)
}

/// A filter that does what the first byte of a message says (see `fixtures/filter.wat`), and misbehaves
/// as `fixtures/{how}.wat` says when one ends in `!`. It looks at all but binary from the backend.
///
/// # Errors
///
/// See [`policy`].
pub fn filter(how: &str) -> Result<Vec<u8>> {
    component(&core(&spliced("filter", how)?, "filter-plugin")?)
}

/// The same, looking only at what the client sends.
///
/// # Errors
///
/// See [`policy`].
pub fn filter_of_clients(how: &str) -> Result<Vec<u8>> {
    let text = spliced("filter", how)?.replace_once("(i32.const 7))", "(i32.const 3))");
    component(&core(&text, "filter-plugin")?)
}

/// The filter of [`filter`] that wants to be asked before a backend is, and misbehaves then if the path
/// ends in `!`.
///
/// # Errors
///
/// See [`policy`].
pub fn filter_that_is_asked(how: &str) -> Result<Vec<u8>> {
    let text = spliced("filter", how)?;
    let text = text.replace_once(
        "$wants_accept i32 (i32.const 0)",
        "$wants_accept i32 (i32.const 1)",
    );
    component(&core(&text, "filter-plugin")?)
}

/// A filter that looks at everything and lets everything pass, up to 16 MiB.
///
/// # Errors
///
/// See [`policy`].
pub fn filter_that_forwards() -> Result<Vec<u8>> {
    component(&core(&text("filter_forwards")?, "filter-plugin")?)
}

/// An HTTP handler that does what the last letter of the path says (see `fixtures/http.wat`).
///
/// # Errors
///
/// See [`policy`].
pub fn http() -> Result<Vec<u8>> {
    let module = core_for("tests/fixtures/http.wit", &text("http")?, "http-plugin")?;
    component(&module)
}

/// A policy that behaves, with `n_functions` besides that are never called and keep a compiler busy.
///
/// # Errors
///
/// See [`policy`].
pub fn policy_of_many_functions(n_functions: usize) -> Result<Vec<u8>> {
    let step = "(local.set $a (i64.xor (i64.mul (local.get $a) (local.get $b)) (i64.rotl (local.get $b) (local.get $a))))\n";
    let body = step.repeat(100);
    let function =
        format!("(func (param $a i64) (param $b i64) (result i64) {body} (local.get $a))\n");
    let text = spliced("policy", "traps")?;
    let end = text.rfind(')').context("a module ends")?;
    let text = format!("{} {})", &text[..end], function.repeat(n_functions));
    component(&core(&text, "policy-plugin")?)
}

/// So many components, one in the other.
pub fn nested_components(n: usize) -> Vec<u8> {
    const PREAMBLE: &[u8] = b"\0asm\x0d\0\x01\0";
    let mut length = PREAMBLE.len();
    let mut outer = Vec::new();
    for _ in 0..n {
        // A section of one component, and its length in LEB128.
        let mut head = [PREAMBLE, &[4]].concat();
        let mut rest = length;
        while rest > 0x7f {
            head.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        head.push(rest as u8);
        length += head.len();
        outer.push(head);
    }
    outer.reverse();
    outer.push(PREAMBLE.to_vec());
    outer.concat()
}

/// The same plugin as other content: with a custom section that says so.
pub fn marked(plugin: &[u8], mark: u32) -> Vec<u8> {
    const NAME: &[u8] = b"\x04mark";
    let mark = mark.to_le_bytes();
    let section = [&[0, 9], NAME, &mark].concat();
    [plugin, &section].concat()
}

/// A policy whose `configure` never comes back.
///
/// # Errors
///
/// See [`policy`].
pub fn policy_that_loops_in_configure() -> Result<Vec<u8>> {
    component(&core(&text("policy_loops_in_configure")?, "policy-plugin")?)
}

/// `fixtures/{name}.wat` as it stands, a whole component.
///
/// # Errors
///
/// The text is no component.
pub fn stranger(name: &str) -> Result<Vec<u8>> {
    Ok(wat::parse_str(text(name)?)?)
}

/// A shipped plugin, as the build leaves it.
///
/// # Panics
///
/// It is missing; the message says how to build it.
pub fn shipped(name: &str) -> Vec<u8> {
    let path = repository("target/plugins").join(format!("{name}.wasm"));
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask build`", path.display()))
}

fn text(name: &str) -> Result<String> {
    let path = repository("tests/fixtures").join(format!("{name}.wat"));
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn spliced(guest: &str, how: &str) -> Result<String> {
    Ok(text(guest)?.replace_once(MARK, &text(how)?))
}

fn core(text: &str, world: &str) -> Result<Vec<u8>> {
    core_for("sdk/wit", text, world)
}

fn core_for(wit: &str, text: &str, world: &str) -> Result<Vec<u8>> {
    let mut contract = Resolve::default();
    let (package, _) = contract.push_path(repository(wit))?;
    let world = contract.select_world(&[package], Some(world))?;
    let mut module = wat::parse_str(text)?;
    embed_component_metadata(&mut module, &contract, world, StringEncoding::UTF8)?;
    Ok(module)
}

fn component(module: &[u8]) -> Result<Vec<u8>> {
    ComponentEncoder::default()
        .module(module)?
        .validate(true)
        .encode()
}
