use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::StatusCode;
use tokio::sync::watch;

use super::provider::{self, header};
use super::{says, within};
use crate::host::notice::google::Google;
use crate::host::notice::{Seen, Source};
use crate::node::Address;

/// The two keys of a metadata server, with their revisions as etags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keys {
    preempted: (&'static str, u32),
    maintenance: (&'static str, u32),
}

const QUIET: Keys = Keys {
    preempted: ("FALSE", 1),
    maintenance: ("NONE", 1),
};

/// Answers as the metadata server does: at once, or with `wait_for_change` when the etag is another.
async fn metadata(keys: watch::Receiver<Keys>, request: Request) -> Response {
    if header(&request, "metadata-flavor").as_deref() != Some("Google") {
        return StatusCode::FORBIDDEN.into_response();
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let path = request.uri().path().to_owned();
    drop(request);
    let key = |keys: &Keys| match path.as_str() {
        "/computeMetadata/v1/instance/preempted" => Some(keys.preempted),
        "/computeMetadata/v1/instance/maintenance-event" => Some(keys.maintenance),
        _ => None,
    };
    let mut keys = keys;
    let last = query
        .split('&')
        .find_map(|part| part.strip_prefix("last_etag="));
    if let Some(last) = last {
        assert!(query.contains("wait_for_change=true") && query.contains("timeout_sec="));
        let changed = |keys: &Keys| key(keys).is_none_or(|(_, etag)| etag.to_string() != last);
        let _ = keys.wait_for(changed).await;
    }
    let found = key(&keys.borrow());
    match found {
        Some((value, etag)) => {
            let headers = [
                ("metadata-flavor", "Google".to_owned()),
                ("etag", etag.to_string()),
            ];
            (headers, value).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn server(keys: Keys) -> (Address, Arc<watch::Sender<Keys>>) {
    let sender = Arc::new(watch::Sender::new(keys));
    let keys = sender.clone();
    let serve = move |request| metadata(keys.subscribe(), request).boxed();
    (provider::serve(serve).await, sender)
}

/// Both keys are read for the first time, without waiting.
async fn settled(google: &mut Google) {
    for _ in 0..2 {
        assert_eq!(google.look().await.unwrap(), Seen::Nothing);
    }
}

#[tokio::test]
async fn a_preemption_is_waited_for_and_gives_half_a_minute() {
    let (address, keys) = server(QUIET).await;
    let mut google = Google::new(address);
    settled(&mut google).await;
    let waiting = tokio::spawn(async move { google.look().await });
    // It waits on the server by now, or will ask with the etag from before the change.
    keys.send_modify(|keys| keys.preempted = ("TRUE", 2));
    assert_eq!(within(waiting.await.unwrap()), Duration::from_secs(30));
}

#[tokio::test]
async fn a_machine_that_is_preempted_already_is_seen_at_once() {
    let (address, _keys) = server(Keys {
        preempted: ("TRUE", 7),
        ..QUIET
    })
    .await;
    let mut google = Google::new(address);
    loop {
        match google.look().await.unwrap() {
            // The other key was faster.
            Seen::Nothing => {}
            Seen::Notice(notice) => return assert_eq!(notice.id, "preempted"),
        }
    }
}

#[tokio::test]
async fn a_maintenance_that_ends_the_machine_is_a_notice_and_a_migration_is_not() {
    let (address, keys) = server(QUIET).await;
    let mut google = Google::new(address);
    settled(&mut google).await;
    keys.send_modify(|keys| keys.maintenance = ("MIGRATE_ON_HOST_MAINTENANCE", 2));
    assert_eq!(google.look().await.unwrap(), Seen::Nothing);
    keys.send_modify(|keys| keys.maintenance = ("TERMINATE_ON_HOST_MAINTENANCE", 3));
    assert_eq!(within(google.look().await), Duration::from_secs(60));
}

#[tokio::test]
async fn what_is_wrong_with_the_server_is_said() {
    let ill = provider::always(StatusCode::SERVICE_UNAVAILABLE, "later").await;
    assert!(says(&mut Google::new(ill)).await.contains("503"));
    // A proxy, or a service of another kind on the same address.
    let other = provider::always(StatusCode::OK, "FALSE").await;
    let said = says(&mut Google::new(other)).await;
    assert!(said.contains("not a metadata server's"), "{said}");
    let said = says(&mut Google::new(provider::nobody().await)).await;
    assert!(said.starts_with("unreachable: connect to "), "{said}");
    let said = says(&mut Google::new(provider::half_answers().await)).await;
    assert!(said.starts_with("unreachable: "), "{said}");
}

#[tokio::test]
async fn a_value_that_nobody_knows_is_not_taken_for_quiet() {
    let (address, _keys) = server(Keys {
        preempted: ("PERHAPS", 1),
        ..QUIET
    })
    .await;
    let mut google = Google::new(address);
    let mut looks = vec![google.look().await, google.look().await];
    looks.retain(Result::is_err);
    assert!(
        looks[0]
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("PERHAPS")
    );
}
