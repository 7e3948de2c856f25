//! WASI 0.2 with nothing granted: no files, no sockets, no environment. What a guest prints goes to
//! the log.
//!
//! Synchronous guests get their own `wasi:io`: wasmtime's enters the runtime to wait, which panics
//! inside of one, and a worker must not wait at all. Here nothing waits; a call that would, traps.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncWrite, sink};
use tracing::Level;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream, WasiCliView};
use wasmtime_wasi::clocks::WasiClocksView;
use wasmtime_wasi::filesystem::WasiFilesystemView;
use wasmtime_wasi::p2::bindings::io::{error as io_error, poll as io_poll, streams as io_streams};
use wasmtime_wasi::p2::bindings::sockets::{self, udp_create_socket as socket_kinds};
use wasmtime_wasi::p2::bindings::sync::filesystem::types as files;
use wasmtime_wasi::p2::bindings::sync::io::{poll, streams};
use wasmtime_wasi::p2::bindings::sync::sockets::{tcp, udp, udp_create_socket};
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, random};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, OutputStream, Pollable, SocketError, StreamError,
    StreamResult, UdpSocket,
};
use wasmtime_wasi::runtime::with_ambient_tokio_runtime;
use wasmtime_wasi::sockets::WasiSocketsView;
use wasmtime_wasi::{WasiCtx, async_trait};

use super::log_lines::{PluginLog, Printer};

/// Said to the author of a plugin that sleeps or polls.
const WOULD_WAIT: &str =
    "the plugin would wait, and a call may not: it has to return what it knows";

/// Random bytes in one call; more traps.
const RANDOM_MAX_BYTES: u64 = 1 << 20;

/// Streams, pollables and the like that one instance may hold which is called synchronously.
const RESOURCES_MAX: usize = 256;

/// The state of one guest's WASI.
pub(super) fn context(log: &Arc<PluginLog>) -> WasiCtx {
    WasiCtx::builder()
        .stdout(Console::new(log, Level::INFO))
        .stderr(Console::new(log, Level::WARN))
        .max_random_size(RANDOM_MAX_BYTES)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .build()
}

pub(super) fn table() -> ResourceTable {
    let mut table = ResourceTable::new();
    table.set_max_capacity(RESOURCES_MAX);
    table
}

/// Everything for synchronous guests. No descriptor and no socket can ever be made, so what
/// wasmtime's versions of `wasi:filesystem/types`, `tcp` and `udp` wait for is out of reach.
pub(super) fn add_to_linker<T: wasmtime_wasi::WasiView>(
    linker: &mut Linker<T>,
) -> wasmtime::Result<()> {
    use wasmtime_wasi::cli::WasiCli;
    use wasmtime_wasi::clocks::WasiClocks;
    use wasmtime_wasi::filesystem::WasiFilesystem;
    use wasmtime_wasi::random::WasiRandom;
    use wasmtime_wasi::sockets::WasiSockets;

    let l = linker;
    io_error::add_to_linker::<T, NoWait>(l, no_wait)?;
    poll::add_to_linker::<T, NoWait>(l, no_wait)?;
    streams::add_to_linker::<T, NoWait>(l, no_wait)?;

    clocks::wall_clock::add_to_linker::<T, WasiClocks>(l, T::clocks)?;
    clocks::monotonic_clock::add_to_linker::<T, WasiClocks>(l, T::clocks)?;
    random::random::add_to_linker::<T, WasiRandom>(l, |t| t.ctx().ctx.random())?;
    random::insecure::add_to_linker::<T, WasiRandom>(l, |t| t.ctx().ctx.random())?;
    random::insecure_seed::add_to_linker::<T, WasiRandom>(l, |t| t.ctx().ctx.random())?;

    cli::exit::add_to_linker::<T, WasiCli>(l, T::cli)?;
    cli::environment::add_to_linker::<T, WasiCli>(l, T::cli)?;
    cli::stdin::add_to_linker::<T, WasiCli>(l, T::cli)?;
    cli::stdout::add_to_linker::<T, WasiCli>(l, T::cli)?;
    cli::stderr::add_to_linker::<T, WasiCli>(l, T::cli)?;
    cli::terminal_input::add_to_linker::<T, WasiCli>(l, T::cli)?;
    cli::terminal_output::add_to_linker::<T, WasiCli>(l, T::cli)?;
    cli::terminal_stdin::add_to_linker::<T, WasiCli>(l, T::cli)?;
    cli::terminal_stdout::add_to_linker::<T, WasiCli>(l, T::cli)?;
    cli::terminal_stderr::add_to_linker::<T, WasiCli>(l, T::cli)?;

    filesystem::preopens::add_to_linker::<T, WasiFilesystem>(l, T::filesystem)?;
    files::add_to_linker::<T, WasiFilesystem>(l, T::filesystem)?;

    let options = sockets::network::LinkOptions::default();
    sockets::network::add_to_linker::<T, WasiSockets>(l, &options, T::sockets)?;
    sockets::instance_network::add_to_linker::<T, WasiSockets>(l, T::sockets)?;
    sockets::ip_name_lookup::add_to_linker::<T, WasiSockets>(l, T::sockets)?;
    sockets::tcp_create_socket::add_to_linker::<T, WasiSockets>(l, T::sockets)?;
    udp_create_socket::add_to_linker::<T, NoWait>(l, no_wait)?;
    tcp::add_to_linker::<T, WasiSockets>(l, T::sockets)?;
    udp::add_to_linker::<T, WasiSockets>(l, T::sockets)
}

