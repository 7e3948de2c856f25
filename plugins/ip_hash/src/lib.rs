//! Policy `ip_hash`: the same backend for the same client address, by weight. This is weighted
//! rendezvous hashing (Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005): each
//! backend draws a score from its own address and the client's, and the best score wins; the others are
//! for when that one cannot be reached. So the order of the list does not matter, and a backend that comes
//! or goes moves only its own clients.

use pointsman_sdk::{
    NoConfig,
    policy::{Backend, Decision, Policy, Request},
};

/// The backends, in the order of the host.
#[derive(Debug)]
pub struct IpHash {
    candidates: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    address_hash: u64,
    weight: f64,
}

impl Policy for IpHash {
    type Config = NoConfig;

    fn configure(_config: NoConfig) -> Result<Self, String> {
        Ok(Self {
            candidates: Vec::new(),
        })
    }

    fn backends_changed(&mut self, backends: &[Backend]) {
        let candidate = |backend: &Backend| Candidate {
            address_hash: hash(backend.address.as_bytes()),
            weight: f64::from(backend.weight.max(1)),
        };
        self.candidates = backends.iter().map(candidate).collect();
    }

    fn choose(&mut self, request: &Request) -> Decision {
        Decision::Ranked(ranked(&self.candidates, &request.client_ip))
    }
}

pointsman_sdk::export!(IpHash: policy);

/// All places, the best score first.
fn ranked(candidates: &[Candidate], client_ip: &str) -> Vec<u32> {
    let client_hash = hash(client_ip.as_bytes());
    let scores = candidates.iter().map(|one| one.score(client_hash));
    let mut scored: Vec<(f64, u32)> = scores.zip(0..).collect();
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    scored.into_iter().map(|(_, place)| place).collect()
}

impl Candidate {
    /// `-weight / ln(u)` for a number between 0 and 1 that is drawn by both hashes. The largest of
    /// such scores is a candidate's with the probability of its share of the weights.
    fn score(&self, client_hash: u64) -> f64 {
        let drawn = mixed(client_hash ^ self.address_hash.rotate_left(32)) >> 11;
        let u = (drawn as f64 + 0.5) / (1u64 << 53) as f64;
        -self.weight / u.ln()
    }
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finalizer of SplitMix64: every bit in moves half the bits out, which FNV-1a alone does not do
/// for the last bytes of an address.
fn mixed(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pointsman_sdk::testing::{PolicyHost, backend, request, weighted};
    use serde_json::json;

    use super::*;

    /// Which backend each of 4,000 clients gets.
    fn placement(backends: &[Backend]) -> BTreeMap<String, String> {
        let mut host = PolicyHost::<IpHash>::start(json!({}), backends).unwrap();
        let client_ips = (0..4000).map(|n| format!("10.1.{}.{}", n / 250, n % 250));
        client_ips
            .map(|client_ip| {
                let request = Request {
                    client_ip: client_ip.clone(),
                    ..request()
                };
                let address = host.pick(request).unwrap().to_owned();
                (client_ip, address)
            })
            .collect()
    }

    fn share(placement: &BTreeMap<String, String>, address: &str) -> usize {
        placement.values().filter(|found| *found == address).count()
    }

    #[test]
    fn a_client_keeps_its_backend_in_any_order_of_the_list() {
        let (a, b, c) = (
            backend("10.0.0.1:80"),
            weighted("10.0.0.2:80", 2),
            backend("10.0.0.3:80"),
        );
        let there = placement(&[a.clone(), b.clone(), c.clone()]);
        assert_eq!(there, placement(&[c, a, b]));
    }

    #[test]
    fn a_backend_that_goes_moves_only_its_own_clients() {
        let backends = ["a:1", "b:1", "c:1"].map(backend);
        let before = placement(&backends);
        let after = placement(&backends[..2]);
        for (client_ip, address) in &before {
            if address != "c:1" {
                assert_eq!(&after[client_ip], address);
            }
        }
    }

    #[test]
    fn shares_follow_weights() {
        let placement = placement(&[weighted("10.0.0.1:80", 1), weighted("10.0.0.2:80", 3)]);
        let n = share(&placement, "10.0.0.1:80");
        assert!((900..1100).contains(&n), "{n} of 4000");
    }

    #[test]
    fn there_is_nothing_to_configure() {
        let refused = PolicyHost::<IpHash>::start(json!({"key": "x"}), &[backend("a")]);
        assert!(refused.unwrap_err().contains("`key`"));
    }
}
