//! The rules of the protocol, each with a switch that removes it: for the proof that something notices.
//!
//! A rule whose removal nothing catches is not proven. The switches are only there when the feature `mutants` is built in, and
//! then the variable `CONMAN_MUTANT` of the environment names the one rule that is removed. The tests build it in, by a
//! dev-dependency of `sim`, so that `make test` can remove each rule without a second build. Without the feature,
//! [`removed`] is a constant, and nothing of this is in the program.

/// One rule of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Names the switch.
    pub name: &'static str,
    /// What holds without the switch.
    pub text: &'static str,
}

macro_rules! rules {
    ($($constant:ident = $name:literal: $text:literal;)*) => {
        $(#[doc = $text] pub const $constant: Rule = Rule { name: $name, text: $text };)*
        /// All rules.
        pub const RULES: &[Rule] = &[$($constant),*];
    };
}

rules! {
    DEADLINE_FROM_SEND = "deadline-from-send": "The owner's deadline counts from the sending of a renewal, not from its answer.";
    DEADLINE_ENFORCED = "deadline-enforced": "The keeper is armed with the deadline, and dies at it.";
    STEAL_COMPARES_BEAT = "steal-compares-beat": "A theft compares the beat that was observed.";
    STEAL_WAITS = "steal-waits": "An observer waits for T_STEAL, which is longer than T_HOLD with drift and the kernel's kill.";
    STEAL_AFTER_SAME_BEAT = "steal-after-same-beat": "An observer's patience begins anew with each beat that it sees.";
    STEAL_DRIFT = "steal-drift": "T_STEAL has room for clocks that differ in rate.";
    RELEASE_AFTER_DEATH = "release-after-death": "A repl is given up only after its container is proven dead.";
    EPOCH_CHECKED = "epoch-checked": "An owner lets a session in at its own exact epoch only.";
    EPOCH_RISES = "epoch-rises": "A keeper starts no container at or below an epoch that it has seen.";
    START_BEFORE_DEADLINE = "start-before-deadline": "A keeper starts nothing at or past its deadline.";
    CLAIM_COMPARES_OWNER = "claim-compares-owner": "A claim compares the owner as it was read.";
    CLAIM_COMPARES_HOST = "claim-compares-host": "A claim of an orphan compares that its host is still gone.";
    CLAIM_COMPARES_SELF = "claim-compares-self": "A claim compares the claimer's own registration.";
    CONFIRM_COMPARES_OWNER = "confirm-compares-owner": "What a read says is confirmed by a committed compare before a start.";
    RENEW_COMPARES_SELF = "renew-compares-self": "A renewal compares the host's own registration.";
    DEPART_COMPARES_EPOCH = "depart-compares-epoch": "A release and a hand-off compare the epoch that is given up.";
    HAND_OFF_COMPARES_HEIR = "hand-off-compares-heir": "A hand-off compares the heir's registration.";
    ORPHANS_KILLED = "orphans-killed": "Containers that a new conman finds without a claim are killed.";
    CLAIMS_SINCE_JOIN = "claims-since-join": "A new conman reads its claims no older than its own join.";
    DEAD_NOT_ADOPTED = "dead-not-adopted": "Whoever died before the keeper's list was matched is not adopted from it.";
    NOTHING_BELOW_HIGHEST = "nothing-below-highest": "A gateway routes nothing below the highest epoch that it has seen.";
}

/// Whether a rule is removed.
#[cfg(not(feature = "mutants"))]
pub const fn removed(_: Rule) -> bool {
    false
}

/// Whether a rule is removed.
#[cfg(feature = "mutants")]
pub fn removed(rule: Rule) -> bool {
    static REMOVED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let removed = REMOVED.get_or_init(|| std::env::var("CONMAN_MUTANT").ok());
    removed.as_deref() == Some(rule.name)
}
