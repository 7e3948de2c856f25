//! Bytes of a `.wasm` file in; compiled code that only has to be instantiated out, or what an
//! operator has to read.
//!
//! A core module is made a component first. Code that somebody else compiled is never taken. Knows
//! neither names nor generations.

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sha2::{Digest, Sha256};
use wasmtime::Cache;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wit_component::ComponentEncoder;

use super::bindings::exports::pointsman::plugin::{filter, handler, policy, state};
use super::engine::{self, Engines};
use super::failure::CallError;
use super::host_api::{self, HostState};
use super::limits::FILE_MAX_BYTES;
use super::wasi;

/// The interfaces of the contract that a plugin may import.
const OFFERED: [&str; 8] = [
    "clock", "log", "metrics", "random", "sessions", "store", "topics", "types",
];

/// The packages of WASI 0.2 that a plugin may import, with nothing granted.
const OFFERED_WASI: [&str; 7] = [
    "cli",
    "clocks",
    "filesystem",
    "http",
    "io",
    "random",
    "sockets",
];

const CONTRACT: &str = "pointsman:plugin";
const CONTRACT_VERSION: &str = "0.1";
const WASI_VERSION: &str = "0.2";

const MAGIC: &[u8] = b"\0asm";
/// What a module begins with: magic, version 1, layer 0.
const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const PREAMBLE_BYTES: usize = MODULE.len();

/// Turns bytes into code. Cheap to clone; compiling takes 15 ms to seconds, so it belongs on a
/// thread that nobody waits for.
#[derive(Clone)]
pub struct Compiler {
    engines: Engines,
    /// For calls that return at once.
    linker: Linker<HostState>,
    /// For HTTP handlers, which may wait.
    http_linker: Linker<HostState>,
}

/// One plugin, compiled and checked.
pub(super) struct Code {
    pub(super) engines: Engines,
    pub(super) kinds: PluginKinds,
    pub(super) sha256: [u8; 32],
    pub(super) n_bytes: usize,
    /// None where it is an HTTP handler only.
    pub(super) calls: Option<CallCode>,
    pub(super) http: Option<ProxyPre<HostState>>,
}

/// What is called synchronously.
pub(super) struct CallCode {
    pub(super) pre: InstancePre<HostState>,
    pub(super) policy: Option<policy::GuestIndices>,
    pub(super) filter: Option<filter::GuestIndices>,
    pub(super) handler: Option<handler::GuestIndices>,
    pub(super) state: Option<state::GuestIndices>,
}

/// What a plugin exports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PluginKinds {
    /// Chooses backends.
    pub policy: bool,
    /// Sits between client and backend.
    pub filter: bool,
    /// Is the far end of WebSockets.
    pub handler: bool,
    /// Hands its state to the generation after it.
    pub state: bool,
    /// Answers requests.
    pub http: bool,
}

/// Why a plugin is not taken into service. The generation before it, if any, goes on serving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// The file cannot be read.
    Read(String),
    /// The file is too big to be compiled.
    TooLarge {
        /// Its size.
        n_bytes: usize,
    },
    /// It is no WebAssembly.
    NotWasm,
    /// It begins as WebAssembly and is not all there: a copy was interrupted, or a disk was full.
    CutShort {
        /// Its size.
        n_bytes: usize,
    },
    /// A parser or the compiler panicked over it.
    Broken,
    /// Compiled apart it was refused, for this reason.
    Apart(String),
    /// It is a core module that cannot be made a component: built without `wit-bindgen`, or for WASI 0.1.
    NotComponent(String),
    /// Compiling it takes too long, or too much memory.
    CompileBounds(String),
    /// It is broken, or uses what the compiler does not have.
    Compile(String),
    /// It wants what is not offered.
    UnknownImport(String),
    /// It was built for another version of the contract.
    Version {
        /// As the plugin names it.
        interface: String,
        /// The versions that are understood.
        offered: &'static str,
    },
    /// Its imports or exports have not the types of the contract.
    Types(String),
    /// It exports none of the kinds.
    NothingExported,
    /// Somebody refers to it as what it is not.
    NotKind {
        /// `policy`, `filter`, `handler` or `http`.
        wanted: &'static str,
        /// What it is.
        kinds: PluginKinds,
    },
    /// It failed its trial.
    Trial(CallError),
    /// This content has failed in service; another content is tried again.
    Quarantined,
    /// There is no embedded plugin of this name.
    NotEmbedded,
    /// The machine does not let wasm run.
    Engine(String),
}

