//! The shared terminal over its WebSocket, in real containers, while the repl moves.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::fleet::Fleet;

const PATIENCE: Duration = Duration::from_secs(20);

/// Someone who is connected to a terminal.
struct Viewer {
    socket: WebSocketStream<TcpStream>,
    screen: String,
    notices: Vec<Value>,
}

impl Viewer {
    async fn join(fleet: &Fleet, repl: &str) -> Self {
        let path = format!("/v1/repls/{repl}/shell?columns=90&rows=30");
        Self {
            socket: fleet.open_socket("localhost", &path).await,
            screen: String::new(),
            notices: vec![],
        }
    }

    async fn type_in(&mut self, keys: &str) {
        let keys = Message::binary(keys.as_bytes().to_vec());
        self.socket.send(keys).await.unwrap();
    }

    async fn say(&mut self, control: Value) {
        let control = Message::text(control.to_string());
        self.socket.send(control).await.unwrap();
    }

    /// The next frame that is none of the connection's own.
    async fn next(&mut self) -> Option<Message> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.socket.next()).await;
            let frame = frame.unwrap_or_else(|_| panic!("nothing after {:?}", self.screen));
            match frame?.unwrap() {
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                frame => return Some(frame),
            }
        }
    }

    /// Reads until the screen has shown this since the last time.
    async fn see(&mut self, wanted: &str) {
        loop {
            if let Some(at) = self.screen.find(wanted) {
                self.screen.drain(..at + wanted.len());
                return;
            }
            match self.next().await {
                Some(Message::Binary(bytes)) => self.screen += &String::from_utf8_lossy(&bytes),
                Some(Message::Text(text)) => {
                    self.notices.push(serde_json::from_str(&text).unwrap())
                }
                other => panic!("{wanted:?} was not seen in {:?}: {other:?}", self.screen),
            }
        }
    }

    /// Reads to the end; the code with which the server closed it.
    async fn end(mut self) -> (Vec<Value>, u16) {
        loop {
            match self.next().await {
                Some(Message::Binary(_)) => {}
                Some(Message::Text(text)) => {
                    self.notices.push(serde_json::from_str(&text).unwrap())
                }
                Some(Message::Close(Some(frame))) => return (self.notices, frame.code.into()),
                other => panic!("no farewell: {other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_shared_and_stays_open_while_its_repl_moves() {
    let Some(fleet) = Fleet::native(&["--hosts", "2"]) else {
        return;
    };
    let spec = json!({"image": "host", "command": ["sleep", "1000"]});
    fleet.create("home", &spec).await;
    let mut one = Viewer::join(&fleet, "home").await;
    one.type_in("echo from-$((40+2))\n").await;
    one.see("from-42").await;
    // One who comes later sees what there is, and both see what either does.
    let mut two = Viewer::join(&fleet, "home").await;
    two.see("from-42").await;
    two.say(json!({"type": "resize", "columns": 120, "rows": 40}))
        .await;
    two.type_in("stty size\n").await;
    two.see("40 120").await;
    one.see("40 120").await;

    let (_, before) = fleet.api("GET", "/v1/repls/home", None).await;
    let host = before["host"].as_str().unwrap();
    let path = format!("/v1/hosts/{host}/drain?grace=0s");
    let (status, report) = fleet.api("POST", &path, None).await;
    assert_eq!(
        (status, &report["handed_off"]),
        (200, &json!(1)),
        "{report}"
    );
    for viewer in [&mut one, &mut two] {
        viewer.see("[conman] moved to host-").await;
    }
    let (_, after) = fleet.api("GET", "/v1/repls/home", None).await;
    assert_ne!(after["host"], before["host"]);
    // The new shell is theirs together as well, as large as the one before was for whoever came first.
    one.type_in("echo again-$((40+3))\n").await;
    one.see("again-43").await;
    two.see("again-43").await;
    two.type_in("exit 7\n").await;
    for viewer in [one, two] {
        let (notices, code) = viewer.end().await;
        assert_eq!(code, 1000, "{notices:?}");
        let kinds: Vec<_> = notices.iter().map(|notice| &notice["type"]).collect();
        assert_eq!(kinds, [&json!("moved"), &json!("exit")], "{notices:?}");
        assert_eq!(notices[0]["host"], after["host"]);
        assert_eq!(notices[0]["epoch"], after["epoch"]);
        assert_eq!(notices[1]["code"], 7);
    }
    fleet.stop();
}
