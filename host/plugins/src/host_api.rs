//! The imports of the contract, and the state that an instance keeps for them: what a guest may ask
//! of the host.
//!
//! Nothing here waits or fails for long; what is over a bound is refused by value.

use std::any::Any;
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fmt, mem};

use http::{Request, Response};
use pointsman_contract::session::SessionId;
use tracing::Level;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::random::random::Host as _;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::body::{HostOutgoingBody, StreamContext};
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use super::bindings::pointsman::plugin::{
    clock, log, metrics, random, sessions, store, topics, types,
};
use super::bindings::{close_reason, message};
use super::grace::Grace;
use super::kv::KeepError;
use super::limits::{CallWatch, HttpLimits, Limits, MemoryLimit, monotonic_ns};
use super::share::PluginShared;
use super::wasi;

/// Bytes of one `random.bytes`; more traps.
const RANDOM_MAX_BYTES: u32 = 65_536;

/// One set of HTTP headers, as it lies in the host's memory.
const FIELDS_MAX_BYTES: usize = 64 << 10;

/// What an HTTP handler may hold of what can be large: bodies, fields, requests.
const LARGE_RESOURCES_MAX: usize = 256;

/// What may be written to an HTTP body at a time, and so what is kept of it until it is sent.
const BODY_CHUNK_BYTES: usize = 256 << 10;

/// What the host keeps for one instance.
pub(super) struct HostState {
    pub(super) memory: MemoryLimit,
    pub(super) watch: CallWatch,
    share: Arc<PluginShared>,
    wasi: WasiCtx,
    wasi_http: WasiHttpCtx,
    table: ResourceTable,
    no_requests: NoRequests,
}

impl HostState {
    pub(super) fn new(share: Arc<PluginShared>, limits: &Limits, grace: Arc<Grace>) -> Self {
        let mut wasi_http = WasiHttpCtx::new();
        wasi_http.set_field_size_limit(FIELDS_MAX_BYTES);
        Self {
            memory: MemoryLimit::new(limits),
            watch: CallWatch::new(limits, grace),
            wasi: wasi::context(&share.log),
            wasi_http,
            table: wasi::table(),
            no_requests: NoRequests,
            share,
        }
    }

    /// It will answer a request. Pollables are small, and some runtimes let go of none.
    pub(super) fn answers_http(&mut self, limits: &HttpLimits) {
        self.table.set_max_capacity(limits.max_resources);
    }

    /// What a guest of `wasi:http` holds of what can be large is bounded more tightly than its pollables.
    ///
    /// # Errors
    /// It holds too much.
    pub(super) fn check_resources(&mut self) -> wasmtime::Result<()> {
        let is_large = |resource: &&mut (dyn Any + Send)| !resource.is::<DynPollable>();
        let n_large = self.table.iter_mut().filter(is_large).count();
        if n_large <= LARGE_RESOURCES_MAX {
            return Ok(());
        }
        let text = format!(
            "it holds {n_large} bodies, fields and the like, at most {LARGE_RESOURCES_MAX} are allowed"
        );
        Err(wasmtime::Error::msg(text))
    }

    /// The guest has returned: what it began to write and did not finish breaks off, and does not look like
    /// a whole body.
    pub(super) fn abort_bodies(&mut self) {
        for resource in self.table.iter_mut() {
            if let Some(body) = resource.downcast_mut::<HostOutgoingBody>() {
                let (nothing, _) = HostOutgoingBody::new(StreamContext::Response, None, 1, 1);
                mem::replace(body, nothing).abort();
            }
        }
    }
}

impl fmt::Debug for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostState")
            .field("plugin", &self.share.plugin)
            .finish_non_exhaustive()
    }
}

/// The contract's imports, for any kind of plugin.
pub(super) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    log::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    clock::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    random::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    metrics::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    store::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    types::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    topics::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    sessions::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

impl types::Host for HostState {}

