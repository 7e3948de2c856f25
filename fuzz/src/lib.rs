//! What must hold for any input. Each target takes bytes and panics where something does not hold;
//! libFuzzer (`cargo xtask fuzz`) looks for such bytes, and the tests replay `seeds/` and mutate them.

mod answer;
mod config;
mod deflate;
mod dial;
mod frames;
mod head;
mod idle;
mod messages;
mod paths;
mod plugin;
mod requests;
mod strict;

pub mod slowest;

use std::path::PathBuf;
use std::{fs, io};

/// A name, and what runs.
pub type Target = (&'static str, fn(&[u8]));

/// All of them; `seeds/` has a folder for each.
pub const TARGETS: &[Target] = &[
    ("answer", answer::run),
    ("config", config::run),
    ("deflate", deflate::run),
    ("dial", dial::run),
    ("frames", frames::run),
    ("head", head::run),
    ("messages", messages::run),
    ("paths", paths::run),
    ("plugin", plugin::run),
    ("requests", requests::run),
];

/// Takes numbers and pieces off the front of an input.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// 0 at the end.
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// `bytes` cut at places that `cuts` says, into pieces of 1 to 32 bytes or one of all.
fn pieces(bytes: &[u8], cuts: u8) -> Vec<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(cuts.into());
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = match cuts {
            0 => rest.len(),
            1 => 1,
            _ => random.usize(1..=32).min(rest.len()),
        };
        let (piece, behind) = rest.split_at(n);
        pieces.push(piece.to_vec());
        rest = behind;
    }
    pieces
}

/// A path in this package.
fn here(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The files of a folder of `seeds/`, in the order of their names.
fn seeds(folder: &str) -> Vec<Vec<u8>> {
    let folder = here("seeds").join(folder);
    let read = || {
        let files = fs::read_dir(&folder)?.map(|file| Ok(file?.path()));
        let mut paths = files.collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        paths.iter().map(fs::read).collect()
    };
    let seeds: io::Result<Vec<_>> = read();
    let seeds = seeds.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    assert!(!seeds.is_empty(), "{} is empty", folder.display());
    seeds
}

/// A few bytes changed, taken out, put in, or a piece of another seed.
fn mutate(seed: &[u8], other: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..random.usize(1..5) {
        let at = random.usize(..=bytes.len());
        match random.u8(..5) {
            0 if at < bytes.len() => bytes[at] = random.u8(..),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            2 => drop(bytes.drain(at..(at + random.usize(..8)).min(bytes.len()))),
            3 => bytes.insert(at, random.u8(..)),
            _ => {
                let from = random.usize(..=other.len());
                let to = (from + random.usize(..64)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    const MUTATIONS: usize = 2000;

    /// Seeds, and what they become.
    fn inputs(target: &str) -> Vec<Vec<u8>> {
        let seeds = seeds(target);
        let mut random = fastrand::Rng::with_seed(1);
        let mutants: Vec<_> = (0..MUTATIONS)
            .map(|_| {
                let [seed, other] = [0; 2].map(|_: usize| &seeds[random.usize(..seeds.len())]);
                mutate(seed, other, &mut random)
            })
            .collect();
        seeds.into_iter().chain(mutants).collect()
    }

    #[test]
    fn seeds_and_what_they_become_hold() {
        for (name, run) in TARGETS {
            inputs(name).iter().for_each(|input| run(input));
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn node_and_ws_read_what_we_forward_as_we_do() {
        let ws = here("../examples/fastify/node_modules/ws");
        assert!(
            ws.is_dir(),
            "{} is missing: run `cargo xtask test`, or `npm ci` there",
            ws.display()
        );
        // What libFuzzer has found so far goes along.
        let found = fs::read_dir(here("../target/fuzz/head/corpus"));
        let found = found
            .into_iter()
            .flatten()
            .map(|file| fs::read(file.unwrap().path()).unwrap());
        let lines: BTreeSet<_> = inputs("head")
            .into_iter()
            .chain(found)
            .filter_map(|input| {
                let (_, sent) = head::exchange(&input)?;
                Some(format!("{} {}\n", hex(&input), hex(&sent)))
            })
            .collect();
        let mut node = Command::new("node")
            .args([here("node.cjs"), ws])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Node.js");
        let mut stdin = node.stdin.take().expect("a pipe");
        // It reads all before it says much.
        lines
            .iter()
            .for_each(|line| stdin.write_all(line.as_bytes()).expect("Node.js reads"));
        drop(stdin);
        let said = node.wait_with_output().expect("Node.js ends").stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(said, format!("{} read\n", lines.len()));
    }
}