impl Compiler {
    /// Prepares what every plugin is linked to.
    ///
    /// # Errors
    /// [`LoadError::Engine`]: this machine cannot run wasm.
    pub fn new() -> Result<Self, LoadError> {
        Self::with(engine::cache())
    }

    /// One that keeps nothing for the next: for files that nobody will load again.
    ///
    /// # Errors
    /// As [`Compiler::new`].
    pub fn without_cache() -> Result<Self, LoadError> {
        Self::with(None)
    }

    fn with(cache: Option<Cache>) -> Result<Self, LoadError> {
        let make = || {
            let engines = Engines::start(cache)?;
            let mut linker = Linker::new(engines.engine());
            host_api::add_to_linker(&mut linker)?;
            wasi::add_to_linker(&mut linker)?;
            wasmtime_wasi_http::p2::add_only_http_to_linker_sync(&mut linker)?;

            let mut http_linker = Linker::new(engines.engine());
            host_api::add_to_linker(&mut http_linker)?;
            wasmtime_wasi::p2::add_to_linker_async(&mut http_linker)?;
            wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut http_linker)?;
            Ok(Self {
                engines,
                linker,
                http_linker,
            })
        };
        make().map_err(|error: wasmtime::Error| LoadError::Engine(format!("{error:#}")))
    }

    /// What a file would be as a plugin. Blocks as compiling does.
    ///
    /// # Errors
    /// Any of [`LoadError`] up to `NothingExported`.
    pub fn kinds_of(&self, bytes: &[u8]) -> Result<PluginKinds, LoadError> {
        self.compile(bytes).map(|code| code.kinds)
    }

    /// Compiles and checks. Blocks for as long as that takes.
    ///
    /// # Errors
    /// Any of [`LoadError`] up to `NothingExported`.
    pub(super) fn compile(&self, bytes: &[u8]) -> Result<Code, LoadError> {
        look(bytes)?;
        caught(|| self.parse_and_compile(bytes))
    }

    fn parse_and_compile(&self, bytes: &[u8]) -> Result<Code, LoadError> {
        let component = self.component(bytes)?;
        self.check_imports(&component)?;
        let kinds = self.kinds(&component)?;
        let has_calls = kinds.policy || kinds.filter || kinds.handler;
        let calls = has_calls
            .then(|| self.call_code(&component, kinds))
            .transpose()?;
        let http = kinds.http.then(|| self.http_code(&component)).transpose()?;
        Ok(Code {
            engines: self.engines.clone(),
            kinds,
            sha256: sha256(bytes),
            n_bytes: bytes.len(),
            calls,
            http,
        })
    }

    fn component(&self, bytes: &[u8]) -> Result<Component, LoadError> {
        let engine = self.engines.engine();
        // `from_binary` takes no precompiled code.
        let component = if bytes.starts_with(MODULE) {
            let encode = || {
                ComponentEncoder::default()
                    .validate(true)
                    .module(bytes)?
                    .encode()
            };
            // Its error belongs to a crate that is nobody's business here.
            let encoded = encode()
                .map_err(|error| LoadError::NotComponent(in_one_line(&format!("{error:#}"))))?;
            Component::from_binary(engine, &encoded)
        } else {
            Component::from_binary(engine, bytes)
        };
        component.map_err(|error| LoadError::Compile(in_one_line(&format!("{error:#}"))))
    }

    /// Whether all imports are offered.
    fn check_imports(&self, component: &Component) -> Result<(), LoadError> {
        let ty = component.component_type();
        let names: BTreeSet<_> = ty
            .imports(self.engines.engine())
            .map(|(name, _)| name)
            .collect();
        names.into_iter().try_for_each(check_import)
    }

    fn kinds(&self, component: &Component) -> Result<PluginKinds, LoadError> {
        let mut kinds = PluginKinds::default();
        let ty = component.component_type();
        for (export, _) in ty.exports(self.engines.engine()) {
            let Some(name) = Interface::parse(export) else {
                continue;
            };
            let kind = match (name.package, name.interface) {
                (CONTRACT, "policy") => &mut kinds.policy,
                (CONTRACT, "filter") => &mut kinds.filter,
                (CONTRACT, "handler") => &mut kinds.handler,
                (CONTRACT, "state") => &mut kinds.state,
                ("wasi:http", "incoming-handler" | "handler") => &mut kinds.http,
                _ => continue,
            };
            name.check_version(export)?;
            *kind = true;
        }
        let does_something = kinds.policy || kinds.filter || kinds.handler || kinds.http;
        if does_something {
            Ok(kinds)
        } else {
            Err(LoadError::NothingExported)
        }
    }

    fn call_code(&self, component: &Component, kinds: PluginKinds) -> Result<CallCode, LoadError> {
        let pre = self.linker.instantiate_pre(component).map_err(types)?;
        let indices = |pre: &InstancePre<HostState>| {
            let policy = kinds
                .policy
                .then(|| policy::GuestIndices::new(pre))
                .transpose()?;
            let filter = kinds
                .filter
                .then(|| filter::GuestIndices::new(pre))
                .transpose()?;
            let handler = kinds
                .handler
                .then(|| handler::GuestIndices::new(pre))
                .transpose()?;
            let state = kinds
                .state
                .then(|| state::GuestIndices::new(pre))
                .transpose()?;
            Ok((policy, filter, handler, state))
        };
        let (policy, filter, handler, state) = indices(&pre).map_err(types)?;
        Ok(CallCode {
            pre,
            policy,
            filter,
            handler,
            state,
        })
    }

    fn http_code(&self, component: &Component) -> Result<ProxyPre<HostState>, LoadError> {
        let pre = self.http_linker.instantiate_pre(component);
        pre.and_then(ProxyPre::new).map_err(types)
    }
}

