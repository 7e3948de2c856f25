//! Reads the host's manifests and sources, and fails where something is done in the wrong place: what the
//! compiler cannot see.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use pointsman_tests::repository;

/// A source file by its package and path (`plugins/load.rs`), without comments and without its tests.
struct Source {
    path: String,
    whole: String,
    code: Vec<(usize, String)>,
}

/// Something that only some packages, folders or files may speak of.
struct Fence {
    /// Any of these in a line of code is a crossing.
    words: &'static [&'static str],
    /// Files, or folders with their `/`, where it is none.
    rooms: &'static [&'static str],
    why: &'static str,
}

/// The packages of `host/`, each with those of them that it needs: the arrows of ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "admin",
        &["config", "contract", "log", "metrics", "protocol"],
    ),
    ("config", &["contract"]),
    ("contract", &[]),
    ("log", &["config", "contract"]),
    ("metrics", &[]),
    ("plugins", &["config", "contract"]),
    (
        "program",
        &[
            "admin", "config", "contract", "log", "metrics", "plugins", "protocol", "traffic",
            "watch",
        ],
    ),
    ("protocol", &["contract"]),
    ("traffic", &["config", "contract", "metrics", "protocol"]),
    ("watch", &[]),
];

/// What a package may not have, not even in its tests: it is pure.
const PURE: &[(&str, &[&str])] = &[
    ("contract", &["tokio", "hyper", "rustix", "wasmtime"]),
    ("metrics", &["tokio", "hyper", "wasmtime"]),
    ("protocol", &["tokio", "hyper", "rustix", "wasmtime"]),
];

const FENCES: &[Fence] = &[
    Fence {
        words: &["flate2::"],
        rooms: &["protocol/messages/"],
        why: "only protocol/messages/ knows of compression",
    },
    Fence {
        words: &["rustls::", "rustls_native_certs::"],
        rooms: &["traffic/upstream/tls.rs"],
        why: "only traffic/upstream/tls.rs knows of certificates",
    },
    Fence {
        words: &["hickory_resolver::"],
        rooms: &["traffic/upstream/dns.rs"],
        why: "only traffic/upstream/dns.rs asks name servers",
    },
    Fence {
        words: &["sd_notify::", "listenfd::"],
        rooms: &["program/systemd.rs"],
        why: "only program/systemd.rs knows of a service manager",
    },
    Fence {
        words: &["tungstenite::"],
        rooms: &[
            "protocol/handshake.rs",
            "traffic/upstream/dial.rs",
            "traffic/upstream/health.rs",
            "program/demo/",
        ],
        why: "the library's WebSockets are for handshake, dial and health, and the demo's client",
    },
    Fence {
        words: &["Serialize", "Deserialize"],
        rooms: &["config/", "admin/", "metrics/labels.rs"],
        why: "what goes in and out as text is described in config/ and admin/",
    },
    Fence {
        words: &["Instant::now(", "SystemTime::now(", "fastrand::"],
        rooms: &[
            "admin/",
            "log/",
            "metrics/",
            "plugins/",
            "program/",
            "protocol/",
            "traffic/body/",
            "traffic/client_http.rs",
            "traffic/environment.rs",
            "traffic/overload/",
            "traffic/proxy.rs",
            "traffic/relay/",
            "traffic/session/",
            "traffic/upstream/dial.rs",
            "traffic/upstream/dns.rs",
            "traffic/upstream/health.rs",
            "traffic/upstream/tls.rs",
            "watch/",
        ],
        why: "what decides about backends gets time and chance from traffic/environment.rs",
    },
    Fence {
        words: &["tokio::spawn(", "task::spawn("],
        rooms: &[],
        why: "a task belongs to a set that somebody joins",
    },
    Fence {
        words: &["Module::deserialize", "Component::deserialize"],
        rooms: &[],
        why: "precompiled code is never loaded from a file; wasmtime's cache is checked",
    },
];

