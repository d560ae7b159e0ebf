//! Each source against a small server that speaks its provider's protocol, with its waiting and its errors.

mod amazon;
mod azure;
mod google;
mod provider;
mod watching;

use std::time::Duration;

use super::{Seen, Source, SourceError, Urgency};

/// What a source says of a service that is ill.
async fn says(source: &mut impl Source) -> String {
    let error = source.look().await.unwrap_err();
    error.to_string()
}

fn urgency(seen: Result<Seen, SourceError>) -> Urgency {
    match seen {
        Ok(Seen::Notice(notice)) => notice.urgency,
        other => panic!("no notice: {other:?}"),
    }
}

/// How long a machine has by a notice.
fn within(seen: Result<Seen, SourceError>) -> Duration {
    match urgency(seen) {
        Urgency::Gone(within) => within,
        Urgency::Advice => panic!("only advice"),
    }
}
