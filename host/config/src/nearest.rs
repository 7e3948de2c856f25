//! Which known word a mistyped one was probably meant to be.
//!
//! Pure text: in comes the word and those that are known, out goes one of them or none.

use strsim::osa_distance;

/// The policies that ship, and what others call such a policy: nginx, HAProxy, Envoy, Caddy and Traefik.
/// Without underscores.
const POLICIES: [(&str, &[&str]); 11] = [
    (
        "round_robin",
        &["rr", "wrr", "staticrr", "weightedroundrobin"],
    ),
    (
        "least_connections",
        &["leastconn", "leastconns", "lc", "wlc"],
    ),
    ("random", &["rand"]),
    (
        "power_of_two",
        &[
            "p2c",
            "leastrequest",
            "twochoices",
            "randomtwo",
            "randomchoose",
        ],
    ),
    (
        "least_latency",
        &["leasttime", "leastresponsetime", "peakewma", "ewma"],
    ),
    ("first", &["pickfirst", "failover", "priority"]),
    (
        "ip_hash",
        &[
            "source",
            "sourceip",
            "src",
            "clientip",
            "clientiphash",
            "remoteaddr",
        ],
    ),
    (
        "sticky",
        &["cookie", "stickycookie", "affinity", "persistence"],
    ),
    (
        "consistent_hash",
        &[
            "uri", "urihash", "urlparam", "hdr", "header", "query", "hash", "ringhash", "ketama",
        ],
    ),
    ("maglev", &[]),
    ("rendezvous", &["hrw", "highestrandomweight"]),
];

/// The known word that `word` was probably meant to be: one that holds it (`connect_timeout` for
/// `connect_timeout_ms`), or that differs in at most a third of its letters.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let word = word.to_lowercase().replace('-', "_");
    let distance = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let length = candidate.len().max(word.len());
        if word.len() >= 4 && candidate.contains(&word) {
            return Some(1);
        }
        if word.len() > 2 * candidate.len() {
            return None;
        }
        Some(osa_distance(&word, &candidate)).filter(|edits| *edits <= length / 3)
    };
    let near = known
        .into_iter()
        .filter_map(|candidate| Some((distance(candidate)?, candidate)));
    near.min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// The plugin that `name` was probably meant to be, of those that there are. `is_policy`: other programs'
/// names of such a policy count, too.
pub fn nearest_plugin<'k>(
    name: &str,
    known: impl IntoIterator<Item = &'k str> + Clone,
    is_policy: bool,
) -> Option<&'k str> {
    let ours = Some(name).filter(|_| is_policy).and_then(policy);
    let as_elsewhere = ours.and_then(|ours| known.clone().into_iter().find(|known| *known == ours));
    as_elsewhere.or_else(|| nearest(name, known))
}

/// The policy that ships, by its own name in any spelling or by one that it has elsewhere.
pub(super) fn policy(name: &str) -> Option<&'static str> {
    let bare = |name: &str| name.to_lowercase().replace(['-', '_', ' '], "");
    let name = bare(name);
    let is_it = |(ours, others): &&(&str, &[&str])| bare(ours) == name || others.contains(&&*name);
    POLICIES.iter().find(is_it).map(|(ours, _)| *ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_offered() {
        let known = ["connect_timeout_ms", "retries", "tls", "name"].map(str::to_owned);
        for (key, expected) in [
            ("connect_timeout", Some("connect_timeout_ms")),
            ("Connect-Timeout-Secs", Some("connect_timeout_ms")),
            ("retry", None),
            ("retrys", Some("retries")),
            ("nam", Some("name")),
            ("tsl", Some("tls")),
            ("xyz", None),
            ("tl", Some("tls")),
            ("backends", None),
            ("", None),
        ] {
            let known = known.iter().map(String::as_str);
            assert_eq!(nearest(key, known), expected, "{key}");
        }
    }

    #[test]
    fn a_policy_is_known_by_what_others_call_it() {
        let all = POLICIES.map(|(name, _)| name);
        for (name, expected) in [
            ("leastconn", Some("least_connections")),
            ("least_conn", Some("least_connections")),
            ("LEAST-CONN", Some("least_connections")),
            ("least_conections", Some("least_connections")),
            ("roundrobin", Some("round_robin")),
            ("Round Robin", Some("round_robin")),
            ("static-rr", Some("round_robin")),
            ("ip-hash", Some("ip_hash")),
            ("iphash", Some("ip_hash")),
            ("source", Some("ip_hash")),
            ("uri", Some("consistent_hash")),
            ("RING_HASH", Some("consistent_hash")),
            ("LEAST_REQUEST", Some("power_of_two")),
            ("least_time", Some("least_latency")),
            ("hrw", Some("rendezvous")),
            ("by_tenant", None),
        ] {
            assert_eq!(nearest_plugin(name, all, true), expected, "{name}");
        }
        assert_eq!(nearest_plugin("source", all, false), None);
        assert_eq!(nearest_plugin("leastconn", ["round_robin"], true), None);
    }
}