#[test]
fn packages_need_only_what_the_map_says() -> Result<()> {
    for entry in fs::read_dir(repository("host"))? {
        let folder = entry?.path();
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let manifest = fs::read_to_string(folder.join("Cargo.toml"))?;
        let needed: BTreeSet<_> = (manifest.lines())
            .take_while(|line| *line != "[dev-dependencies]")
            .filter_map(|line| line.strip_prefix("pointsman-")?.split(['.', ' ']).next())
            .collect();
        let arrows = ARROWS.iter().find(|(package, _)| *package == name);
        let (_, allowed) = arrows.with_context(|| format!("host/{name} is on no map"))?;
        let allowed: BTreeSet<_> = allowed.iter().copied().collect();
        ensure!(
            needed == allowed,
            "host/{name} needs {needed:?}, and the map has {allowed:?}"
        );
        for (package, never) in PURE.iter().filter(|(package, _)| *package == name) {
            let has = |library: &&str| manifest.lines().any(|line| line.starts_with(*library));
            let found: Vec<_> = never.iter().filter(|library| has(library)).collect();
            ensure!(
                found.is_empty(),
                "host/{package} is pure, and has {found:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn no_modules_of_a_package_need_each_other_in_a_circle() -> Result<()> {
    let needs = needs_of(&sources()?);
    let circles: Vec<_> = (needs.keys())
        .filter(|module| reaches(&needs, module, module))
        .collect();
    ensure!(
        circles.is_empty(),
        "each of these needs itself by way of others: {circles:?}"
    );
    Ok(())
}

#[test]
fn a_circle_is_seen_through_any_number_of_modules() {
    let file = |path: &str, whole: &str| Source {
        path: path.to_owned(),
        whole: whole.to_owned(),
        code: code_of(whole),
    };
    let needs = needs_of(&[
        file("traffic/a/mod.rs", "use crate::b::B;"),
        file("traffic/b.rs", "use super::c;"),
        file("traffic/c.rs", "fn c() { crate::a::deep::call() }"),
        file(
            "traffic/d.rs",
            "use crate::a;\n#[cfg(test)]\nmod tests { use crate::d; }",
        ),
        file("admin/a.rs", "use crate::d;"),
    ]);
    let circles: Vec<_> = needs
        .keys()
        .filter(|module| reaches(&needs, module, module))
        .collect();
    assert_eq!(circles, ["traffic/a", "traffic/b", "traffic/c"]);
}

#[test]
fn no_room_does_what_is_anothers() -> Result<()> {
    let mut crossings = Vec::new();
    for source in sources()? {
        for fence in FENCES {
            if fence.rooms.iter().any(|room| is_in(&source.path, room)) {
                continue;
            }
            for (number, line) in &source.code {
                if fence.words.iter().any(|word| speaks_of(line, word)) {
                    let (path, why) = (&source.path, fence.why);
                    crossings.push(format!("{path}:{number}: {why}: {}", line.trim()));
                }
            }
        }
    }
    ensure!(crossings.is_empty(), "{}", crossings.join("\n"));
    Ok(())
}

/// A name that means two things has to be looked up each time it is read.
#[test]
fn every_type_has_a_name_of_its_own() -> Result<()> {
    let mut homes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources()? {
        for (number, line) in &source.code {
            if let Some(name) = declared_type(line) {
                let home = format!("{}:{number}", source.path);
                homes.entry(name.to_owned()).or_default().push(home);
            }
        }
    }
    homes.retain(|_, homes| homes.len() > 1);
    ensure!(homes.is_empty(), "these are declared twice: {homes:#?}");
    Ok(())
}

#[test]
fn a_declared_type_is_seen_behind_any_visibility() {
    assert_eq!(declared_type("struct Pool {"), Some("Pool"));
    assert_eq!(
        declared_type("    pub(super) enum Tier<'a> {"),
        Some("Tier")
    );
    assert_eq!(
        declared_type("pub type Labels = Vec<Label>;"),
        Some("Labels")
    );
    assert_eq!(declared_type("pub trait Filter: Send {"), Some("Filter"));
    assert_eq!(declared_type("    type Output = ();"), None, "of a trait");
    assert_eq!(declared_type("let structure = 1;"), None);
}

/// The name of the type that `line` declares. A `type` that is indented belongs to a trait.
fn declared_type(line: &str) -> Option<&str> {
    let item = line.trim_start();
    let is_indented = item.len() < line.len();
    let item = match item.strip_prefix("pub") {
        Some(scoped) if scoped.starts_with('(') => scoped.split_once(") ")?.1,
        Some(public) => public.trim_start(),
        None => item,
    };
    let (keyword, rest) = item.split_once(' ')?;
    if !matches!(keyword, "struct" | "enum" | "trait" | "type") || is_indented && keyword == "type"
    {
        return None;
    }
    rest.split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
}

/// Plugins are built without the packages of the host, so that each side has the table.
#[test]
fn plugins_and_host_have_the_same_close_codes() -> Result<()> {
    let of = |path: &str| -> Result<Vec<String>> {
        let text = fs::read_to_string(repository(path))?;
        let code = code_of(&text).into_iter().map(|(_, line)| line);
        let said = code.filter(|line| !line.trim().is_empty() && !line.trim().starts_with("//"));
        Ok(said.collect())
    };
    let only_report = ["NO_STATUS", "ABNORMAL", "TLS_HANDSHAKE"];
    let mut host = of("host/contract/src/close.rs")?;
    host.retain(|line| {
        !only_report
            .iter()
            .any(|name| line.contains(&format!("const {name}:")))
    });
    ensure!(host.len() > 12, "the host's table is not found");
    assert_eq!(of("sdk/src/close.rs")?, host);
    Ok(())
}

#[test]
fn every_file_says_what_it_owns() -> Result<()> {
    let silent: Vec<String> = sources()?
        .into_iter()
        .filter(|source| !source.whole.starts_with("//!"))
        .map(|source| source.path)
        .collect();
    ensure!(
        silent.is_empty(),
        "these do not open with `//!`: {silent:?}"
    );
    Ok(())
}

#[test]
fn a_fence_sees_words_and_not_parts_of_them() {
    assert!(speaks_of("use wasmtime::Engine;", "wasmtime::"));
    assert!(speaks_of(
        "    tokio_tungstenite::client_async(x)",
        "tungstenite::"
    ));
    assert!(speaks_of("#[derive(Debug, Serialize)]", "Serialize"));
    assert!(!speaks_of("let x = waiter.notify_one();", "notify::"));
    assert!(!speaks_of(
        "use crate::upstream::unnotify::Thing;",
        "notify::"
    ));
}

fn is_in(path: &str, room: &str) -> bool {
    path == room || (room.ends_with('/') && path.starts_with(room))
}

/// Whether `line` holds `word` at the start of a name, or behind the `_` of a longer one that
/// means the same (`tokio_tungstenite`).
fn speaks_of(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(char::is_alphanumeric)
    })
}

/// The modules of each package, as `traffic/session`, and those beside them that they name.
fn needs_of(sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let Some((package, below)) = source.path.split_once('/') else {
            continue;
        };
        let module = below
            .split('/')
            .next()
            .unwrap_or(below)
            .trim_end_matches(".rs");
        // Of a file beside lib.rs, `super` is the package.
        let roots: &[&str] = match below.contains('/') {
            true => &["crate::"],
            false => &["crate::", "super::"],
        };
        let from = format!("{package}/{module}");
        let needed = needs.entry(from.clone()).or_default();
        for (_, line) in &source.code {
            for (at, root) in roots.iter().flat_map(|root| line.match_indices(root)) {
                let name: String = line[at + root.len()..]
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                needed.insert(format!("{package}/{name}"));
            }
        }
        needed.remove(&from);
    }
    needs
}