/// Has parsers and a compiler that are not ours meet a stranger's bytes.
fn caught<T>(run: impl FnOnce() -> Result<T, LoadError>) -> Result<T, LoadError> {
    // Unwind safe: what they had begun is dropped, and what is shared with them is only read.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err(LoadError::Broken))
}

/// Whether a file may be a plugin, by what can be seen without a parser.
///
/// # Errors
/// [`LoadError::TooLarge`], [`LoadError::NotWasm`] and [`LoadError::CutShort`].
pub fn look(bytes: &[u8]) -> Result<(), LoadError> {
    let n_bytes = bytes.len();
    if n_bytes > FILE_MAX_BYTES {
        return Err(LoadError::TooLarge { n_bytes });
    }
    if !bytes.starts_with(MAGIC) && !MAGIC.starts_with(bytes) {
        return Err(LoadError::NotWasm);
    }
    match bytes.get(PREAMBLE_BYTES..).is_some_and(has_whole_sections) {
        true => Ok(()),
        false => Err(LoadError::CutShort { n_bytes }),
    }
}

/// Sections of modules and components alike: a byte that says what it is, the length of the rest in
/// LEB128, the rest.
fn has_whole_sections(mut bytes: &[u8]) -> bool {
    while let Some((_id, rest)) = bytes.split_first() {
        let (mut length, mut shift, mut rest) = (0_u64, 0, rest);
        loop {
            let Some((&byte, behind)) = rest.split_first() else {
                return false;
            };
            rest = behind;
            length |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            // A number of more than five bytes is for the parser to complain about.
            if byte & 0x80 == 0 || shift > 28 {
                break;
            }
        }
        let Some(behind) = usize::try_from(length)
            .ok()
            .and_then(|length| rest.get(length..))
        else {
            return false;
        };
        bytes = behind;
    }
    true
}

/// Names the content of a file.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn types(error: wasmtime::Error) -> LoadError {
    LoadError::Types(in_one_line(&format!("{error:#}")))
}

fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn check_import(import: &str) -> Result<(), LoadError> {
    let unknown = || LoadError::UnknownImport(import.to_owned());
    let name = Interface::parse(import).ok_or_else(unknown)?;
    let is_offered = match name.package.split_once(':') {
        _ if name.package == CONTRACT => OFFERED.contains(&name.interface),
        Some(("wasi", package)) => OFFERED_WASI.contains(&package),
        _ => false,
    };
    if !is_offered {
        return Err(unknown());
    }
    name.check_version(import)
}

/// `pointsman:plugin/policy@0.1.0`, taken apart.
struct Interface<'a> {
    package: &'a str,
    interface: &'a str,
    version: &'a str,
}

