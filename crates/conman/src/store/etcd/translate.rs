//! From the store's values to etcd's messages and back. All keys are below a prefix, which nobody outside sees.

use model::id::Revision;
use model::store::{Change, KeyValue, Operation, Target, Txn, TxnOutcome};
use prost::bytes::Bytes;

use super::wire;

/// What cannot be an answer of etcd to conman's requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Foreign(pub(super) String);

/// The keys of one fleet in an etcd that may have others.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn below(prefix: String) -> Self {
        Self { prefix }
    }

    pub(super) fn outer(&self, key: &str) -> Bytes {
        format!("{}{key}", self.prefix).into()
    }

    fn inner(&self, key: &Bytes) -> Result<String, Foreign> {
        let text = std::str::from_utf8(key).ok();
        text.and_then(|key| key.strip_prefix(&self.prefix))
            .map(str::to_owned)
            .ok_or_else(|| Foreign(format!("the key {key:?} is not of this fleet")))
    }

    /// The first key and the one after the last of those that start with `prefix`.
    pub(super) fn range(&self, prefix: &str) -> (Bytes, Bytes) {
        let first = self.outer(prefix);
        if first.is_empty() {
            // For etcd a NUL is the first key and, as an end, the end of all keys.
            return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        }
        let mut end = first.to_vec();
        // The last byte of UTF-8 is never 0xff.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        (first, end.into())
    }

    pub(super) fn item(&self, kv: &wire::KeyValue) -> Result<KeyValue, Foreign> {
        let value = std::str::from_utf8(&kv.value)
            .map_err(|_| Foreign(format!("the value of {:?} is no text", kv.key)))?;
        Ok(KeyValue {
            key: self.inner(&kv.key)?,
            value: value.to_owned(),
            create: revision(kv.create_revision),
            modified: revision(kv.mod_revision),
        })
    }

    pub(super) fn txn(&self, txn: &Txn) -> wire::TxnRequest {
        let compare = |compare: &model::store::Compare| {
            let number = number(compare.revision);
            let (target, revision) = match compare.target {
                Target::Create => (
                    wire::CompareTarget::Create,
                    wire::CompareRevision::Create(number),
                ),
                Target::Modified => (
                    wire::CompareTarget::Modified,
                    wire::CompareRevision::Modified(number),
                ),
            };
            wire::Compare {
                target: target as i32,
                key: self.outer(&compare.key),
                revision: Some(revision),
            }
        };
        let operation = |operation: &Operation| match operation {
            Operation::Put { key, value } => wire::Request::Put(wire::PutRequest {
                key: self.outer(key),
                value: value.clone().into(),
            }),
            Operation::Delete { key } => {
                let key = self.outer(key);
                wire::Request::DeleteRange(wire::DeleteRangeRequest { key })
            }
        };
        let read = |compare: &model::store::Compare| {
            wire::Request::Range(wire::RangeRequest {
                key: self.outer(&compare.key),
                ..wire::RangeRequest::default()
            })
        };
        let op = |request| wire::RequestOp {
            request: Some(request),
        };
        wire::TxnRequest {
            compare: txn.compares.iter().map(compare).collect(),
            success: txn.operations.iter().map(operation).map(op).collect(),
            failure: txn.compares.iter().map(read).map(op).collect(),
        }
    }

    pub(super) fn outcome(&self, answer: &wire::TxnResponse) -> Result<TxnOutcome, Foreign> {
        if answer.succeeded {
            return Ok(TxnOutcome::Committed(header(answer.header.as_ref())?));
        }
        let current = answer.responses.iter().map(|response| {
            let kvs = response.range.iter().flat_map(|range| &range.kvs);
            kvs.map(|kv| self.item(kv)).next().transpose()
        });
        Ok(TxnOutcome::Rejected {
            current: current.collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn change(&self, event: &wire::Event) -> Result<Change, Foreign> {
        let kv = event.kv.as_ref();
        let kv = kv.ok_or_else(|| Foreign("an event without a key".to_owned()))?;
        if event.kind == 0 {
            return self.item(kv).map(Change::Put);
        }
        Ok(Change::Delete {
            key: self.inner(&kv.key)?,
            revision: revision(kv.mod_revision),
        })
    }
}

pub(super) fn header(header: Option<&wire::Header>) -> Result<Revision, Foreign> {
    let header = header.ok_or_else(|| Foreign("an answer without a header".to_owned()))?;
    Ok(revision(header.revision))
}

/// etcd's revisions are signed and never negative.
pub(super) fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or(0))
}

pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key_that_is_not_of_it() {
        let keys = Keys::below("/fleet".to_owned());
        let (first, end) = keys.range("/h/");
        assert_eq!(
            (&first[..], &end[..]),
            (&b"/fleet/h/"[..], &b"/fleet/h0"[..])
        );
        let (first, end) = Keys::below(String::new()).range("");
        assert_eq!((&first[..], &end[..]), (&b"\0"[..], &b"\0"[..]));
    }

    #[test]
    fn another_fleets_key_is_foreign() {
        let keys = Keys::below("/fleet".to_owned());
        let kv = |key: &'static str| wire::KeyValue {
            key: Bytes::from_static(key.as_bytes()),
            ..wire::KeyValue::default()
        };
        assert_eq!(keys.item(&kv("/fleet/h/a")).unwrap().key, "/h/a");
        assert!(keys.item(&kv("/other/h/a")).is_err());
    }
}
