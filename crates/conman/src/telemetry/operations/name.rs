//! What operations are and what they are at: closed lists, for labels and for people.

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is done to a repl.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[schema(as = OperationKind)]
pub enum Kind {
    /// A host makes it its own in the store.
    Claim,
    /// A host starts its container.
    Start,
    /// A host ends its container, until death is proven.
    Kill,
    /// A host gives it up in the store, or hands it off.
    Release,
    /// A gateway finds a way into it.
    Route,
    /// A command runs in it.
    Exec,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] = [
        Kind::Claim,
        Kind::Start,
        Kind::Kill,
        Kind::Release,
        Kind::Route,
        Kind::Exec,
    ];

    /// As people and labels have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Claim => "claim",
            Kind::Start => "start",
            Kind::Kill => "kill",
            Kind::Release => "release",
            Kind::Route => "route",
            Kind::Exec => "exec",
        }
    }
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

/// What an operation is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = OperationStage)]
#[repr(u8)]
pub enum Stage {
    /// Nothing that has a name.
    Begun,
    /// It waits for its turn among others of its kind.
    Turn,
    /// It waits for the store.
    Store,
    /// It waits for the runtime.
    Runtime,
    /// It waits for the kernel's word that all processes are dead.
    Proof,
    /// It waits for a way into the container: for the store, for hosts, for what moves.
    Way,
    /// It waits for the program in the container.
    Program,
}

impl Stage {
    const ALL: [Stage; 7] = [
        Stage::Begun,
        Stage::Turn,
        Stage::Store,
        Stage::Runtime,
        Stage::Proof,
        Stage::Way,
        Stage::Program,
    ];

    pub(super) fn of_number(number: u8) -> Self {
        let known = Self::ALL.get(usize::from(number));
        known.copied().unwrap_or(Stage::Begun)
    }

    /// As people have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Begun => "begun",
            Stage::Turn => "turn",
            Stage::Store => "store",
            Stage::Runtime => "runtime",
            Stage::Proof => "proof",
            Stage::Way => "way",
            Stage::Program => "program",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_found_by_its_number() {
        for stage in Stage::ALL {
            assert_eq!(Stage::of_number(stage as u8), stage);
        }
        assert_eq!(Stage::of_number(200), Stage::Begun);
    }

    #[test]
    fn names_are_those_of_the_json() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::json!(kind), kind.as_str());
        }
        for stage in Stage::ALL {
            assert_eq!(serde_json::json!(stage), stage.as_str());
        }
    }
}