/// `wasi:io` on a resource table, without waiting.
#[derive(Debug)]
struct NoWait;

struct NoWaitIo<'a>(&'a mut ResourceTable);

impl HasData for NoWait {
    type Data<'a> = NoWaitIo<'a>;
}

fn no_wait<T: wasmtime_wasi::WasiView>(state: &mut T) -> NoWaitIo<'_> {
    NoWaitIo(state.ctx().table)
}

/// What `future` has to say at once. It is asked again because a deadline that is over yields once;
/// outside of the task's budget, whose end would look like waiting.
fn at_once<F: Future>(future: F) -> Option<F::Output> {
    with_ambient_tokio_runtime(|| {
        let mut future = pin!(tokio::task::unconstrained(future));
        let mut context = Context::from_waker(Waker::noop());
        (0..3).find_map(|_| match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
}

fn at_once_or_trap<T>(future: impl Future<Output = wasmtime::Result<T>>) -> wasmtime::Result<T> {
    at_once(future).unwrap_or_else(|| Err(wasmtime::Error::msg(WOULD_WAIT)))
}

fn stream_at_once<T>(future: impl Future<Output = StreamResult<T>>) -> StreamResult<T> {
    at_once(future).unwrap_or_else(|| Err(StreamError::trap(WOULD_WAIT)))
}

impl io_error::Host for NoWaitIo<'_> {}

impl io_error::HostError for NoWaitIo<'_> {
    fn to_debug_string(&mut self, error: Resource<io_error::Error>) -> wasmtime::Result<String> {
        io_error::HostError::to_debug_string(self.0, error)
    }

    fn drop(&mut self, error: Resource<io_error::Error>) -> wasmtime::Result<()> {
        io_error::HostError::drop(self.0, error)
    }
}

impl poll::Host for NoWaitIo<'_> {
    fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        at_once_or_trap(io_poll::Host::poll(self.0, pollables))
    }
}

impl poll::HostPollable for NoWaitIo<'_> {
    fn ready(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
        at_once_or_trap(io_poll::HostPollable::ready(self.0, pollable))
    }

    fn block(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        at_once_or_trap(io_poll::HostPollable::block(self.0, pollable))
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        io_poll::HostPollable::drop(self.0, pollable)
    }
}

impl streams::Host for NoWaitIo<'_> {
    fn convert_stream_error(
        &mut self,
        error: StreamError,
    ) -> wasmtime::Result<streams::StreamError> {
        Ok(io_streams::Host::convert_stream_error(self.0, error)?.into())
    }
}

