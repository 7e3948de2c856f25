//! Configuration text: what most tests have in common, and what a test left out.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where nobody listens, now or later: the system hands out no port below 1024.
pub const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// An address to listen at that nobody else has, though its port is known before it is bound: a host of
/// 127.0.0.0/8 picked at random, and a port that the system gives to nobody.
pub fn own_address() -> SocketAddr {
    let [b, c, d] = [(); 3].map(|()| fastrand::u8(1..=254));
    SocketAddr::from(([127, b, c, d], 17_980))
}

/// Stands in a test's configuration for the watched plugin folder.
const PLUGINS_DIR: &str = "PLUGINS_DIR";

/// An upstream `app` under `policy`, with the route `/*` to it.
pub fn app<A: Display>(policy: &str, backends: &[A]) -> String {
    let backends: Vec<String> = backends.iter().map(|a| format!("\"{a}\"")).collect();
    format!(
        r#"
[[upstream]]
name = "app"
policy = "{policy}"
backends = [{}]

[[route]]
path = "/*"
upstream = "app"
max_message_bytes = 16777216
"#,
        backends.join(", ")
    )
}

/// `text` with two workers, a listener and an admin page on free ports, and a watched folder,
/// where it does not speak of them itself.
pub(crate) fn complete(text: &str, plugins: &Path) -> String {
    let plugins = plugins.display().to_string();
    let text = text.replace(PLUGINS_DIR, &plugins);
    let says = |start: &str| text.lines().any(|line| line.starts_with(start));

    let mut whole = String::new();
    if !says("workers") {
        whole.push_str("workers = 2\n");
    }
    whole.push_str(&text);
    if !says("[admin]") {
        whole.push_str("\n[admin]\nlisten = \"127.0.0.1:0\"\n");
    }
    if !says("[[listener]]") {
        whole.push_str("\n[[listener]]\nbind = \"127.0.0.1:0\"\n");
    }
    if !says("[plugins]") {
        whole.push_str(&format!("\n[plugins]\ndir = \"{plugins}\"\n"));
    }
    whole
}

/// The top of the repository, or something in it.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
