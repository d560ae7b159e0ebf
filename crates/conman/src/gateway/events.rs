//! Everything that changes on the fleet, as one stream of server-sent events.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use http::Method;
use http_body_util::BodyExt;
use model::id::HostId;
use model::keys::{Host, HostState};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use super::{Gateway, node_client};
use crate::node::Dialer;

/// Answers with the stream: first what there is, then what changes.
pub(super) fn stream(gateway: Arc<Gateway>) -> Response {
    let (sender, events) = mpsc::channel(64);
    tokio::spawn(follow_fleet(gateway, sender));
    Sse::new(ReceiverStream::new(events))
        .keep_alive(KeepAlive::default())
        .into_response()
}

type Sender = mpsc::Sender<Result<Event, Infallible>>;

async fn send(sender: &Sender, event: &Value) -> Result<(), ()> {
    let name = event["type"].as_str().unwrap_or("event").to_owned();
    let event = Event::default().event(name).data(event.to_string());
    sender.send(Ok(event)).await.map_err(drop)
}

async fn follow_fleet(gateway: Arc<Gateway>, sender: Sender) {
    let mut hosts = gateway.fleet.watch();
    let mut known: BTreeMap<HostId, (Host, AbortOnDropHandle<()>)> = BTreeMap::new();
    loop {
        let now = hosts.borrow_and_update().clone();
        let gone: Vec<HostId> = known
            .keys()
            .filter(|id| !now.contains_key(id))
            .cloned()
            .collect();
        for id in gone {
            known.remove(&id);
            if send(&sender, &json!({"type": "host_gone", "host": id}))
                .await
                .is_err()
            {
                return;
            }
        }
        for host in now.values() {
            let before = known.get(&host.id).map(|(before, _)| before);
            if before == Some(host) {
                continue;
            }
            let draining = host.record.state == HostState::Draining;
            let event = json!({
                "type": "host", "host": host.id, "incarnation": host.incarnation,
                "draining": draining, "capacity": host.record.capacity,
            });
            if send(&sender, &event).await.is_err() {
                return;
            }
            let follower = tokio::spawn(follow_host(
                gateway.config.dialer.clone(),
                host.clone(),
                sender.clone(),
            ));
            known.insert(
                host.id.clone(),
                (host.clone(), AbortOnDropHandle::new(follower)),
            );
        }
        tokio::select! {
            changed = hosts.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

async fn follow_host(dialer: Dialer, host: Host, sender: Sender) {
    let stream = node_client::stream(&dialer, &host, Method::GET, "/node/v1/events", None::<&()>);
    let mut body = match stream.await {
        Ok(stream) => stream.body,
        // A host that is not there tells by a change of its key when it is.
        Err(error) => return tracing::debug!(host = %host.id, ?error, "follow a host"),
    };
    let mut rest = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let Ok(Value::Object(mut event)) = serde_json::from_slice(&line) else {
                continue;
            };
            event.insert("host".to_owned(), json!(host.id));
            if send(&sender, &Value::Object(event)).await.is_err() {
                return;
            }
        }
    }
}
