//! What a host says when it does not open.

use crate::api::{Refusal, RefusalCode};
use crate::id::{HostId, ReplId};
use crate::wire::node::{NodeRefusal, OwnerHint};

pub(super) fn refusal(code: RefusalCode, message: String) -> NodeRefusal {
    NodeRefusal {
        refusal: Refusal::new(code, message),
        hint: None,
    }
}

pub(super) fn fenced() -> NodeRefusal {
    refusal(
        RefusalCode::Fenced,
        "this host has lost its lease; the repl starts elsewhere".to_owned(),
    )
}

pub(super) fn exited_at_once(repl: &ReplId) -> NodeRefusal {
    refusal(
        RefusalCode::ExitedAtOnce,
        format!("the program of {repl} ended as soon as it had started"),
    )
}

pub(super) fn no_keeper() -> NodeRefusal {
    refusal(
        RefusalCode::NoCapacity,
        "this host has no keeper at the moment".to_owned(),
    )
}

pub(super) fn draining(me: &HostId) -> NodeRefusal {
    refusal(RefusalCode::Draining, format!("{me} is draining"))
}

pub(super) fn no_capacity(me: &HostId, capacity: u32) -> NodeRefusal {
    refusal(
        RefusalCode::NoCapacity,
        format!("{me} carries its {capacity} containers"),
    )
}

pub(super) fn not_owner(repl: &ReplId, hint: Option<OwnerHint>) -> NodeRefusal {
    NodeRefusal {
        refusal: Refusal::new(
            RefusalCode::NotOwner,
            format!("{repl} is not on this host at that epoch"),
        ),
        hint,
    }
}
