//! The keys of the store, their values, and the transactions that the protocol allows.
//!
//! ```text
//! /h/<host>  HostRecord   create revision = incarnation
//! /b/<host>  beat counter
//! /r/<repl>  OwnerRecord  mod revision = epoch; never rewritten while owned
//! /s/<repl>  Spec
//! ```
//!
//! Every write of the protocol is one of the functions below or [`crate::departure::transaction`] (release and
//! hand-off), and nothing else writes these keys. A repl is *free*
//! when `/r/` is absent or names an incarnation that is no longer the one in `/h/`: deleting one host key frees all of its repls at once.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, HostId, Incarnation, ReplId, Revision};
use crate::mutant::{
    CLAIM_COMPARES_HOST, CLAIM_COMPARES_OWNER, CLAIM_COMPARES_SELF, CONFIRM_COMPARES_OWNER,
    RENEW_COMPARES_SELF, Rule, STEAL_COMPARES_BEAT, removed,
};
use crate::store::{Compare, KeyValue, Operation, Target, Txn};

/// The prefix of the hosts' keys.
pub const HOSTS: &str = "/h/";
/// The prefix of the beats' keys.
pub const BEATS: &str = "/b/";
/// The prefix of the owners' keys.
pub const OWNERS: &str = "/r/";
/// The prefix of the specs' keys.
pub const SPECS: &str = "/s/";

/// `/h/<host>`
pub fn host(id: &HostId) -> String {
    format!("{HOSTS}{id}")
}
/// `/b/<host>`
pub fn beat(id: &HostId) -> String {
    format!("{BEATS}{id}")
}
/// `/r/<repl>`
pub fn owner(id: &ReplId) -> String {
    format!("{OWNERS}{id}")
}
/// `/s/<repl>`
pub fn spec(id: &ReplId) -> String {
    format!("{SPECS}{id}")
}

/// The value of `/h/<host>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Where the host's node API is: `unix:/path` or `tcp:host:port`.
    pub address: String,
    /// The kernel's boot id: tells a restarted machine from a restarted process.
    pub boot_id: String,
    /// Whether it takes new repls.
    pub state: HostState,
    /// How many containers it carries at the most.
    pub capacity: u32,
    /// Rises with each start of conman on this registration, so that a restart is an event to watchers.
    pub process: u32,
}

/// Whether a host takes new repls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Takes new repls.
    Active,
    /// Serves what it still has, takes nothing new.
    Draining,
}

/// The value of `/r/<repl>`. The nonce tells two claims of one host apart when a commit is ambiguous.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRecord {
    /// The owner.
    pub host: HostId,
    /// Which registration of it.
    pub incarnation: Incarnation,
    /// Drawn afresh for each claim.
    pub nonce: u64,
}

/// A host as read from the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub id: HostId,
    /// Its registration.
    pub incarnation: Incarnation,
    /// What it says of itself.
    pub record: HostRecord,
}

#[cfg(test)]
impl Host {
    /// Any host of this name, which is in this state.
    pub(crate) fn example(id: &str, state: HostState) -> Self {
        Self {
            id: id.parse().unwrap(),
            incarnation: Incarnation(1),
            record: HostRecord {
                address: "unix:/x".into(),
                boot_id: String::new(),
                state,
                capacity: 9,
                process: 1,
            },
        }
    }
}

/// An owner as read from the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The repl.
    pub repl: ReplId,
    /// The fencing token.
    pub epoch: Epoch,
    /// Who.
    pub record: OwnerRecord,
}

/// A key whose name or value is not of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store's key {key:?} does not hold what conman writes there")]
pub struct ForeignKey {
    /// The key.
    pub key: String,
}

/// Reads a host's key. `decode` parses the value (the model has no JSON of its own).
///
/// # Errors
/// [`ForeignKey`] when the name or the value is not of this protocol.
pub fn read_host(
    item: &KeyValue,
    decode: impl FnOnce(&str) -> Option<HostRecord>,
) -> Result<Host, ForeignKey> {
    let foreign = || ForeignKey {
        key: item.key.clone(),
    };
    let id = item.key.strip_prefix(HOSTS).and_then(|id| id.parse().ok());
    Ok(Host {
        id: id.ok_or_else(foreign)?,
        incarnation: Incarnation(item.create.0),
        record: decode(&item.value).ok_or_else(foreign)?,
    })
}

/// Reads an owner's key, as [`read_host`] does a host's.
///
/// # Errors
/// [`ForeignKey`] when the name or the value is not of this protocol.
pub fn read_owner(
    item: &KeyValue,
    decode: impl FnOnce(&str) -> Option<OwnerRecord>,
) -> Result<Owner, ForeignKey> {
    let foreign = || ForeignKey {
        key: item.key.clone(),
    };
    let repl = item.key.strip_prefix(OWNERS).and_then(|id| id.parse().ok());
    Ok(Owner {
        repl: repl.ok_or_else(foreign)?,
        epoch: Epoch(item.modified.0),
        record: decode(&item.value).ok_or_else(foreign)?,
    })
}

fn equals(key: String, target: Target, revision: u64) -> Compare {
    Compare {
        key,
        target,
        revision: Revision(revision),
    }
}

/// A compare that a rule asks for. Without the rule one that always holds stands in its place, for the order of the
/// compares is that of the answer.
pub(crate) fn required(rule: Rule, compare: Compare) -> Compare {
    if removed(rule) {
        equals("/never".to_owned(), Target::Create, 0)
    } else {
        compare
    }
}

