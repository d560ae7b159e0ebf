use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::provider::{self, header};
use super::{says, within};
use crate::host::notice::azure::Azure;
use crate::host::notice::{Notice, Seen, Source, Urgency};
use crate::node::Address;

#[derive(Default)]
struct Service {
    incarnation: u64,
    events: Vec<Value>,
    started: Vec<Value>,
}

type Shared = Arc<Mutex<Service>>;

async fn answer(service: Shared, request: Request) -> Response {
    if header(&request, "metadata").as_deref() != Some("true") {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let query = request.uri().query().unwrap_or_default();
    assert!(query.contains("api-version="));
    match (request.method().clone(), request.uri().path()) {
        (Method::GET, "/metadata/instance/compute/name") => "vm-7\n".into_response(),
        (Method::GET, "/metadata/scheduledevents") => {
            let service = service.lock().unwrap();
            let document = json!({
                "DocumentIncarnation": service.incarnation, "Events": service.events,
            });
            document.to_string().into_response()
        }
        (Method::POST, "/metadata/scheduledevents") => {
            let body = axum::body::to_bytes(request.into_body(), 4096)
                .await
                .unwrap();
            let asked: Value = serde_json::from_slice(&body).unwrap();
            service.lock().unwrap().started.push(asked);
            StatusCode::OK.into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn server() -> (Address, Shared) {
    let service = Shared::default();
    let shared = service.clone();
    let serve = move |request| answer(shared.clone(), request).boxed();
    (provider::serve(serve).await, service)
}

fn event(id: &str, kind: &str, machine: &str, not_before: &str) -> Value {
    json!({
        "EventId": id, "EventStatus": "Scheduled", "EventType": kind, "ResourceType": "VirtualMachine",
        "Resources": [machine], "NotBefore": not_before, "Description": "", "EventSource": "Platform",
        "DurationInSeconds": -1,
    })
}

fn in_seconds(seconds: i64) -> String {
    let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

impl Service {
    fn announce(&mut self, events: Vec<Value>) {
        self.events = events;
        self.incarnation += 1;
    }
}

#[tokio::test]
async fn a_preemption_is_a_notice_and_is_acknowledged() {
    let (address, service) = server().await;
    let mut azure = Azure::new(address);
    assert_eq!(azure.look().await.unwrap(), Seen::Nothing);
    let preempt = event("e-1", "Preempt", "vm-7", &in_seconds(30));
    service.lock().unwrap().announce(vec![preempt]);
    let left = within(azure.look().await);
    assert!(
        left <= Duration::from_secs(30) && left > Duration::from_secs(5),
        "{left:?}"
    );
    let notice = Notice {
        id: "e-1".to_owned(),
        urgency: Urgency::Gone(left),
    };
    azure.acknowledge(&notice).await.unwrap();
    let started = json!({"StartRequests": [{"EventId": "e-1"}]});
    assert_eq!(service.lock().unwrap().started, [started]);
}

#[tokio::test]
async fn events_of_others_and_pauses_are_no_notice_and_the_soonest_counts() {
    let (address, service) = server().await;
    let mut azure = Azure::new(address);
    let far = in_seconds(800);
    service.lock().unwrap().announce(vec![
        event("e-1", "Preempt", "vm-8", ""),
        event("e-2", "Freeze", "vm-7", ""),
    ]);
    assert_eq!(azure.look().await.unwrap(), Seen::Nothing);
    service.lock().unwrap().announce(vec![
        event("e-3", "Redeploy", "vm-7", &far),
        event("e-4", "Preempt", "vm-7", ""),
        event("e-5", "Reboot", "vm-7", &far),
    ]);
    // The one that has begun says no time any more.
    let Seen::Notice(notice) = azure.look().await.unwrap() else {
        panic!("no notice");
    };
    assert_eq!(notice.id, "e-4");
    assert_eq!(notice.urgency, Urgency::Gone(Duration::from_secs(30)));
}

#[tokio::test]
async fn a_document_that_was_read_is_not_read_again() {
    let (address, service) = server().await;
    let mut azure = Azure::new(address);
    assert_eq!(azure.look().await.unwrap(), Seen::Nothing);
    // Without a new incarnation it is the same document, whatever it has in it.
    service.lock().unwrap().events = vec![json!("no event at all")];
    let said = says(&mut azure).await;
    assert!(said.starts_with("not understood: "), "{said}");
    service.lock().unwrap().events = vec![event("e-1", "Preempt", "vm-7", "")];
    assert_eq!(azure.look().await.unwrap(), Seen::Nothing);
}

#[tokio::test]
async fn what_is_wrong_with_the_service_is_said() {
    let (address, service) = server().await;
    let unreadable = event("e-1", "Preempt", "vm-7", "tomorrow");
    service.lock().unwrap().announce(vec![unreadable]);
    let said = says(&mut Azure::new(address)).await;
    assert!(said.contains("NotBefore"), "{said}");
    let ill = provider::always(StatusCode::SERVICE_UNAVAILABLE, "").await;
    assert!(says(&mut Azure::new(ill)).await.contains("503"));
    let gone = provider::always(StatusCode::NOT_FOUND, "").await;
    assert!(says(&mut Azure::new(gone)).await.contains("404"));
    let said = says(&mut Azure::new(provider::nobody().await)).await;
    assert!(said.starts_with("unreachable: connect to "), "{said}");
    let said = says(&mut Azure::new(provider::half_answers().await)).await;
    assert!(said.starts_with("unreachable: "), "{said}");
}
