//! The server that other tests lean on does what they take for granted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

#[test]
fn answers_with_its_name_and_instance_and_ends_when_told() {
    let mut server = Command::new(env!("CARGO_BIN_EXE_testserver"))
        .env("PORT", "0")
        .env("REPL", "blue")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    let (port, instance) = (words[2], words[4]);
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nPOST /exit/7 HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert!(answers.contains(&format!("hello from blue {instance}\n")));
    assert_eq!(server.wait().unwrap().code(), Some(7));
}
