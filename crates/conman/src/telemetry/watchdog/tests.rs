use std::sync::Mutex as StdMutex;
use std::sync::mpsc;

use super::*;
use crate::telemetry::operations::Stage;

const PATIENCE: Duration = Duration::from_millis(1);
/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn watched(operations: &Operations, fence: Option<Fence>) -> Watched {
    Watched {
        host: Some("h1".into()),
        operations: operations.clone(),
        fence,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_overdue_is_told_to_end() {
    let operations = Operations::default();
    let watchdog = Watchdog::start(vec![watched(&operations, None)], None).unwrap();
    let operation = operations.begin(Kind::Claim, "a", PATIENCE);
    let never = Stage::Store.of(std::future::pending::<()>());
    let ended = tokio::time::timeout(LONG, operation.run(never)).await;
    let given_up = ended.unwrap().unwrap_err();
    assert_eq!((given_up.kind, given_up.stage), (Kind::Claim, Stage::Store));
    assert!(watchdog.verdict().is_good());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_listen_is_fenced_and_then_ends_the_process() {
    let operations = Operations::default();
    let (sender, orders) = mpsc::channel();
    let fenced = StdMutex::new(sender.clone());
    let fence: Fence = Box::new(move |kind, subject| {
        let order = format!("fence {} {subject}", kind.as_str());
        fenced.lock().unwrap().send(order).unwrap();
    });
    let restarted = StdMutex::new(sender);
    let restart: Restart = Box::new(move || {
        let order = "restart".to_owned();
        restarted.lock().unwrap().send(order).unwrap();
    });
    let watchdog = Watchdog::start(vec![watched(&operations, Some(fence))], Some(restart)).unwrap();
    let verdict = watchdog.verdict();
    let operation = operations.begin(Kind::Start, "a@7", PATIENCE);
    operation.at(Stage::Runtime);
    let waiting = tokio::task::spawn_blocking(move || {
        let next = || orders.recv_timeout(LONG).unwrap();
        (next(), next())
    });
    let (first, second) = waiting.await.unwrap();
    assert_eq!(
        (first.as_str(), second.as_str()),
        ("fence start a@7", "restart")
    );
    assert!(!verdict.is_good());
    drop(operation);
}
