//! What must hold for any input. Each target takes bytes and panics where something does not hold;
//! libFuzzer (`cargo xtask fuzz`) looks for such bytes, and the tests replay `seeds/` and mutate them.

mod answer;
mod config;
mod deflate;
mod frames;
mod head;
mod messages;
mod paths;

/// A name, and what runs.
pub type Target = (&'static str, fn(&[u8]));

/// All of them; `seeds/` has a folder for each.
pub const TARGETS: &[Target] = &[
    ("answer", answer::run),
    ("config", config::run),
    ("deflate", deflate::run),
    ("frames", frames::run),
    ("head", head::run),
    ("messages", messages::run),
    ("paths", paths::run),
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const MUTATIONS: usize = 2000;

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(target);
        let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
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

    #[test]
    fn seeds_and_what_they_become_hold() {
        for (name, run) in TARGETS {
            let seeds = seeds(name);
            assert!(!seeds.is_empty(), "{name} has no seeds");
            seeds.iter().for_each(|seed| run(seed));
            let mut random = fastrand::Rng::with_seed(1);
            for _ in 0..MUTATIONS {
                let [seed, other] = [0; 2].map(|_: usize| &seeds[random.usize(..seeds.len())]);
                run(&mutate(seed, other, &mut random));
            }
        }
    }
}