impl<'a> Interface<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (package, rest) = name.split_once('/')?;
        let (interface, version) = rest.split_once('@').unwrap_or((rest, ""));
        Some(Self {
            package,
            interface,
            version,
        })
    }

    fn check_version(&self, name: &str) -> Result<(), LoadError> {
        let offered = if self.package == CONTRACT {
            CONTRACT_VERSION
        } else {
            WASI_VERSION
        };
        let patch = self
            .version
            .strip_prefix(offered)
            .and_then(|rest| rest.strip_prefix('.'));
        if patch.is_some_and(|patch| patch.bytes().all(|c| c.is_ascii_digit())) {
            return Ok(());
        }
        let interface = name.to_owned();
        Err(LoadError::Version { interface, offered })
    }
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiler").finish_non_exhaustive()
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Code")
            .field("kinds", &self.kinds)
            .finish_non_exhaustive()
    }
}

impl PluginKinds {
    /// Those that hold.
    pub fn names(&self) -> Vec<&'static str> {
        let all = [
            (self.policy, "policy"),
            (self.filter, "filter"),
            (self.handler, "handler"),
            (self.http, "http"),
            (self.state, "state"),
        ];
        let names = all.into_iter();
        names
            .filter_map(|(is_exported, name)| is_exported.then_some(name))
            .collect()
    }
}

impl fmt::Display for PluginKinds {
    /// `policy + state`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(" + "))
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(cause) => write!(f, "the file cannot be read: {cause}"),
            Self::TooLarge { n_bytes } => {
                write!(f, "the file has {n_bytes} bytes, at most {FILE_MAX_BYTES} are loaded")
            }
            Self::NotWasm => f.write_str("the file is not WebAssembly"),
            Self::CutShort { n_bytes } => {
                write!(f, "the file ends early: it is cut short after {n_bytes} bytes")
            }
            Self::Broken => f.write_str("the file is not a WebAssembly component: it is broken, the parser gives up on it"),
            Self::Apart(reason) => f.write_str(reason),
            Self::NotComponent(cause) => {
                write!(f, "the core module cannot be made a component (is it built with the sdk or wit-bindgen?): {cause}")
            }
            Self::CompileBounds(what) => write!(f, "compiling it {what}"),
            Self::Compile(cause) => write!(f, "the file does not compile: {cause}"),
            Self::UnknownImport(import) => write!(
                f,
                "it imports `{import}`, which is not offered; offered are {CONTRACT}/{{{}}}@{CONTRACT_VERSION} and wasi:{{{}}}@{WASI_VERSION}",
                OFFERED.join(","),
                OFFERED_WASI.join(",")
            ),
            Self::Version { interface, offered } => {
                write!(f, "it is built for `{interface}`, this host understands version {offered}")
            }
            Self::Types(cause) => write!(f, "it does not keep to the contract: {cause}"),
            Self::NothingExported => write!(
                f,
                "it exports none of {CONTRACT}/policy, {CONTRACT}/filter, {CONTRACT}/handler and wasi:http/incoming-handler"
            ),
            Self::NotKind { wanted, kinds } => write!(f, "it is used as {wanted} and exports {kinds}"),
            Self::Trial(error) => write!(f, "it failed its trial: {error}"),
            Self::Quarantined => f.write_str("this content failed three times within a minute; it is not loaded again until it changes"),
            Self::NotEmbedded => f.write_str("there is no such plugin: neither a file nor embedded"),
            Self::Engine(cause) => write!(f, "plugins cannot run on this machine: {cause}"),
        }
    }
}