impl streams::HostInputStream for NoWaitIo<'_> {
    fn read(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<Vec<u8>> {
        io_streams::HostInputStream::read(self.0, stream, len)
    }

    fn blocking_read(
        &mut self,
        stream: Resource<DynInputStream>,
        len: u64,
    ) -> StreamResult<Vec<u8>> {
        stream_at_once(io_streams::HostInputStream::blocking_read(
            self.0, stream, len,
        ))
    }

    fn skip(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<u64> {
        io_streams::HostInputStream::skip(self.0, stream, len)
    }

    fn blocking_skip(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<u64> {
        stream_at_once(io_streams::HostInputStream::blocking_skip(
            self.0, stream, len,
        ))
    }

    fn subscribe(
        &mut self,
        stream: Resource<DynInputStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        io_streams::HostInputStream::subscribe(self.0, stream)
    }

    fn drop(&mut self, stream: Resource<DynInputStream>) -> wasmtime::Result<()> {
        at_once_or_trap(io_streams::HostInputStream::drop(self.0, stream))
    }
}

impl streams::HostOutputStream for NoWaitIo<'_> {
    fn check_write(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<u64> {
        io_streams::HostOutputStream::check_write(self.0, stream)
    }

    fn write(&mut self, stream: Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        io_streams::HostOutputStream::write(self.0, stream, bytes)
    }

    fn blocking_write_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        bytes: Vec<u8>,
    ) -> StreamResult<()> {
        stream_at_once(io_streams::HostOutputStream::blocking_write_and_flush(
            self.0, stream, bytes,
        ))
    }

    fn flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        io_streams::HostOutputStream::flush(self.0, stream)
    }

    fn blocking_flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        stream_at_once(io_streams::HostOutputStream::blocking_flush(self.0, stream))
    }

    fn subscribe(
        &mut self,
        stream: Resource<DynOutputStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        io_streams::HostOutputStream::subscribe(self.0, stream)
    }

    fn write_zeroes(&mut self, stream: Resource<DynOutputStream>, len: u64) -> StreamResult<()> {
        io_streams::HostOutputStream::write_zeroes(self.0, stream, len)
    }

    fn blocking_write_zeroes_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        len: u64,
    ) -> StreamResult<()> {
        stream_at_once(
            io_streams::HostOutputStream::blocking_write_zeroes_and_flush(self.0, stream, len),
        )
    }

    fn splice(
        &mut self,
        to: Resource<DynOutputStream>,
        from: Resource<DynInputStream>,
        len: u64,
    ) -> StreamResult<u64> {
        io_streams::HostOutputStream::splice(self.0, to, from, len)
    }

    fn blocking_splice(
        &mut self,
        to: Resource<DynOutputStream>,
        from: Resource<DynInputStream>,
        len: u64,
    ) -> StreamResult<u64> {
        stream_at_once(io_streams::HostOutputStream::blocking_splice(
            self.0, to, from, len,
        ))
    }

    fn drop(&mut self, stream: Resource<DynOutputStream>) -> wasmtime::Result<()> {
        at_once_or_trap(io_streams::HostOutputStream::drop(self.0, stream))
    }
}

impl sockets::network::Host for NoWaitIo<'_> {
    fn network_error_code(
        &mut self,
        _error: Resource<io_error::Error>,
    ) -> wasmtime::Result<Option<sockets::network::ErrorCode>> {
        Ok(None)
    }

    fn convert_error_code(
        &mut self,
        error: SocketError,
    ) -> wasmtime::Result<sockets::network::ErrorCode> {
        error.downcast()
    }
}

impl sockets::network::HostNetwork for NoWaitIo<'_> {
    fn drop(&mut self, network: Resource<sockets::network::Network>) -> wasmtime::Result<()> {
        self.0.delete(network)?;
        Ok(())
    }
}

impl udp_create_socket::Host for NoWaitIo<'_> {
    fn create_udp_socket(
        &mut self,
        _address_family: socket_kinds::IpAddressFamily,
    ) -> Result<Resource<UdpSocket>, SocketError> {
        Err(sockets::network::ErrorCode::AccessDenied.into())
    }
}

/// Standard output or error of one instance. Guests may open a stream for each write, so the line
/// begun is kept here.
#[derive(Debug, Clone)]
struct Console(Arc<Mutex<Printer>>);

