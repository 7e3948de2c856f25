//! What the table is run against: Pointsman and its peers, each as an operator would set it up as a
//! proxy for WebSockets, with the same routes and deadlines.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::{DEADLINE, Recorder};
use crate::config::own_address;
use crate::wait::{PATIENCE, eventually};

/// A program that the table can be run against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Debian's package of that name.
    Nginx,
    /// Debian's package of that name.
    Haproxy,
}

/// A peer at work; dropping it kills it.
#[derive(Debug)]
pub struct Running {
    _child: Child,
    _folder: TempDir,
    /// Where clients connect.
    pub address: SocketAddr,
}

/// Pointsman's configuration: `/two/` leads to both backends in turn, `/private/`, `/wiki/` and, in
/// any case, `/shop/` want an origin, and everything else leads to the first.
pub fn config(backends: &[Recorder; 2]) -> String {
    let [first, second] = backends.each_ref().map(Recorder::address);
    let millis = DEADLINE.as_millis();
    format!(
        r#"
[[listener]]
bind = "127.0.0.1:0"
handshake_timeout_ms = {millis}

[[upstream]]
name = "app"
policy = "round_robin"
backends = ["{first}"]
response_timeout_ms = {millis}
head_timeout_ms = {millis}
[upstream.ejection]
max_ejected_percent = 0

[[upstream]]
name = "two"
policy = "round_robin"
backends = ["{first}", "{second}"]
response_timeout_ms = {millis}
head_timeout_ms = {millis}
[upstream.ejection]
max_ejected_percent = 0

[[route]]
path = "/*"
upstream = "app"

[[route]]
path = "/two/*"
upstream = "two"

[[route]]
path = "/private/*"
upstream = "app"
origins = ["https://app.example.org"]

[[route]]
path = "/wiki/*"
upstream = "app"
origins = ["https://app.example.org"]

[[route]]
path = "/Wiki/*"
upstream = "app"

[[route]]
path = "/shop/*"
case_sensitive = false
upstream = "app"
origins = ["https://app.example.org"]
"#
    )
}

/// The same, believing clients about others.
pub fn trusting_config(backends: &[Recorder; 2]) -> String {
    format!("trusted_proxies = [\"127.0.0.0/8\"]\n{}", config(backends))
}

impl Peer {
    /// As it is called.
    pub fn title(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
        }
    }

    /// Its version, as it says itself.
    ///
    /// # Errors
    ///
    /// It is not installed.
    pub async fn version(self) -> Result<String> {
        let output = Command::new(self.program()).arg("-v").output().await;
        let output = output.with_context(|| format!("{} is not installed", self.title()))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let is_number = |word: &&str| word.contains('.') && !word.starts_with("http");
        let mut words = said.split([' ', '/', '\n']);
        let version =
            words.find(|word| is_number(word) && word.starts_with(|c: char| c.is_ascii_digit()));
        Ok(version.unwrap_or("of an unknown version").to_owned())
    }

    /// Starts it before `backends`, and waits until it listens.
    ///
    /// # Errors
    ///
    /// It is not installed, or does not start.
    pub async fn start(self, backends: &[Recorder; 2]) -> Result<Running> {
        let folder = TempDir::new()?;
        let address = own_address();
        let (file, text, args) = match self {
            Self::Nginx => (
                "nginx.conf",
                nginx(address, backends),
                "-e stderr -p . -c nginx.conf",
            ),
            Self::Haproxy => (
                "haproxy.cfg",
                haproxy(address, backends),
                "-db -f haproxy.cfg",
            ),
        };
        fs::write(folder.path().join(file), text)?;
        let child = Command::new(self.program())
            .args(args.split(' '))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("stderr.log"))?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} is not installed", self.title()))?;
        let what = format!("{} listens", self.title());
        eventually(what, PATIENCE, async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await
        .with_context(|| {
            fs::read_to_string(folder.path().join("stderr.log")).unwrap_or_default()
        })?;
        Ok(Running {
            _child: child,
            _folder: folder,
            address,
        })
    }

    /// Debian puts servers where the `PATH` of other users than root does not lead.
    fn program(self) -> PathBuf {
        let name = match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        };
        let sbin = Path::new("/usr/sbin").join(name);
        if sbin.is_file() { sbin } else { name.into() }
    }
}

/// One process, so that killing it leaves nothing behind.
fn nginx(listen: SocketAddr, backends: &[Recorder; 2]) -> String {
    let [first, second] = backends.each_ref().map(Recorder::address);
    let seconds = DEADLINE.as_secs();
    let relay = |upstream: &str| {
        format!(
            "proxy_pass http://{upstream};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Host $host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_connect_timeout {seconds}s;
            proxy_read_timeout {seconds}s;"
        )
    };
    let (app, two) = (relay("app"), relay("two"));
    format!(
        r#"daemon off;
master_process off;
pid nginx.pid;
error_log stderr error;

events {{
}}

http {{
    access_log off;
    client_header_timeout {seconds}s;
    client_body_timeout {seconds}s;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;

    map $http_upgrade $connection_upgrade {{
        default upgrade;
        '' close;
    }}

    upstream app {{
        server {first} max_fails=0;
    }}

    upstream two {{
        server {first} max_fails=0;
        server {second} max_fails=0 backup;
    }}

    server {{
        listen {listen};

        location / {{
            {app}
        }}

        location /two/ {{
            {two}
        }}

        location ~ ^/(private|wiki|(?i:shop))/ {{
            if ($http_origin != "https://app.example.org") {{
                return 403;
            }}
            {app}
        }}
    }}
}}
"#
    )
}

fn haproxy(listen: SocketAddr, backends: &[Recorder; 2]) -> String {
    let [first, second] = backends.each_ref().map(Recorder::address);
    let seconds = DEADLINE.as_secs();
    format!(
        "global
    nbthread 1
    maxconn 1000

defaults
    mode http
    option forwardfor
    option redispatch 1
    retries 2
    retry-on all-retryable-errors
    timeout connect {seconds}s
    timeout http-request {seconds}s
    timeout client {seconds}s
    timeout server {seconds}s
    timeout tunnel {seconds}s

frontend clients
    bind {listen}
    http-request deny if {{ path_beg /private/ /wiki/ }} !{{ req.hdr(origin) https://app.example.org }}
    http-request deny if {{ path_beg -i /shop/ }} !{{ req.hdr(origin) https://app.example.org }}
    use_backend two if {{ path_beg /two/ }}
    default_backend app

backend app
    server first {first}

backend two
    balance first
    server first {first}
    server second {second}
"
    )
}
