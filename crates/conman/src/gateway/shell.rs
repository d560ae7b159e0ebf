//! The shared terminal of a repl: one WebSocket to the user, kept open while the other end moves.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::ws::{self, WebSocket};
use futures_util::{SinkExt, StreamExt};
use model::id::{Epoch, HostId, ReplId};
use model::time::milliseconds;
use model::wire::node::OpenKind;
use serde::{Deserialize, Serialize};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use utoipa::IntoParams;

use super::Gateway;
use super::open::{NoWay, Way};
use super::proxy::Session;
use super::session_stream::SessionStream;

/// A terminal's size, as a client asks for it.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Size {
    /// The terminal's width in characters; 80 if absent.
    #[serde(default = "Size::default_columns")]
    #[param(required = false)]
    pub(super) columns: u16,
    /// The terminal's height in lines; 24 if absent.
    #[serde(default = "Size::default_rows")]
    #[param(required = false)]
    pub(super) rows: u16,
}

impl Size {
    fn default_columns() -> u16 {
        80
    }

    fn default_rows() -> u16 {
        24
    }
}

/// What the gateway itself reads of a client's control messages: the size, for the next terminal.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Control {
    Resize(Size),
}

/// What the gateway itself tells a client.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Notice<'a> {
    Moved {
        host: &'a str,
        epoch: u64,
        milliseconds: u64,
    },
    Error {
        code: &'a str,
        message: &'a str,
    },
}

/// How a terminal's session ended.
enum End {
    /// Its container is gone: there will be another.
    Moved,
    /// The shell, or the client, has ended it.
    Over(Option<CloseFrame>),
}

type Terminal = WebSocketStream<SessionStream>;

/// Opens the repl's terminal.
pub(super) async fn open(
    gateway: &Gateway,
    repl: &ReplId,
    size: Size,
) -> Result<(Way, Terminal), NoWay> {
    let kind = OpenKind::Shell {
        columns: size.columns,
        rows: size.rows,
    };
    let session = Session::begin(gateway, repl.clone());
    match gateway.open(repl, &kind).await {
        Ok(mut way) => {
            session.opened(way.host.clone(), way.opened.epoch);
            let stream = way.opened.stream.take().ok_or_else(|| {
                model::api::Refusal::new(
                    model::api::RefusalCode::Internal,
                    "the host gave no terminal",
                )
            })?;
            let terminal = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
            Ok((way, terminal))
        }
        Err(no_way) => {
            session.refused(&no_way);
            Err(no_way)
        }
    }
}

/// Serves a client until its shell has ended or it goes away, through every move of the container.
pub(super) async fn serve(
    gateway: Arc<Gateway>,
    repl: ReplId,
    mut size: Size,
    (mut way, mut terminal): (Way, Terminal),
    mut client: WebSocket,
) {
    let _counted = gateway.endless.tasks.token();
    loop {
        let ended = gateway.fleet.ended(way.host.clone(), way.incarnation);
        let end = tokio::select! {
            end = relay(&mut client, &mut terminal, &mut size) => end,
            () = ended => End::Moved,
            () = gateway.endless.closing.cancelled() => End::Over(Some(CloseFrame {
                code: CloseCode::Restart,
                reason: Utf8Bytes::from_static("this gateway goes: connect again"),
            })),
        };
        match end {
            End::Over(frame) => {
                let frame = frame.map(|frame| ws::CloseFrame {
                    code: frame.code.into(),
                    reason: frame.reason.as_str().into(),
                });
                // A client that went away needs no farewell.
                let _ = client.send(ws::Message::Close(frame)).await;
                return;
            }
            End::Moved => {
                let began = Instant::now();
                match open(&gateway, &repl, size).await {
                    Ok(next) => {
                        (way, terminal) = next;
                        if say_moved(&mut client, &way.host, way.opened.epoch, began)
                            .await
                            .is_err()
                        {
                            return;
                        }
                    }
                    Err(no_way) => return say_lost(&mut client, &no_way).await,
                }
            }
        }
    }
}

async fn relay(client: &mut WebSocket, terminal: &mut Terminal, size: &mut Size) -> End {
    // A client that does not hear any more may have left keys behind: they are read to the end.
    let mut hears = true;
    loop {
        tokio::select! {
            message = terminal.next(), if hears => {
                let message = match message {
                    Some(Ok(Message::Binary(output))) => ws::Message::Binary(output),
                    Some(Ok(Message::Text(notice))) => ws::Message::Text(notice.as_str().into()),
                    Some(Ok(Message::Close(Some(frame)))) if frame.code != CloseCode::Restart => {
                        return End::Over(Some(frame));
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Moved,
                };
                hears = client.send(message).await.is_ok();
            }
            message = client.recv() => {
                let message = match message {
                    Some(Ok(ws::Message::Binary(keys))) => Message::Binary(keys),
                    Some(Ok(ws::Message::Text(text))) => {
                        if let Ok(Control::Resize(wanted)) = serde_json::from_str(text.as_str()) {
                            *size = wanted;
                        }
                        Message::Text(Utf8Bytes::from(text.as_str()))
                    }
                    Some(Ok(ws::Message::Ping(_) | ws::Message::Pong(_))) => continue,
                    Some(Ok(ws::Message::Close(_)) | Err(_)) | None => return End::Over(None),
                };
                if terminal.send(message).await.is_err() {
                    return End::Moved;
                }
            }
        }
    }
}

async fn say_moved(
    client: &mut WebSocket,
    host: &HostId,
    epoch: Epoch,
    began: Instant,
) -> Result<(), axum::Error> {
    let milliseconds = milliseconds(began.elapsed());
    let line = format!("\r\n[conman] moved to {host} in {milliseconds} ms\r\n");
    client.send(ws::Message::Binary(line.into())).await?;
    let notice = Notice::Moved {
        host: host.as_str(),
        epoch: epoch.0,
        milliseconds,
    };
    client.send(text(&notice)).await
}

async fn say_lost(client: &mut WebSocket, no_way: &NoWay) {
    let notice = Notice::Error {
        code: no_way.refusal.code.as_str(),
        message: &no_way.refusal.message,
    };
    let frame = ws::CloseFrame {
        code: ws::close_code::AGAIN,
        reason: no_way.refusal.code.as_str().into(),
    };
    // A client that went away meanwhile needs neither.
    let _ = client.send(text(&notice)).await;
    let _ = client.send(ws::Message::Close(Some(frame))).await;
}

fn text(notice: &Notice<'_>) -> ws::Message {
    // Plain values: there is nothing in them that JSON cannot say.
    ws::Message::Text(serde_json::to_string(notice).unwrap_or_default().into())
}
