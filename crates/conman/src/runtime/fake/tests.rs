//! What only the fake can do. What every runtime must do is in `contract`.

use super::*;
use model::spec::Spec;

/// A fake with a keeper that is armed.
async fn armed() -> Fake {
    let fake = Fake::new();
    fake.arm(BootTime(u64::MAX)).await.unwrap();
    fake
}

fn request(name: &str, epoch: u64, command: &[&str]) -> StartRequest {
    let spec = serde_json::json!({"command": command, "port": 80});
    StartRequest {
        id: ContainerId {
            repl: name.parse().unwrap(),
            epoch: Epoch(epoch),
        },
        spec: serde_json::from_value::<Spec>(spec).unwrap(),
    }
}

#[tokio::test]
async fn a_start_waits_at_the_gate() {
    let fake = armed().await;
    fake.hold_starts();
    let wanted = request("a", 1, &["server"]);
    let start = tokio::spawn({
        let (fake, wanted) = (fake.clone(), wanted.clone());
        async move { fake.start(wanted).await }
    });
    fake.until(|fake| fake.calls().last() == Some(&Call::Start(wanted.id.clone())))
        .await;
    assert!(!start.is_finished());
    assert_eq!(fake.alive(), []);
    fake.open_starts();
    assert_eq!(start.await.unwrap().unwrap().id, wanted.id);
    assert_eq!(fake.alive(), [wanted.id]);
}

#[tokio::test]
async fn a_scripted_failure_comes_once() {
    let fake = armed().await;
    fake.fail_next_start(Refusal::new(RefusalCode::DiskFull, "full"));
    let refused = fake.start(request("a", 1, &["server"])).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::DiskFull);
    fake.start(request("a", 1, &["server"])).await.unwrap();
}

#[tokio::test]
async fn a_held_death_is_reported_later_and_once() {
    let fake = armed().await;
    let mut events = fake.events().unwrap();
    assert!(matches!(
        events.recv().await.unwrap(),
        RuntimeEvent::KeeperConnected { .. }
    ));
    let id = fake.start(request("a", 1, &["server"])).await.unwrap().id;
    fake.hold_deaths();
    fake.kill(std::slice::from_ref(&id)).await.unwrap();
    fake.kill(std::slice::from_ref(&id)).await.unwrap();
    assert!(events.try_recv().is_err());
    fake.let_die();
    let exit = Exit::Signal(libc::SIGKILL);
    assert_eq!(
        events.recv().await.unwrap(),
        RuntimeEvent::Dead { id, exit }
    );
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn a_dead_container_breaks_its_connections() {
    let fake = armed().await;
    let id = fake.start(request("a", 1, &["server"])).await.unwrap().id;
    let stream = fake.dial(&id, 80).await.unwrap();
    stream.writable().await.unwrap();
    fake.die(&id, Exit::Code(0));
    // Either the end of the stream or a reset; never a byte.
    let mut byte = [0];
    let (mut read, _write) = stream.into_split();
    let got = tokio::io::AsyncReadExt::read(&mut read, &mut byte).await;
    assert!(matches!(got, Ok(0) | Err(_)), "{got:?}");
    assert_eq!(
        fake.dial(&id, 80).await.unwrap_err().code,
        RefusalCode::NotRunning
    );
}

#[tokio::test]
async fn a_lost_keeper_takes_everything_with_it() {
    let fake = armed().await;
    let mut events = fake.events().unwrap();
    assert!(matches!(
        events.recv().await.unwrap(),
        RuntimeEvent::KeeperConnected { .. }
    ));
    let id = fake.start(request("a", 1, &["server"])).await.unwrap().id;
    fake.lose_keeper();
    assert_eq!(events.recv().await.unwrap(), RuntimeEvent::KeeperLost);
    let exit = Exit::Unknown;
    assert_eq!(
        events.recv().await.unwrap(),
        RuntimeEvent::Dead { id, exit }
    );
    assert!(fake.start(request("a", 2, &["server"])).await.is_err());
    fake.connect_keeper();
    assert!(matches!(
        events.recv().await.unwrap(),
        RuntimeEvent::KeeperConnected { .. }
    ));
    let refused = fake.start(request("a", 2, &["server"])).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Fenced);
    fake.arm(BootTime(u64::MAX)).await.unwrap();
    fake.start(request("a", 2, &["server"])).await.unwrap();
}
