//! What tests and benchmarks run inside a container: a server so small that it does not blur the figures.
//!
//! Listens on `$PORT` (or the first argument) of the loopback, or of `$ADDRESS`. `GET` anything answers with
//! `hello from <repl> <instance>`, where the instance is drawn at the start, so that a client sees whether
//! it talks to another container than before. A WebSocket on any path is sent `<instance>` and then
//! gets back what it sends; on `/echo` that alone. `POST /exit/N` ends the server with code N.
//! With the argument `sleep` it serves nothing and waits.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tungstenite::error::ProtocolError;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

/// How long somebody who broke the protocol may take to go.
const LINGER: Duration = Duration::from_secs(1);

fn main() -> io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("sleep") {
        loop {
            std::thread::park();
        }
    }
    let port = std::env::args()
        .nth(1)
        .or_else(|| std::env::var("PORT").ok())
        .and_then(|port| port.parse().ok())
        .unwrap_or(8000);
    let address = std::env::var("ADDRESS")
        .ok()
        .and_then(|address| address.parse().ok())
        .unwrap_or(Ipv4Addr::LOCALHOST);
    let listener = TcpListener::bind((address, port))?;
    let repl = std::env::var("REPL").unwrap_or_default();
    let mut drawn = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut drawn)?;
    let instance: Arc<str> = format!("{:016x}", u64::from_ne_bytes(drawn)).into();
    println!(
        "listening on {} as {instance}",
        listener.local_addr()?.port()
    );
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // It has gone again before its turn came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let (repl, instance) = (repl.clone(), instance.clone());
        std::thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(move || {
                // A client that goes away ends its own thread only.
                let _ = serve(stream, &repl, &instance);
            })?;
    }
}

#[derive(Default)]
struct Request {
    first_line: String,
    body_bytes: u64,
    websocket_key: Option<String>,
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut request = Request::default();
    if reader.read_line(&mut request.first_line)? == 0 {
        return Ok(None);
    }
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok(Some(request));
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => request.body_bytes = value.trim().parse().unwrap_or(0),
            "sec-websocket-key" => request.websocket_key = Some(value.trim().to_owned()),
            _ => {}
        }
    }
}

fn serve(stream: TcpStream, repl: &str, instance: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        io::copy(&mut (&mut reader).take(request.body_bytes), &mut io::sink())?;
        if let Some(key) = request.websocket_key {
            write!(
                writer,
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {}\r\n\r\n",
                derive_accept_key(key.as_bytes())
            )?;
            let is_greeted = !request.first_line.starts_with("GET /echo");
            // One descriptor is enough from here on.
            drop(reader);
            return echo(writer, instance, is_greeted).map_err(io::Error::other);
        }
        let body = format!("hello from {repl} {instance}\n");
        // At once: each piece would be a packet of its own.
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        writer.write_all(answer.as_bytes())?;
        if let Some(rest) = request.first_line.strip_prefix("POST /exit/") {
            let code = rest.split(' ').next().and_then(|code| code.parse().ok());
            #[expect(clippy::disallowed_methods, reason = "ending is what was asked for")]
            std::process::exit(code.unwrap_or(1));
        }
    }
    Ok(())
}

fn echo(stream: TcpStream, instance: &str, is_greeted: bool) -> Result<(), tungstenite::Error> {
    // Ten thousand of them must fit into a container. And what a user may send is not this server's to limit.
    let config = WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .max_message_size(None)
        .max_frame_size(None);
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, Some(config));
    if is_greeted {
        socket.send(Message::text(instance))?;
    }
    loop {
        let failed = match socket.read() {
            Ok(message) if message.is_text() || message.is_binary() => socket.send(message).err(),
            Ok(_) => None,
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            return fail(socket, error);
        }
    }
}

/// Says why, where it is the user who broke the protocol (RFC 6455, 7.1.7), and reads what still comes: a connection that is
/// closed with something unread may lose what was written to it.
fn fail(
    mut socket: WebSocket<TcpStream>,
    error: tungstenite::Error,
) -> Result<(), tungstenite::Error> {
    let code = match error {
        tungstenite::Error::Utf8(_) => CloseCode::Invalid,
        // The user has gone.
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            return Err(error);
        }
        tungstenite::Error::Protocol(_) => CloseCode::Protocol,
        _ => return Err(error),
    };
    // Not by the library's own, which takes the connection for closed after some of these.
    let mut frame = vec![0x88, 2];
    frame.extend(u16::from(code).to_be_bytes());
    let stream = socket.get_mut();
    stream.write_all(&frame)?;
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(LINGER))?;
    io::copy(stream, &mut io::sink())?;
    Ok(())
}
