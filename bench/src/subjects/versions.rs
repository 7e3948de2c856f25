//! Whether a peer is installed, and which version it is, in its own words.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Subject;

impl Subject {
    /// The version of the peer, which also says that it can be started.
    ///
    /// # Errors
    /// It is not installed, or does not say.
    pub fn version(self, root: &Path) -> Result<String> {
        match self {
            Self::Pointsman
            | Self::PointsmanLeast
            | Self::PointsmanFilter
            | Self::PointsmanFilterBoth
            | Self::PointsmanEcho
            | Self::PointsmanChat
            | Self::Envoy => said(&self.program(root), "--version"),
            Self::Nginx | Self::Nginx64k | Self::Haproxy => said(&self.program(root), "-v"),
            Self::Fastify => npm_package(root, "fastify"),
            Self::Ws => npm_package(root, "ws"),
            Self::TokioTungstenite | Self::TokioTungsteniteChat => {
                locked(root, "tokio-tungstenite")
            }
            Self::Fastwebsockets => locked(root, "fastwebsockets"),
            Self::Epoll => Ok(env!("CARGO_PKG_VERSION").to_owned()),
        }
    }
}

/// The first number with dots in what `program` says to `flag`.
fn said(program: &Path, flag: &str) -> Result<String> {
    let output = Command::new(program)
        .arg(flag)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} is not installed", program.display()))?;
    if !output.status.success() {
        bail!("{} {flag} failed ({})", program.display(), output.status);
    }
    // nginx answers on stderr.
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    first_version(&text).with_context(|| format!("no version in {:?}", text.trim()))
}

/// `1.22.1` in `nginx version: nginx/1.22.1`; neither a commit's hash nor a date is one.
fn first_version(text: &str) -> Option<String> {
    let is_version =
        |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.split('.').count() > 2;
    let words = text.split(|c: char| c.is_whitespace() || c == '/');
    let mut words = words.map(|word| word.trim_start_matches('v'));
    words.find(is_version).map(str::to_owned)
}

fn npm_package(root: &Path, name: &str) -> Result<String> {
    let node = said(Path::new("node"), "--version");
    let file = root
        .join("bench/node/node_modules")
        .join(name)
        .join("package.json");
    let text = fs::read_to_string(&file)
        .with_context(|| format!("the npm package {name} is not installed in bench/node"))?;
    let package: Value = serde_json::from_str(&text)?;
    let version = package["version"]
        .as_str()
        .context("a package without a version")?;
    Ok(format!("{version} on Node.js {}", node?))
}

fn locked(root: &Path, name: &str) -> Result<String> {
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let entry = format!("name = \"{name}\"\nversion = \"");
    let (_, rest) = lock
        .split_once(&entry)
        .with_context(|| format!("{name} is not locked"))?;
    let (version, _) = rest.split_once('"').context("Cargo.lock is cut off")?;
    Ok(version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::first_version;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(first_version(text).as_deref(), expected, "{text}");
    }

    #[test]
    fn a_version_is_found_in_what_programs_say() {
        check("nginx version: nginx/1.22.1", Some("1.22.1"));
        check(
            "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/",
            Some("2.6.12-1+deb12u4"),
        );
        check(
            "envoy  version: 9e5580933739/1.40.0/Clean/RELEASE/BoringSSL",
            Some("1.40.0"),
        );
        check("v20.20.2", Some("20.20.2"));
        check("pointsman 0.1.0", Some("0.1.0"));
        check("no number", None);
    }
}