impl log::Host for HostState {
    fn log(&mut self, level: log::Level, line: String) {
        let level = match level {
            log::Level::Trace => Level::TRACE,
            log::Level::Debug => Level::DEBUG,
            log::Level::Info => Level::INFO,
            log::Level::Warn => Level::WARN,
            log::Level::Error => Level::ERROR,
        };
        self.share.log.write(level, &line);
    }
}

impl clock::Host for HostState {
    fn now_ms(&mut self) -> u64 {
        now_ms()
    }

    fn monotonic_ns(&mut self) -> u64 {
        monotonic_ns()
    }
}

impl random::Host for HostState {
    fn number(&mut self) -> u64 {
        // This generator cannot fail.
        self.wasi.random().get_random_u64().unwrap_or_default()
    }

    fn bytes(&mut self, n: u32) -> wasmtime::Result<Vec<u8>> {
        if n > RANDOM_MAX_BYTES {
            let text =
                format!("{n} random bytes were asked for, at most {RANDOM_MAX_BYTES} are given");
            return Err(wasmtime::Error::msg(text));
        }
        self.wasi.random().get_random_bytes(n.into())
    }
}

impl metrics::Host for HostState {
    fn count(&mut self, name: String, by: u64) {
        self.share.count(name, by);
    }

    fn gauge(&mut self, name: String, value: f64) {
        self.share.gauge(name, value);
    }
}

impl store::Host for HostState {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        let mut store = self
            .share
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        store.get(&key, now_ms())
    }

    fn set(
        &mut self,
        key: String,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
    ) -> Result<(), store::StoreError> {
        let mut store = self
            .share
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        store.set(key, value, ttl_ms, now_ms()).map_err(store_error)
    }

    fn compare_and_set(
        &mut self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
    ) -> Result<bool, store::StoreError> {
        let mut store = self
            .share
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let set = store.compare_and_set(key, expected.as_deref(), value, ttl_ms, now_ms());
        set.map_err(store_error)
    }

    fn delete(&mut self, key: String) {
        let mut store = self
            .share
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        store.delete(&key);
    }

    fn increment(
        &mut self,
        key: String,
        by: i64,
        ttl_ms: Option<u64>,
    ) -> Result<i64, store::StoreError> {
        let mut store = self
            .share
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        store
            .increment(key, by, ttl_ms, now_ms())
            .map_err(store_error)
    }
}

fn store_error(error: KeepError) -> store::StoreError {
    match error {
        KeepError::Full => store::StoreError::Full,
        KeepError::TooLarge => store::StoreError::TooLarge,
        KeepError::NotANumber => store::StoreError::NotANumber,
    }
}

impl topics::Host for HostState {
    fn subscribe(&mut self, session: u64, topic: String) -> bool {
        self.share.topics.subscribe(SessionId(session), topic)
    }

    fn unsubscribe(&mut self, session: u64, topic: String) {
        self.share.topics.unsubscribe(SessionId(session), &topic);
    }

    fn publish(&mut self, topic: String, published: topics::Message) -> u32 {
        self.share.topics.publish(&topic, &message(published))
    }
}

impl sessions::Host for HostState {
    fn send(&mut self, session: u64, sent: sessions::Message) -> bool {
        self.share.topics.send(SessionId(session), message(sent))
    }

    fn close(&mut self, session: u64, ending: sessions::Ending) -> bool {
        self.share
            .topics
            .close(SessionId(session), close_reason(ending))
    }
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (ctx, table) = (&mut self.wasi, &mut self.table);
        WasiCtxView { ctx, table }
    }
}

impl WasiHttpView for HostState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.no_requests,
            table: &mut self.table,
            ctx: &mut self.wasi_http,
        }
    }
}

/// Denies what a guest would ask of other servers.
#[derive(Debug)]
struct NoRequests;

type Ending = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for NoRequests {
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }

    fn send_request(
        &mut self,
        _request: Request<WasiBody>,
        _options: Option<RequestOptions>,
        _ending: Ending,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Ending), Error>> + Send> {
        Box::new(async { Err(Error::HttpRequestDenied) })
    }
}
