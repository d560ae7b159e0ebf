use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{Method, StatusCode};

use super::provider::{self, header};
use super::{says, urgency, within};
use crate::host::notice::amazon::Amazon;
use crate::host::notice::{Seen, Source, Urgency};
use crate::node::Address;

/// The service: which token it takes, and what it has to say.
#[derive(Default)]
struct Service {
    tokens_given: u32,
    action: Option<String>,
    rebalance: Option<String>,
}

type Shared = Arc<Mutex<Service>>;

fn answer(service: &Shared, request: &Request) -> Response {
    let mut service = service.lock().unwrap();
    if request.method() == Method::PUT && request.uri().path() == "/latest/api/token" {
        let ttl = header(request, "x-aws-ec2-metadata-token-ttl-seconds");
        assert!((1..=21_600).contains(&ttl.unwrap().parse::<u32>().unwrap()));
        service.tokens_given += 1;
        return format!("token-{}", service.tokens_given).into_response();
    }
    let valid = format!("token-{}", service.tokens_given);
    if header(request, "x-aws-ec2-metadata-token") != Some(valid) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let found = match request.uri().path() {
        "/latest/meta-data/spot/instance-action" => &service.action,
        "/latest/meta-data/events/recommendations/rebalance" => &service.rebalance,
        _ => &None,
    };
    match found {
        Some(text) => text.clone().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn server() -> (Address, Shared) {
    let service = Shared::default();
    let shared = service.clone();
    let serve = move |request| std::future::ready(answer(&shared, &request)).boxed();
    (provider::serve(serve).await, service)
}

fn in_seconds(seconds: i64) -> String {
    let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    time.to_string()
}

fn action(seconds: i64) -> Option<String> {
    let time = in_seconds(seconds);
    Some(format!(r#"{{"action": "terminate", "time": "{time}"}}"#))
}

#[tokio::test]
async fn an_interruption_is_a_notice_until_its_time() {
    let (address, service) = server().await;
    let mut amazon = Amazon::new(address);
    assert_eq!(amazon.look().await.unwrap(), Seen::Nothing);
    service.lock().unwrap().action = action(90);
    let left = within(amazon.look().await);
    assert!(
        left <= Duration::from_secs(90) && left > Duration::from_secs(60),
        "{left:?}"
    );
    // One token served all of it.
    assert_eq!(service.lock().unwrap().tokens_given, 1);
}

#[tokio::test]
async fn a_time_that_is_past_or_far_is_bounded() {
    let (address, service) = server().await;
    let mut amazon = Amazon::new(address);
    service.lock().unwrap().action = action(-5);
    assert_eq!(within(amazon.look().await), Duration::ZERO);
    service.lock().unwrap().action = action(86_400);
    assert_eq!(within(amazon.look().await), Duration::from_secs(120));
}

#[tokio::test]
async fn a_rebalance_recommendation_is_advice_and_an_interruption_goes_before_it() {
    let (address, service) = server().await;
    let mut amazon = Amazon::new(address);
    let time = in_seconds(0);
    service.lock().unwrap().rebalance = Some(format!(r#"{{"noticeTime": "{time}"}}"#));
    let first = amazon.look().await;
    assert_eq!(urgency(first), Urgency::Advice);
    service.lock().unwrap().action = action(60);
    assert!(matches!(urgency(amazon.look().await), Urgency::Gone(_)));
}

#[tokio::test]
async fn a_token_that_ran_out_is_replaced_in_the_same_look() {
    let (address, service) = server().await;
    let mut amazon = Amazon::new(address);
    assert_eq!(amazon.look().await.unwrap(), Seen::Nothing);
    // From here on the service wants another one.
    service.lock().unwrap().tokens_given += 1;
    service.lock().unwrap().action = action(60);
    assert!(matches!(urgency(amazon.look().await), Urgency::Gone(_)));
    assert_eq!(service.lock().unwrap().tokens_given, 3);
}

#[tokio::test]
async fn what_is_wrong_with_the_service_is_said() {
    // It is switched off for this machine.
    let off = provider::always(StatusCode::FORBIDDEN, "").await;
    assert!(says(&mut Amazon::new(off)).await.contains("403"));
    let ill = provider::always(StatusCode::SERVICE_UNAVAILABLE, "").await;
    assert!(says(&mut Amazon::new(ill)).await.contains("503"));
    // A token, and nothing else, for every question.
    let odd = provider::always(StatusCode::OK, "token").await;
    let said = says(&mut Amazon::new(odd)).await;
    assert!(said.starts_with("not understood: "), "{said}");
    let said = says(&mut Amazon::new(provider::nobody().await)).await;
    assert!(said.starts_with("unreachable: connect to "), "{said}");
    let said = says(&mut Amazon::new(provider::half_answers().await)).await;
    assert!(said.starts_with("unreachable: "), "{said}");
}

#[tokio::test]
async fn a_service_that_takes_no_token_is_not_asked_for_ever() {
    let unwilling = provider::serve(|request: Request| {
        let answer = match *request.method() {
            Method::PUT => "token".into_response(),
            _ => StatusCode::UNAUTHORIZED.into_response(),
        };
        std::future::ready(answer).boxed()
    })
    .await;
    assert!(says(&mut Amazon::new(unwilling)).await.contains("401"));
}
