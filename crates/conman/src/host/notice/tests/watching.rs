//! What a host makes of its sources, whatever they speak; and the sources that need no server.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use model::host::DrainOrder;
use model::wire::node::DrainReport;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use super::within;
use crate::host::notice::file::File;
use crate::host::notice::terminate::Terminated;
use crate::host::notice::{
    Kind, Notice, RETRY, Retry, Seen, Source, SourceError, Urgency, called, watch,
};
use crate::host::{Drains, HostMetrics};

/// A source that says what it was told to, and then nothing for ever.
struct Scripted {
    script: VecDeque<Result<Seen, SourceError>>,
    acknowledged: mpsc::UnboundedSender<String>,
}

impl Source for Scripted {
    fn kind(&self) -> Kind {
        Kind::Azure
    }

    fn look(&mut self) -> BoxFuture<'_, Result<Seen, SourceError>> {
        async move {
            match self.script.pop_front() {
                Some(seen) => seen,
                None => std::future::pending().await,
            }
        }
        .boxed()
    }

    fn pace(&self) -> Duration {
        Duration::ZERO
    }

    fn acknowledge<'a>(&'a mut self, notice: &'a Notice) -> BoxFuture<'a, Result<(), SourceError>> {
        let _ = self.acknowledged.send(notice.id.clone());
        std::future::ready(Ok(())).boxed()
    }
}

const SOON: Retry = Retry::new(Duration::from_micros(10), Duration::from_millis(1));

fn notice(id: &str, urgency: Urgency) -> Result<Seen, SourceError> {
    Ok(Seen::Notice(Notice {
        id: id.to_owned(),
        urgency,
    }))
}

fn unreachable() -> Result<Seen, SourceError> {
    Err(SourceError::Unreachable("gone".to_owned()))
}

/// Watches until a notice is acknowledged; gives the drains that were ordered, and the metrics.
async fn watched(
    script: Vec<Result<Seen, SourceError>>,
    unfinished: Vec<u32>,
) -> (Vec<DrainOrder>, String, String) {
    let mut registry = Registry::default();
    let metrics = HostMetrics::register(&mut registry);
    let (acknowledged, mut acknowledgements) = mpsc::unbounded_channel();
    let source = Scripted {
        script: script.into(),
        acknowledged,
    };
    let orders = Arc::new(Mutex::new(vec![]));
    let unfinished = Mutex::new(VecDeque::from(unfinished));
    let drain = |order| {
        orders.lock().unwrap().push(order);
        let report = DrainReport {
            unfinished: unfinished.lock().unwrap().pop_front().unwrap(),
            ..DrainReport::default()
        };
        std::future::ready(Some(report))
    };
    let drains = Drains {
        operator_grace: Duration::from_secs(7),
        preemption_grace: Duration::from_secs(1),
    };
    let id = tokio::select! {
        () = watch(Box::new(source), drains, SOON, &metrics, drain) => unreachable!("it looks for ever"),
        id = acknowledgements.recv() => id.unwrap(),
    };
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let orders = orders.lock().unwrap().clone();
    (orders, id, text)
}

#[test]
fn a_source_that_fails_is_left_alone_for_longer_each_time_and_never_for_long() {
    let mut retry = RETRY;
    let pauses: Vec<u128> = (0..8).map(|_| retry.failed().as_millis()).collect();
    assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
    retry.worked();
    assert_eq!(retry.failed().as_millis(), 100);
}

#[tokio::test]
async fn a_notice_is_acted_on_once_after_any_number_of_failures() {
    let gone = Urgency::Gone(Duration::from_secs(30));
    let mut script: Vec<_> = (0..10).map(|_| unreachable()).collect();
    script.push(Ok(Seen::Nothing));
    script.push(notice("one", gone));
    script.push(notice("one", gone));
    let (orders, acknowledged, metrics) = watched(script, vec![0]).await;
    let expected = DrainOrder {
        grace: Duration::from_secs(1),
        budget: Some(Duration::from_secs(30)),
    };
    assert_eq!((orders, acknowledged.as_str()), (vec![expected], "one"));
    for line in [
        "conman_notice_source_failures_total{source=\"azure\"} 10",
        "conman_notice_source_up{source=\"azure\"} 1",
        "conman_notices_total{source=\"azure\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[tokio::test]
async fn advice_is_followed_in_peace_and_only_an_empty_machine_is_given_up() {
    let script = vec![
        notice("advice", Urgency::Advice),
        notice("gone", Urgency::Gone(Duration::from_secs(90))),
    ];
    let (orders, acknowledged, _) = watched(script, vec![3, 0]).await;
    let advice = DrainOrder {
        grace: Duration::from_secs(7),
        budget: None,
    };
    assert_eq!((orders.len(), orders[0]), (2, advice));
    // The first drain left something alive: nobody is told to go ahead.
    assert_eq!(acknowledged, "gone");
}

#[tokio::test]
async fn a_file_is_a_notice_when_it_appears_and_again_when_it_does_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notice");
    let mut file = File::new(path.clone());
    // Something else happens there.
    let other = directory.path().join("other");
    let (seen, ()) = tokio::join!(file.look(), async { std::fs::write(other, "").unwrap() });
    assert_eq!(seen.unwrap(), Seen::Nothing);
    std::fs::write(&path, "90s\n").unwrap();
    assert_eq!(within(file.look().await), Duration::from_secs(90));
    let (seen, ()) = tokio::join!(file.look(), async { std::fs::remove_file(&path).unwrap() });
    assert_eq!(seen.unwrap(), Seen::Nothing);
    let staged = directory.path().join("staged");
    std::fs::write(&staged, "").unwrap();
    let looks = async {
        loop {
            if let Seen::Notice(notice) = file.look().await.unwrap() {
                return notice;
            }
        }
    };
    let (notice, ()) = tokio::join!(looks, async { std::fs::rename(staged, &path).unwrap() });
    assert_eq!(notice.urgency, Urgency::Gone(Duration::from_secs(30)));
    assert_eq!(notice.id, "appearance 2");
}

#[tokio::test]
async fn a_file_in_a_directory_that_is_not_there_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = File::new(directory.path().join("none/notice"));
    let said = super::says(&mut file).await;
    assert!(said.contains("none/notice"), "{said}");
}

#[tokio::test]
async fn sigterm_is_a_notice() {
    let mut terminated = Terminated::new().unwrap();
    let this = rustix::process::getpid();
    rustix::process::kill_process(this, rustix::process::Signal::TERM).unwrap();
    assert_eq!(within(terminated.look().await), model::timing::STOP_MAX);
}

#[tokio::test]
async fn a_call_is_a_notice_each_time() {
    let (caller, mut called) = called();
    caller.call(Some(Duration::from_secs(5)));
    caller.call(None);
    assert_eq!(within(called.look().await), Duration::from_secs(5));
    assert_eq!(within(called.look().await), Duration::from_secs(30));
}
