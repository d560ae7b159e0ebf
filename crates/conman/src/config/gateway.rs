//! The keys of the gateway that say whom it serves.

use super::store::TextList;
use super::{ConfigError, bad};

/// The keys as they were given.
#[derive(Default)]
pub(super) struct GatewayKeys {
    pub(super) api_names: Option<TextList>,
}

/// Whom the gateway serves, and as whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gateway {
    /// The API's own names, besides addresses and `localhost`.
    pub api_names: Vec<String>,
}

impl GatewayKeys {
    pub(super) fn resolve(self) -> Result<Gateway, ConfigError> {
        let api_names = self.api_names.map_or(Vec::new(), TextList::into_vec);
        if let Some(name) = api_names.iter().find(|name| !is_name(name)) {
            return Err(bad(
                "api_names",
                format!("{name:?} is not a name without a port, as in fleet.example"),
            ));
        }
        Ok(Gateway { api_names })
    }
}

fn is_name(text: &str) -> bool {
    let is_good = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    !text.is_empty() && text.chars().all(is_good)
}