/// Whether `to` is needed by `from`, itself or by way of others.
fn reaches(needs: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut left = vec![from];
    while let Some(module) = left.pop() {
        for next in needs.get(module).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(next) {
                left.push(next);
            }
        }
    }
    false
}

/// Those of all packages of the host.
fn sources() -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(repository("host"))? {
        let package = entry?.path();
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        let root = package.join("src");
        read_all(&root, &root, &name, &mut found)?;
    }
    ensure!(found.len() > 100, "only {} sources in host/", found.len());
    Ok(found)
}

fn read_all(root: &Path, folder: &Path, package: &str, found: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(root, &path, package, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let whole = fs::read_to_string(&path)?;
            let code = code_of(&whole);
            let path = format!("{package}/{}", path.strip_prefix(root)?.display());
            found.push(Source { path, whole, code });
        }
    }
    Ok(())
}

/// The numbered lines that are neither comments nor tests.
fn code_of(whole: &str) -> Vec<(usize, String)> {
    let mut code = Vec::new();
    let mut lines = whole.lines().enumerate();
    while let Some((i, line)) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            // The item goes on to the line that closes it, which is indented as it is.
            let indent = line.len() - line.trim_start().len();
            let ends = |line: &str| {
                let is_at_its_depth = line.len() - line.trim_start().len() == indent;
                is_at_its_depth
                    && (line.ends_with(';')
                        || line.trim_start().starts_with('}')
                        || line.ends_with('}'))
            };
            lines.by_ref().find(|(_, line)| ends(line));
        } else if !line.trim_start().starts_with("//") {
            code.push((i + 1, line.to_owned()));
        }
    }
    code
}

#[test]
fn code_behind_tests_is_read_too() {
    let whole = "\
fn a() {}
#[cfg(test)]
mod guests;
fn b() {}
#[cfg(test)]
mod tests {
    fn c() {}
}
fn d() {}
";
    let code: Vec<_> = code_of(whole)
        .into_iter()
        .map(|(number, _)| number)
        .collect();
    assert_eq!(code, [1, 4, 9]);
}
