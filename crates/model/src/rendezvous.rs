//! Rendezvous hashing: everybody ranks the same candidates for a key in the same order, with nothing agreed.

/// The weight of `candidate` for `key`: the highest wins. FNV-1a over both, then a finalizer (splitmix64),
/// for FNV alone spreads its last bytes too little. The same on every machine and in every version.
pub fn rendezvous(key: &str, candidate: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    // A byte that is in no name keeps ("ab", "c") apart from ("a", "bc").
    for byte in key.bytes().chain([0xff]).chain(candidate.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::rendezvous;

    #[test]
    fn ranks_spread_evenly_and_survive_the_loss_of_a_candidate() {
        let hosts = ["host-1", "host-2", "host-3"];
        let best = |repl: &str, hosts: &[&'static str]| {
            hosts
                .iter()
                .copied()
                .max_by_key(|host| rendezvous(repl, host))
        };
        let mut counts = std::collections::BTreeMap::new();
        for number in 0..3_000 {
            let repl = format!("repl-{number}");
            let first = best(&repl, &hosts);
            *counts.entry(first).or_insert(0) += 1;
            if first != Some("host-2") {
                assert_eq!(best(&repl, &["host-1", "host-3"]), first, "{repl} moved");
            }
        }
        assert!(
            counts.values().all(|count| (850..1_150).contains(count)),
            "{counts:?}"
        );
    }
}
