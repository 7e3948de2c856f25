//! Reads the host's sources, and fails where a room does what is another's to do.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use pointsman_tests::repository;

/// A source file by its path below `host/src`, without comments and without its tests.
struct Source {
    path: String,
    whole: String,
    code: Vec<(usize, String)>,
}

/// Something that only some rooms may speak of.
struct Fence {
    /// Any of these in a line of code is a crossing.
    words: &'static [&'static str],
    /// Files, or folders with their `/`, where it is none.
    rooms: &'static [&'static str],
    why: &'static str,
}

const FENCES: &[Fence] = &[
    Fence {
        words: &[
            "wasmtime::",
            "wasmtime_wasi::",
            "wasmtime_wasi_http::",
            "wit_component::",
        ],
        rooms: &["plugins/"],
        why: "only plugins/ knows of wasm",
    },
    Fence {
        words: &["notify::"],
        rooms: &["watch.rs", "watch/", "systemd.rs"],
        why: "only watch knows of file events",
    },
    Fence {
        words: &["rustls::", "rustls_native_certs::"],
        rooms: &["upstream/tls.rs"],
        why: "only upstream/tls.rs knows of certificates",
    },
    Fence {
        words: &["hickory_resolver::"],
        rooms: &["upstream/dns.rs"],
        why: "only upstream/dns.rs asks name servers",
    },
    Fence {
        words: &["flate2::"],
        rooms: &["messages/"],
        why: "only messages/ knows of compression",
    },
    Fence {
        words: &["sd_notify::", "listenfd::"],
        rooms: &["systemd.rs"],
        why: "only systemd knows of a service manager",
    },
    Fence {
        words: &["tungstenite::"],
        rooms: &[
            "handshake.rs",
            "handshake/",
            "upstream/dial.rs",
            "upstream/health.rs",
            "demo.rs",
            "demo/",
        ],
        why: "the library's WebSockets are for handshake, dial and health, and the demo's client",
    },
    Fence {
        words: &["Serialize", "Deserialize"],
        rooms: &["config/", "admin/"],
        why: "what goes in and out as text is described in config/ and admin/",
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
                    crossings.push(format!("host/src/{path}:{number}: {why}: {}", line.trim()));
                }
            }
        }
    }
    ensure!(crossings.is_empty(), "{}", crossings.join("\n"));
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

fn sources() -> Result<Vec<Source>> {
    let root = repository("host/src");
    let mut found = Vec::new();
    read_all(&root, &root, &mut found)?;
    ensure!(!found.is_empty(), "no sources in {}", root.display());
    Ok(found)
}

fn read_all(root: &Path, folder: &Path, found: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(root, &path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let whole = fs::read_to_string(&path)?;
            let code = code_of(&whole);
            let path = path.strip_prefix(root)?.display().to_string();
            found.push(Source { path, whole, code });
        }
    }
    Ok(())
}

/// The numbered lines that are neither comments nor tests, which stand at the foot of a file.
fn code_of(whole: &str) -> Vec<(usize, String)> {
    whole
        .lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(i, line)| (i + 1, line.to_owned()))
        .collect()
}
