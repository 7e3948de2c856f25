//! The promise: a log may fail, the process may not. Neither log is waited for, whatever becomes of the file, the
//! disk or the reader; what is lost is counted; and log files can be renamed while lines are written.

use std::fs::{self, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, ensure};
use pointsman_tests::{
    Backend, Client, Edit, Metrics, NOBODY, PATIENCE, app, binary, eventually, get, in_time,
    pointsman,
};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Handshakes of which every other one is tried at a dead backend first.
const N_HANDSHAKES: usize = 40;

/// A balancer whose log nobody reads, so that it has to be known beforehand where it listens.
struct Site {
    child: Child,
    folder: TempDir,
    address: SocketAddr,
    admin: SocketAddr,
    /// The configuration behind its first lines.
    rest: String,
}

/// What becomes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Its reader has gone: EPIPE.
    Gone,
    /// The disk is full: ENOSPC.
    Full,
    /// A reader is there and does not read.
    Stuck,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    Error,
    Access,
}

impl Log {
    fn counter(self) -> &'static str {
        match self {
            Self::Error => "pointsman_error_log_dropped_total",
            Self::Access => "pointsman_access_log_dropped_total",
        }
    }
}

impl Site {
    /// With these lines at the top of the configuration, and these streams.
    async fn start(
        command: &mut Command,
        top: &str,
        backends: &[SocketAddr],
        streams: [Stdio; 2],
    ) -> Result<Self> {
        let folder = TempDir::new()?;
        // An address of this test alone: nobody else has its ports.
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let host = [
            127,
            64 | high & 63,
            low,
            NEXT.fetch_add(1, Ordering::Relaxed),
        ];
        let (address, admin) = (
            SocketAddr::from((host, 18080)),
            SocketAddr::from((host, 18081)),
        );
        let rest = format!(
            "[admin]\nlisten = \"{admin}\"\n[[listener]]\nbind = \"{address}\"\n{}",
            app("round_robin", backends)
        );
        let file = folder.path().join("pointsman.toml");
        fs::write(&file, format!("workers = 2\n{top}\n{rest}"))?;
        let [stdout, stderr] = streams;
        let child = command
            .args(["run", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()?;
        let mut site = Self {
            child,
            folder,
            address,
            admin,
            rest,
        };
        eventually("/readyz answers 200", PATIENCE * 3, async || {
            let ready = get(admin, "/readyz").await;
            ready.is_ok_and(|answer| answer.status == 200)
                || site.child.try_wait().is_ok_and(|ended| ended.is_some())
        })
        .await?;
        ensure!(site.child.try_wait()?.is_none(), "it ended at its start");
        Ok(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn reload(&self, top: &str) -> Result<()> {
        let text = format!("workers = 2\n{top}\n{}", self.rest);
        fs::write(self.path("pointsman.toml"), text)?;
        self.signal(Signal::HUP)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(kill_process(pid.context("it runs")?, signal)?)
    }

    async fn open(&self, request_id: &str) -> Result<Client> {
        let url = format!("ws://{}/websocket", self.address);
        Client::connect_with(&url, &[("X-Request-Id", request_id)]).await
    }

    async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let metrics = Metrics::parse(&get(self.admin, "/metrics").await?.text())?;
        ensure!(metrics.has(name, labels), "no {name}");
        Ok(metrics.sum(name, labels))
    }

    async fn counts(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        eventually(format!("{name} counts"), PATIENCE, async || {
            self.metric(name, labels).await.is_ok_and(|n| n > 0.0)
        })
        .await?;
        Ok(())
    }

    /// Drains; every one of these hears of it, and the process ends well.
    async fn drain(mut self, clients: Vec<Client>) -> Result<TempDir> {
        self.signal(Signal::TERM)?;
        for mut client in clients {
            assert_eq!(client.close_code().await?, Some(1001));
        }
        let ended = in_time("the end", self.child.wait()).await?;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        Ok(self.folder)
    }
}

/// A stream that fails when it is told to, or from the start.
struct Stream {
    fault: Fault,
    pipe: Option<(PipeReader, PipeWriter)>,
}

impl Stream {
    fn open(fault: Fault) -> Result<(Self, Stdio)> {
        if fault == Fault::Full {
            let full = OpenOptions::new().write(true).open("/dev/full")?;
            return Ok((Self { fault, pipe: None }, full.into()));
        }
        let (reader, writer) = io::pipe()?;
        let theirs = Stdio::from(OwnedFd::from(writer.try_clone()?));
        let pipe = Some((reader, writer));
        Ok((Self { fault, pipe }, theirs))
    }

    fn fail(&mut self) -> Result<()> {
        match (self.fault, &self.pipe) {
            (Fault::Gone, _) => self.pipe = None,
            (Fault::Stuck, Some((_, writer))) => {
                // By flags of its own: the balancer's end blocks as ever.
                let mut filling = OpenOptions::new()
                    .write(true)
                    .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                    .open(format!("/proc/self/fd/{}", writer.as_raw_fd()))?;
                for size in [4096, 1] {
                    while filling.write(&vec![b'.'; size]).is_ok() {}
                }
            }
            (Fault::Full | Fault::Stuck, _) => {}
        }
        Ok(())
    }
}

/// Everything that the process has to go on doing when one of its logs fails.
async fn goes_on_without(log: Log, fault: Fault) -> Result<()> {
    let top = "drain_timeout_secs = 2";
    let backend = Backend::start().await?;
    let (mut stream, theirs) = Stream::open(fault)?;
    let streams = match log {
        Log::Error => [Stdio::null(), theirs],
        Log::Access => [theirs, Stdio::null()],
    };
    let backends = [backend.address(), NOBODY];
    let site = Site::start(&mut Command::new(binary()), top, &backends, streams).await?;
    let mut clients = Vec::new();
    for i in 0..4 {
        clients.push(site.open(&format!("before-{i}")).await?);
    }
    stream.fail()?;

    for i in 0..N_HANDSHAKES {
        let client = site.open(&format!("after-{i}")).await;
        clients.push(client.with_context(|| format!("handshake {i}"))?);
    }
    site.reload("drain_timeout_secs = 'soon'")?;
    let reloads = "pointsman_reloads_total";
    site.counts(reloads, &[("kind", "config"), ("result", "failed")])
        .await?;
    site.reload("drain_timeout_secs = 3")?;
    site.counts(reloads, &[("kind", "config"), ("result", "ok")])
        .await?;
    for client in &mut clients {
        client.echo_text("as if nothing had happened").await?;
    }
    match fault {
        Fault::Gone | Fault::Full => site.counts(log.counter(), &[]).await?,
        // What waits may still be read.
        Fault::Stuck => assert_eq!(site.metric(log.counter(), &[]).await?, 0.0),
    }
    site.drain(clients).await?;
    Ok(())
}

#[tokio::test]
async fn it_goes_on_when_the_reader_of_stderr_has_gone() -> Result<()> {
    goes_on_without(Log::Error, Fault::Gone).await
}

#[tokio::test]
async fn it_goes_on_when_stderr_is_full() -> Result<()> {
    goes_on_without(Log::Error, Fault::Full).await
}

#[tokio::test]
async fn it_goes_on_when_nobody_reads_stderr() -> Result<()> {
    goes_on_without(Log::Error, Fault::Stuck).await
}

#[tokio::test]
async fn it_goes_on_when_the_reader_of_the_access_log_has_gone() -> Result<()> {
    goes_on_without(Log::Access, Fault::Gone).await
}

#[tokio::test]
async fn it_goes_on_when_the_access_log_is_full() -> Result<()> {
    goes_on_without(Log::Access, Fault::Full).await
}

#[tokio::test]
async fn it_goes_on_when_nobody_reads_the_access_log() -> Result<()> {
    goes_on_without(Log::Access, Fault::Stuck).await
}

#[tokio::test]
async fn it_goes_on_without_standard_streams() -> Result<()> {
    let backend = Backend::start().await?;
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"exec "$@" <&- >&- 2>&-"#, "sh"]);
    shell.arg(binary());
    let streams = [Stdio::null(), Stdio::null()];
    let top = "drain_timeout_secs = 2";
    let site = Site::start(&mut shell, top, &[backend.address(), NOBODY], streams).await?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(site.open("x").await?);
    }
    site.reload("workers = 3")?;
    let failed = [("kind", "config"), ("result", "failed")];
    site.counts("pointsman_reloads_total", &failed).await?;
    for client in &mut clients {
        client.echo_text("nobody will know").await?;
    }
    site.drain(clients).await?;
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_at_the_start_is_an_exit_code_even_if_nobody_reads_it() -> Result<()> {
    for fault in [Fault::Gone, Fault::Full, Fault::Stuck] {
        let (mut stream, stderr) = Stream::open(fault)?;
        stream.fail()?;
        let mut child = Command::new(binary())
            .args(["run", "--config", "/nonexistent"])
            .stdin(Stdio::null())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()?;
        let ended = in_time("the end", child.wait()).await?;
        assert_eq!(ended.code(), Some(1), "{fault:?}");
    }
    Ok(())
}

#[tokio::test]
async fn why_it_did_not_start_is_on_stderr_and_in_the_log_file() -> Result<()> {
    let backend = Backend::start().await?;
    let taken = backend.address();
    let folder = TempDir::new()?;
    let file = folder.path().join("pointsman.toml");
    let text = format!(
        "error_log.file = \"error.log\"\n[[listener]]\nbind = \"{taken}\"\n[[route]]\npath = \"/\"\nhandler = \"echo\"\n"
    );
    fs::write(&file, text)?;
    let ended = pointsman(&["run", "--config", file.to_str().context("UTF-8")?]).await?;
    assert_eq!(ended.code, Some(1));
    let why = format!("cannot listen on {taken}");
    ensure!(ended.stderr.contains(&why), "{ended:?}");
    let logged = fs::read_to_string(folder.path().join("error.log"))?;
    ensure!(logged.contains(&why), "{logged}");
    Ok(())
}

#[tokio::test]
async fn a_command_whose_reader_has_seen_enough_ends_quietly() -> Result<()> {
    let backend = Backend::start().await?;
    let streams = [Stdio::null(), Stdio::null()];
    let command = &mut Command::new(binary());
    let site = Site::start(command, "", &[backend.address()], streams).await?;
    let (good, bad) = (site.path("pointsman.toml"), site.path("bad.toml"));
    fs::write(&bad, "workers = 'many'\nwokers = 1\n")?;
    let [good, bad] = [good.to_str(), bad.to_str()].map(Option::unwrap_or_default);
    let admin = &*site.admin.to_string();
    let plan = [
        "check",
        "--config",
        good,
        "--against-running",
        "--admin",
        admin,
    ];
    for (args, code) in [
        (&["status", "--admin", admin][..], 0),
        (&["status", "--json", "--admin", admin], 0),
        (&["check", "--config", bad], 1),
        (&["check", "--json", "--config", bad], 1),
        (&plan, 0),
        (&["demo", "--once"], 0),
        (&["--help"], 0),
        (&["--version"], 0),
        (&["run", "--help"], 0),
    ] {
        let (reader, stdout) = io::pipe()?;
        drop(reader);
        let (mut said, stderr) = io::pipe()?;
        let mut child = Command::new(binary())
            .args(args)
            .stdin(Stdio::null())
            .stdout(OwnedFd::from(stdout))
            .stderr(OwnedFd::from(stderr))
            .kill_on_drop(true)
            .spawn()?;
        let ended = in_time(format!("{args:?}"), child.wait()).await?;
        let mut words = String::new();
        said.read_to_string(&mut words)?;
        assert_eq!(ended.code(), Some(code), "{args:?}: {words}");
        ensure!(!words.contains("panic"), "{args:?}: {words}");
        ensure!(!words.contains("pipe"), "{args:?}: {words}");
    }
    let full = OpenOptions::new().write(true).open("/dev/full")?;
    let child = Command::new(binary())
        .args(["status", "--admin", admin])
        .stdout(full)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let ended = in_time("status", child.wait_with_output()).await?;
    assert_eq!(ended.status.code(), Some(1), "what was not written fails");
    let words = String::from_utf8_lossy(&ended.stderr);
    ensure!(words.contains("cannot write to stdout"), "{words}");
    Ok(())
}

const IN_FILES: &str = r#"drain_timeout_secs = 2
access_log = "file:logs/access.log"
error_log = { format = "json", file = "logs/error.log" }
"#;

/// A site with both logs in files.
async fn with_log_files(command: &mut Command, backend: &Backend) -> Result<Site> {
    // The folder has to be there before the process, and its name is known afterwards.
    let logs = TempDir::new()?;
    let top = IN_FILES.replace_all("logs/", &format!("{}/", logs.path().display()));
    let streams = [Stdio::null(), Stdio::null()];
    let site = Site::start(command, &top, &[backend.address()], streams).await?;
    std::os::unix::fs::symlink(logs.keep(), site.path("logs"))?;
    Ok(site)
}

/// The lines of a log of JSON, each of which is whole.
fn lines(file: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let read = |line| serde_json::from_str(line).with_context(|| format!("no JSON: {line:?}"));
    text.lines().map(read).collect()
}

fn has(file: &Path, words: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.contains(words))
}

async fn eventually_has(file: &Path, words: &str) -> Result<()> {
    let what = format!("{words:?} in {}", file.display());
    eventually(what, PATIENCE, async || has(file, words)).await?;
    Ok(())
}

#[tokio::test]
async fn sigusr1_opens_renamed_files_again_and_no_line_is_lost() -> Result<()> {
    const N_ROUNDS: usize = 5;
    let backend = Backend::start().await?;
    let site = with_log_files(&mut Command::new(binary()), &backend).await?;
    let logs = site.path("logs");
    let (access, error) = (logs.join("access.log"), logs.join("error.log"));
    let mut n_sessions = 0;
    for round in 0..N_ROUNDS {
        for i in 0..20 {
            site.open(&format!("in-{round}-{i}"))
                .await?
                .close(1000)
                .await?;
            n_sessions += 1;
            // In the middle of it all.
            if i == 10 {
                fs::rename(&access, logs.join(format!("access.log.{round}")))?;
                fs::rename(&error, logs.join(format!("error.log.{round}")))?;
                site.signal(Signal::USR1)?;
            }
        }
        eventually_has(&error, "log files reopened").await?;
        let id = format!("behind-{round}");
        site.open(&id).await?.close(1000).await?;
        n_sessions += 1;
        eventually_has(&access, &id).await?;
    }
    assert_eq!(site.metric(Log::Access.counter(), &[]).await?, 0.0);
    let _folder = site.drain(Vec::new()).await?;
    let mut n_of = [0, 0];
    let mut said = Vec::new();
    for round in 0..=N_ROUNDS {
        let name = |log: &Path| match round {
            N_ROUNDS => log.to_owned(),
            round => log.with_extension(format!("log.{round}")),
        };
        for line in lines(&name(&access))? {
            n_of[0] += usize::from(line["event"] == "open");
            n_of[1] += usize::from(line["event"] == "close");
        }
        said.extend(lines(&name(&error))?);
    }
    assert_eq!(n_of, [n_sessions, n_sessions]);
    for line in &said {
        let is_whole = ["timestamp", "level", "message"].map(|key| line[key].is_string());
        assert_eq!(is_whole, [true; 3], "{line}");
    }
    for words in ["listening", "draining", "log files reopened"] {
        ensure!(said.iter().any(|line| line["message"] == words), "{words}");
    }
    fs::remove_dir_all(fs::canonicalize(&logs)?)?;
    Ok(())
}

#[tokio::test]
async fn files_that_cannot_be_opened_again_stay_and_that_is_told() -> Result<()> {
    let backend = Backend::start().await?;
    let site = with_log_files(&mut Command::new(binary()), &backend).await?;
    let logs = fs::canonicalize(site.path("logs"))?;
    let moved = logs.with_extension("moved");
    fs::rename(&logs, &moved)?;
    site.signal(Signal::USR1)?;
    let error = moved.join("error.log");
    eventually_has(&error, "access_log: cannot open").await?;
    eventually_has(&error, "error_log.file: cannot open").await?;
    let warned = lines(&error)?;
    let warned = warned.iter().filter(|line| line["level"] == "WARN");
    assert_eq!(warned.count(), 2);
    site.open("still-there").await?.close(1000).await?;
    eventually_has(&moved.join("access.log"), "still-there").await?;
    // And when they can be, they are.
    fs::create_dir(&logs)?;
    site.signal(Signal::USR1)?;
    eventually_has(&logs.join("error.log"), "log files reopened").await?;
    site.open("back").await?.close(1000).await?;
    eventually_has(&logs.join("access.log"), "back").await?;
    site.drain(Vec::new()).await?;
    fs::remove_dir_all(moved)?;
    fs::remove_dir_all(logs)?;
    Ok(())
}

#[tokio::test]
async fn a_reload_has_the_logs_go_elsewhere() -> Result<()> {
    let backend = Backend::start().await?;
    let streams = [Stdio::piped(), Stdio::null()];
    let command = &mut Command::new(binary());
    let mut site = Site::start(command, "", &[backend.address()], streams).await?;
    let stdout = site.child.stdout.take().context("stdout is piped")?;
    let mut stdout = BufReader::new(stdout).lines();
    site.open("to-stdout").await?.close(1000).await?;
    for event in ["open", "close"] {
        let line = in_time(event, stdout.next_line()).await?;
        let line: Value = serde_json::from_str(&line.context("no line")?)?;
        assert_eq!(
            (&line["event"], &line["request_id"]),
            (&event.into(), &"to-stdout".into())
        );
    }
    let to_files = IN_FILES.replace_all("logs/", "");
    site.reload(&to_files)?;
    eventually_has(&site.path("error.log"), "configuration applied").await?;
    site.open("to-file").await?.close(1000).await?;
    eventually_has(&site.path("access.log"), "to-file").await?;
    // Refused whole: nothing of it is done.
    site.reload(&to_files.replace_once("file:", "file:nowhere/"))?;
    eventually_has(&site.path("error.log"), "line 3: access_log: cannot open").await?;
    site.open("as-before").await?.close(1000).await?;
    eventually_has(&site.path("access.log"), "as-before").await?;
    site.reload("access_log = \"off\"")?;
    let ok = [("kind", "config"), ("result", "ok")];
    eventually("two reloads", PATIENCE, async || {
        let n = site.metric("pointsman_reloads_total", &ok).await;
        n.is_ok_and(|n| n == 2.0)
    })
    .await?;
    site.open("nowhere").await?.close(1000).await?;
    let folder = site.drain(Vec::new()).await?;
    assert_eq!(in_time("its end", stdout.next_line()).await?, None);
    let in_file = lines(&folder.path().join("access.log"))?;
    let in_file: Vec<_> = in_file
        .iter()
        .map(|line| line["request_id"].clone())
        .collect();
    assert_eq!(in_file, ["to-file", "to-file", "as-before", "as-before"]);
    Ok(())
}

#[tokio::test]
async fn log_files_that_cannot_be_opened_are_named_before_anything_starts() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("pointsman.toml");
    let rest =
        "[[listener]]\nbind = \"127.0.0.1:0\"\n[[route]]\npath = \"/\"\nhandler = \"echo\"\n";
    fs::write(&file, IN_FILES.to_owned() + rest)?;
    let file = file.to_str().context("a path that is UTF-8")?;
    for command in ["check", "run"] {
        let ended = pointsman(&[command, "--config", file]).await?;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let said = ended.stdout + &ended.stderr;
        let dir = folder.path().join("logs");
        for (line, key, name) in [
            (2, "access_log", "access.log"),
            (3, "error_log.file", "error.log"),
        ] {
            let path = dir.join(name);
            let expected = format!("line {line}: {key}: cannot open {}: ", path.display());
            ensure!(said.contains(&expected), "{expected} is not in {said}");
        }
    }
    // With the folder there, it is fine, and looking makes no files.
    fs::create_dir(folder.path().join("logs"))?;
    let ended = pointsman(&["check", "--config", file]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read_dir(folder.path().join("logs"))?.count(), 0);
    fs::write(
        file,
        IN_FILES.replace_once("file:logs/access.log", "syslog:127.0.0.1:514") + rest,
    )?;
    let ended = pointsman(&["check", "--config", file]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let said = ended.stdout;
    ensure!(said.contains("not supported by this version"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_file_that_has_reached_its_limit_ends_nothing_and_has_whole_lines() -> Result<()> {
    let backend = Backend::start().await?;
    // Of POSIX's blocks of 512 bytes. Beyond it, a write is a signal that ends who does not expect it.
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"ulimit -f 64; exec "$@""#, "sh"]);
    shell.arg(binary());
    let site = with_log_files(&mut shell, &backend).await?;
    let access = site.path("logs").join("access.log");
    let mut client = site.open("through-it-all").await?;
    let mut n_sessions = 0;
    while site.metric(Log::Access.counter(), &[]).await? == 0.0 {
        ensure!(n_sessions < 1000, "nothing is lost");
        site.open("x").await?.close(1000).await?;
        n_sessions += 1;
    }
    client.echo_text("still there").await?;
    // As logrotate does with copytruncate.
    fs::copy(&access, site.path("copy"))?;
    OpenOptions::new().write(true).open(&access)?.set_len(0)?;
    site.open("there-is-room").await?.close(1000).await?;
    eventually_has(&access, "there-is-room").await?;
    ensure!(!lines(&access)?.is_empty());
    // All but the last, of which there was room for a part.
    let copy = fs::read_to_string(site.path("copy"))?;
    let (whole, _) = copy.rsplit_once('\n').context("no line")?;
    for line in whole.lines() {
        serde_json::from_str::<Value>(line).with_context(|| line.to_owned())?;
    }
    let logs = fs::canonicalize(site.path("logs"))?;
    eventually_has(&logs.join("error.log"), "the log is written again").await?;
    site.drain(vec![client]).await?;
    fs::remove_dir_all(logs)?;
    Ok(())
}