/// Each says its cause itself.
impl std::error::Error for LoadError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let error = guests::load(&wat::parse_str(text).unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn an_unknown_import_is_named() {
        check(
            r#"(component (import "acme:db/sql@1.0.0" (instance)))"#,
            "it imports `acme:db/sql@1.0.0`",
        );
        check(
            r#"(component (import "pointsman:plugin/teleport@0.1.0" (instance)))"#,
            "pointsman:plugin/{clock,log",
        );
        check(
            r#"(component (import "wasi:nn/graph@0.2.0" (instance)))"#,
            "`wasi:nn/graph@0.2.0`",
        );
        check(r#"(component (import "run" (func)))"#, "`run`");
    }

    #[test]
    fn another_version_of_the_contract_is_named_with_ours() {
        let export = |name| format!(r#"(component (instance $i) (export "{name}" (instance $i)))"#);
        check(
            &export("pointsman:plugin/policy@0.2.0"),
            "`pointsman:plugin/policy@0.2.0`, this host understands version 0.1",
        );
        check(
            &export("pointsman:plugin/policy@0.11.0"),
            "understands version 0.1",
        );
        check(
            &export("wasi:http/handler@0.3.0"),
            "`wasi:http/handler@0.3.0`, this host understands version 0.2",
        );
        check(
            r#"(component (import "wasi:cli/stdout@0.3.0" (instance)))"#,
            "understands version 0.2",
        );
    }

    #[test]
    fn what_is_no_plugin_is_refused() {
        check("(component)", "exports none");
        check("(module)", "exports none");
        check(
            r#"(module (import "env" "f" (func)))"#,
            "cannot be made a component",
        );
        check(
            r#"(component (instance $i) (export "pointsman:plugin/policy@0.1.0" (instance $i)))"#,
            "configure",
        );
        assert_eq!(
            guests::load(b"hello, world").unwrap_err(),
            LoadError::NotWasm
        );
        assert_eq!(
            guests::load(b"\x7fELF\x02\x01\x01\0").unwrap_err(),
            LoadError::NotWasm
        );
        assert!(matches!(
            guests::load(b"\0asm\x0d\0\x01\0\xff\x00"),
            Err(LoadError::Compile(_))
        ));
        assert!(matches!(
            guests::load(&vec![0; FILE_MAX_BYTES + 1]),
            Err(LoadError::TooLarge { .. })
        ));
    }

    /// A copy that was interrupted, or a disk that was full.
    #[test]
    fn a_file_that_is_cut_anywhere_is_said_to_end_early() {
        for bytes in [guests::policy(""), wat::parse_str("(component)").unwrap()] {
            let compiler = Compiler::without_cache().unwrap();
            for n_bytes in 0..bytes.len() {
                let cut = &bytes[..n_bytes];
                let is_cut = look(cut) == Err(LoadError::CutShort { n_bytes });
                // At the end of a section all that is there is whole.
                assert!(is_cut || compiler.compile(cut).is_err(), "{n_bytes}");
            }
        }
        for n_bytes in 0..PREAMBLE_BYTES {
            assert_eq!(
                look(&MODULE[..n_bytes]),
                Err(LoadError::CutShort { n_bytes })
            );
        }
        let long = b"\0asm\x01\0\0\0\x0a\xff\xff\xff\xff\x0f\0";
        assert_eq!(look(long), Err(LoadError::CutShort { n_bytes: 15 }));
    }

    #[test]
    fn a_panic_of_a_parser_is_an_error() {
        let error = caught::<()>(|| panic!("by a parser, which is caught"));
        assert_eq!(error, Err(LoadError::Broken));
        // What `look` keeps from them: wit-component panics over some of it.
        let bytes = guests::policy("");
        let compiler = Compiler::without_cache().unwrap();
        for n_bytes in 0..bytes.len() {
            let cut = &bytes[..n_bytes];
            let _ = caught(|| compiler.parse_and_compile(cut)).unwrap_err();
        }
    }

    /// Plugins as strangers might change them: whatever they are then, they are loaded or refused.
    #[test]
    fn shipped_plugins_with_any_bytes_changed_are_loaded_or_refused() {
        let compiler = Compiler::without_cache().unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        for name in ["round_robin", "echo", "hello"] {
            let bytes = guests::shipped_bytes(name);
            let mut n_refused = 0;
            for _ in 0..60 {
                let mut changed = bytes.clone();
                for _ in 0..random.usize(1..5) {
                    let at = random.usize(..changed.len());
                    match random.u8(..3) {
                        0 => changed[at] = random.u8(..),
                        1 => drop(changed.drain(at..(at + 8).min(bytes.len()).min(changed.len()))),
                        _ => changed.insert(at, random.u8(..)),
                    }
                }
                n_refused += u32::from(compiler.compile(&changed).is_err());
            }
            assert!(n_refused > 30, "{name}: {n_refused}");
        }
    }

    #[test]
    fn a_plugin_says_what_it_is() {
        let generation = guests::load(&guests::policy("")).unwrap();
        assert_eq!(generation.kinds().to_string(), "policy");
        let error = generation.trial_http().unwrap_err().to_string();
        assert_eq!(error, "it is used as http and exports policy");
        let generation = guests::load(&guests::handler("")).unwrap();
        assert_eq!(generation.kinds().to_string(), "handler + state");
    }
}