impl Console {
    fn new(log: &Arc<PluginLog>, level: Level) -> Self {
        Self(Arc::new(Mutex::new(Printer::new(Arc::clone(log), level))))
    }
}

impl IsTerminal for Console {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Console {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    /// Asked for by WASI 0.1 and 0.3 only, which are not offered.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(sink())
    }
}

#[async_trait]
impl Pollable for Console {
    async fn ready(&mut self) {}
}

impl OutputStream for Console {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .print(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::HeaderMap;
    use pointsman_contract::policy::{ChoiceRequest, Decision};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;
    use crate::failure::CallError;
    use crate::guests;

    /// Calls `choose` of a guest inside of a runtime like a worker's.
    fn choose(imports: &str, world: &str, body: &str) -> Result<Decision, CallError> {
        let generation = guests::load(&guests::policy_that_imports(imports, world, body)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async {
            let mut policy = generation
                .policy(&serde_json::json!({}), &guests::host())
                .unwrap();
            policy.try_choose(&ChoiceRequest {
                sequence: 0,
                random: 0,
                now_ms: 0,
                client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
                host: "",
                path: "/",
                headers: &HeaderMap::new(),
                figures: &[],
            })
        })
    }

    /// Sleeps by a pollable for so many nanoseconds.
    fn sleep(ns: &str) -> Result<Decision, CallError> {
        choose(
            r#"(import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $subscribe (param i64) (result i32)))
               (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))"#,
            "import wasi:clocks/monotonic-clock@0.2.0; import wasi:io/poll@0.2.0;",
            &format!("(call $block (call $subscribe (i64.const {ns})))"),
        )
    }

    #[test]
    fn waiting_traps_and_says_so() {
        for ns in ["1000000", "1000000000000", "-1"] {
            let error = sleep(ns).unwrap_err();
            let CallError::Trap { cause, .. } = &error else {
                panic!("{error:?}")
            };
            assert!(cause.contains("may not"), "{cause}");
        }
    }

    #[test]
    fn a_deadline_that_is_over_is_ready() {
        assert_eq!(sleep("0"), Ok(Decision::Prefer(0)));
    }

    #[test]
    fn a_socket_is_denied_without_a_panic() {
        // The answer at 200 is an error of the code 1, access-denied.
        let opened = choose(
            r#"(import "wasi:sockets/udp-create-socket@0.2.0" "create-udp-socket" (func $open (param i32 i32)))"#,
            "import wasi:sockets/udp-create-socket@0.2.0;",
            "(call $open (i32.const 0) (i32.const 200))
             (if (i32.ne (i32.load8_u (i32.const 200)) (i32.const 1)) (then unreachable))
             (if (i32.ne (i32.load8_u (i32.const 204)) (i32.const 1)) (then unreachable))",
        );
        assert_eq!(opened, Ok(Decision::Prefer(0)));
    }

    #[test]
    fn what_a_guest_prints_goes_to_the_log() {
        let n_lines = Arc::new(AtomicUsize::new(0));
        let log = GuestLines(Arc::clone(&n_lines));
        let printed = tracing::subscriber::with_default(log, || {
            choose(
                r#"(import "wasi:cli/stdout@0.2.0" "get-stdout" (func $stdout (result i32)))
                   (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
                        (func $write (param i32 i32 i32 i32)))
                   (data (i32.const 300) "hello\nworld\n")"#,
                "import wasi:cli/stdout@0.2.0; import wasi:io/streams@0.2.0;",
                "(call $write (call $stdout) (i32.const 300) (i32.const 8) (i32.const 200))
                 (call $write (call $stdout) (i32.const 308) (i32.const 4) (i32.const 200))",
            )
        });
        assert_eq!(printed, Ok(Decision::Prefer(0)));
        assert_eq!(n_lines.load(Ordering::Relaxed), 2);
    }

    /// Counts the events of the target `plugin`.
    struct GuestLines(Arc<AtomicUsize>);

    impl Subscriber for GuestLines {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "plugin"
        }

        fn event(&self, _event: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn new_span(&self, _span: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _span: &Id, _values: &Record<'_>) {}
        fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
        fn enter(&self, _span: &Id) {}
        fn exit(&self, _span: &Id) {}
    }
}