fn put(key: String, value: String) -> Operation {
    Operation::Put { key, value }
}

/// Register: `/h/me` absent, then put `/h/me` and `/b/me`.
pub fn register(me: &HostId, record: String, first_beat: String) -> Txn {
    Txn {
        compares: vec![equals(host(me), Target::Create, 0)],
        operations: vec![put(host(me), record), put(beat(me), first_beat)],
    }
}

/// Resume: a conman that comes back to its own registration says so and beats, in one.
pub fn resume(me: &HostId, mine: Incarnation, record: String, next_beat: String) -> Txn {
    Txn {
        compares: vec![equals(host(me), Target::Create, mine.0)],
        operations: vec![put(host(me), record), put(beat(me), next_beat)],
    }
}

/// Rewrites what a host says of itself, its registration unchanged.
pub fn update_host(me: &HostId, mine: Incarnation, record: String) -> Txn {
    Txn {
        compares: vec![equals(host(me), Target::Create, mine.0)],
        operations: vec![put(host(me), record)],
    }
}

/// Renew: my registration stands, then put `/b/me`.
pub fn renew(me: &HostId, mine: Incarnation, next_beat: String) -> Txn {
    let registered = equals(host(me), Target::Create, mine.0);
    Txn {
        compares: vec![required(RENEW_COMPARES_SELF, registered)],
        operations: vec![put(beat(me), next_beat)],
    }
}

/// What a claimer has read of a repl's owner, and why the repl is free by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Free<'a> {
    /// `/r/X` was absent.
    Absent,
    /// `/r/X` named an incarnation that is no longer in `/h/`.
    Orphan {
        /// The owner as read.
        owner: &'a Owner,
        /// The create revision of `/h/<its host>` as read: absent, or a later registration.
        host_create: Revision,
    },
}

/// Whether the repl is free, by what was read of its owner and of that owner's host.
pub fn freedom(owner: Option<&Owner>, host_create: Revision) -> Option<Free<'_>> {
    match owner {
        None => Some(Free::Absent),
        Some(owner) if owner.record.incarnation.0 != host_create.0 => {
            Some(Free::Orphan { owner, host_create })
        }
        Some(_) => None,
    }
}

/// Claim: `/r/X` as read, my registration stands (the first compare), X free, and its spec not deleted
/// since it was read; then put `/r/X`.
pub fn claim(
    repl: &ReplId,
    free: Free<'_>,
    spec_create: Revision,
    me: &HostId,
    mine: Incarnation,
    record: String,
) -> Txn {
    let mut compares = vec![
        required(
            CLAIM_COMPARES_SELF,
            equals(host(me), Target::Create, mine.0),
        ),
        equals(spec(repl), Target::Create, spec_create.0),
    ];
    match free {
        Free::Absent => {
            let absent = equals(owner(repl), Target::Modified, 0);
            compares.push(required(CLAIM_COMPARES_OWNER, absent));
        }
        Free::Orphan {
            owner: read,
            host_create,
        } => {
            let as_read = equals(owner(repl), Target::Modified, read.epoch.0);
            compares.push(required(CLAIM_COMPARES_OWNER, as_read));
            // The orphan of an earlier registration of my own is covered by the first compare.
            if read.record.host != *me {
                let its_host = host(&read.record.host);
                let gone = equals(its_host, Target::Create, host_create.0);
                compares.push(required(CLAIM_COMPARES_HOST, gone));
            }
        }
    }
    Txn {
        compares,
        operations: vec![put(owner(repl), record)],
    }
}

/// Confirm: the repls are mine at these epochs, by a committed compare and not by a read that may be stale. My
/// registration is the first compare, the repls' follow in order. At most
/// [`crate::departure::TXN_OPERATIONS_MAX`] less one of them.
/// Beats on the way, for a transaction that writes nothing is only a read.
pub fn confirm(
    repls: &[(ReplId, Epoch)],
    me: &HostId,
    mine: Incarnation,
    next_beat: String,
) -> Txn {
    let mut txn = renew(me, mine, next_beat);
    let owned = repls
        .iter()
        .map(|(repl, epoch)| equals(owner(repl), Target::Modified, epoch.0))
        .map(|owned| required(CONFIRM_COMPARES_OWNER, owned));
    txn.compares.extend(owned);
    txn
}

/// Steal a silent host: its beat unchanged since observed and its registration as read; then delete both
/// of its keys, which frees all of its repls.
pub fn steal(silent: &HostId, incarnation: Incarnation, beat_modified: Revision) -> Txn {
    Txn {
        compares: vec![
            required(
                STEAL_COMPARES_BEAT,
                equals(beat(silent), Target::Modified, beat_modified.0),
            ),
            equals(host(silent), Target::Create, incarnation.0),
        ],
        operations: vec![
            Operation::Delete { key: beat(silent) },
            Operation::Delete { key: host(silent) },
        ],
    }
}

/// Retire: a host whose containers are all proven dead gives up its own registration.
pub fn retire(me: &HostId, mine: Incarnation) -> Txn {
    Txn {
        compares: vec![equals(host(me), Target::Create, mine.0)],
        operations: vec![
            Operation::Delete { key: beat(me) },
            Operation::Delete { key: host(me) },
        ],
    }
}
