//! The text formats of proxies: nginx's error log, access logs, HAProxy, Envoy, JupyterHub's proxy.
//!
//! Each is a function from a line to its fields, by their index in the format's list of names. `None`
//! means that the line is not of the format. Where the format itself knows who is to blame for a
//! failure, it gives the field `outcome` in this product's own words.

use super::words::Verdict;

/// Takes the fields that a line has: the index of the name, and the text.
pub trait Put<'a> {
    /// A field that stands in the line.
    fn put(&mut self, field: usize, text: &'a [u8]);
    /// The line's outcome, as the format sees it.
    fn outcome(&mut self, field: usize, verdict: Verdict);
}

/// A cursor over a line.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// Everything up to `end`, which is taken as well.
    fn until(&mut self, end: u8) -> Option<&'a [u8]> {
        let length = memchr::memchr(end, self.0)?;
        let text = &self.0[..length];
        self.0 = &self.0[length + 1..];
        Some(text)
    }

    /// The next word, and the spaces behind it.
    fn word(&mut self) -> Option<&'a [u8]> {
        let length = memchr::memchr(b' ', self.0).unwrap_or(self.0.len());
        let word = &self.0[..length];
        self.0 = self.0[length..].trim_ascii_start();
        (!word.is_empty()).then_some(word)
    }

    fn eat(&mut self, text: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(text)?;
        Some(())
    }

    /// A text in double quotes, with `\"` inside it left as it is.
    fn quoted(&mut self) -> Option<&'a [u8]> {
        self.eat(b"\"")?;
        let mut at = 0;
        loop {
            at += memchr::memchr2(b'"', b'\\', self.0.get(at..)?)?;
            if self.0[at] == b'"' {
                break;
            }
            at += 2;
        }
        let text = &self.0[..at];
        self.0 = self.0[at + 1..].trim_ascii_start();
        Some(text)
    }
}

fn status(word: &[u8]) -> Option<&[u8]> {
    (word.len() == 3 && word.iter().all(u8::is_ascii_digit)).then_some(word)
}

/// `METHOD path PROTOCOL`, or what a client that speaks no HTTP sent.
fn request<'a>(text: &'a [u8], out: &mut impl Put<'a>, method: usize, path: usize) {
    let mut cursor = Cursor(text);
    if let (Some(verb), Some(target)) = (cursor.word(), cursor.word()) {
        out.put(method, verb);
        out.put(path, target);
    }
}

/// The names of an access log's fields.
pub const ACCESS: &[&str] = &[
    "time", "client", "user", "method", "path", "status", "bytes", "referer", "agent", "host",
    "request", "upstream",
];

/// nginx's and Apache's common and combined formats, with or without the virtual host in front. Behind
/// them ingress-nginx names the service in brackets, and Traefik its router in quotes.
pub fn access<'a>(line: &'a [u8], out: &mut impl Put<'a>) -> Option<()> {
    let mut cursor = Cursor(line);
    let mut front = Vec::with_capacity(4);
    while !cursor.0.starts_with(b"[") {
        front.push(cursor.word()?);
        if front.len() > 5 {
            return None;
        }
    }
    // `client ident user`, after the virtual host if there are four.
    let (host, client, user) = match front[..] {
        [client, _, user] => (None, client, user),
        [host, client, _, user] => (Some(host), client, user),
        _ => return None,
    };
    cursor.eat(b"[")?;
    let time = cursor.until(b']')?;
    cursor.0 = cursor.0.trim_ascii_start();
    let asked = cursor.quoted()?;
    // Of a client that left before there was one, Traefik writes none.
    let status = cursor
        .word()
        .filter(|word| status(word).is_some() || *word == b"-")?;
    out.put(0, time);
    out.put(1, client);
    out.put(2, user);
    request(asked, out, 3, 4);
    out.put(5, status);
    if let Some(bytes) = cursor.word() {
        out.put(6, bytes);
    }
    if let Some(referer) = cursor.quoted() {
        out.put(7, referer);
    }
    if let Some(agent) = cursor.quoted() {
        out.put(8, agent);
        if let Some(upstream) = upstream_of(cursor.0) {
            out.put(11, upstream);
        }
    }
    if let Some(host) = host {
        out.put(9, host);
    }
    out.put(10, asked);
    Some(())
}

/// The service that answered, as ingress-nginx (`89 0.001 [namespace-name-port] …`) and Traefik
/// (`500 "router@provider" "url" 0ms`) add it to the combined format.
fn upstream_of(rest: &[u8]) -> Option<&[u8]> {
    let mut cursor = Cursor(rest);
    let is_number = |word: &[u8]| {
        word.iter()
            .all(|byte| byte.is_ascii_digit() || *byte == b'.')
    };
    if !is_number(cursor.word()?) {
        return None;
    }
    if cursor.0.starts_with(b"\"") {
        return cursor.quoted();
    }
    if !is_number(cursor.word()?) {
        return None;
    }
    cursor.eat(b"[")?;
    cursor.until(b']').filter(|name| !name.is_empty())
}

/// The names of an nginx error log's fields.
pub const NGINX_ERROR: &[&str] = &[
    "time",
    "level",
    "message",
    "client",
    "server",
    "request",
    "upstream",
    "host",
    "outcome",
    "upstream_url",
    "path",
];

/// nginx's error log. A line that blames an upstream is a failed attempt, any other is neutral.
pub fn nginx_error<'a>(line: &'a [u8], out: &mut impl Put<'a>) -> Option<()> {
    let time = line.get(..19)?;
    let mut cursor = Cursor(line.get(19..)?);
    if time[4] != b'/' || time[10] != b' ' {
        return None;
    }
    cursor.eat(b" [")?;
    let level = cursor.until(b']')?;
    cursor.eat(b" ")?;
    cursor.until(b':')?;
    let rest = cursor.0.trim_ascii_start();
    // `*123 ` is the number of the connection.
    let rest = match rest.strip_prefix(b"*") {
        Some(numbered) => &numbered[memchr::memchr(b' ', numbered)? + 1..],
        None => rest,
    };
    let message_end = memchr::memmem::find(rest, b", client: ").unwrap_or(rest.len());
    let message = &rest[..message_end];
    out.put(0, time);
    out.put(1, level);
    out.put(2, message);
    let mut details = rest.get(message_end + 2..).unwrap_or_default();
    while !details.is_empty() {
        let Some(colon) = memchr::memmem::find(details, b": ") else {
            break;
        };
        let key = &details[..colon];
        let mut value = Cursor(&details[colon + 2..]);
        let text = if value.0.starts_with(b"\"") {
            value.quoted()?
        } else {
            let length = memchr::memmem::find(value.0, b", ").unwrap_or(value.0.len());
            let text = &value.0[..length];
            value.0 = &value.0[length..];
            text
        };
        match key {
            b"client" => out.put(3, text),
            b"server" => out.put(4, text),
            b"request" => {
                out.put(5, text);
                let mut words = Cursor(text);
                if let (Some(_), Some(path)) = (words.word(), words.word()) {
                    out.put(10, path);
                }
            }
            b"upstream" => {
                out.put(9, text);
                out.put(6, authority(text));
            }
            b"host" => out.put(7, text),
            _ => {}
        }
        details = value.0.trim_ascii_start();
        details = details
            .strip_prefix(b",")
            .unwrap_or(details)
            .trim_ascii_start();
    }
    let is_upstream = memchr::memmem::find(message, b"upstream").is_some();
    let is_client = memchr::memmem::find(message, b"client prematurely closed").is_some()
        || memchr::memmem::find(message, b"is buffered to a temporary file").is_some();
    let verdict = if is_upstream && !is_client {
        Verdict::Failed
    } else {
        Verdict::Neutral
    };
    out.outcome(8, verdict);
    Some(())
}

/// `host:port` of `scheme://host:port/path`; a socket's path for `unix:`.
fn authority(url: &[u8]) -> &[u8] {
    let rest = memchr::memmem::find(url, b"://").map_or(url, |found| &url[found + 3..]);
    if rest.starts_with(b"unix:") {
        return rest;
    }
    &rest[..memchr::memchr(b'/', rest).unwrap_or(rest.len())]
}

/// The names of an Envoy access log's fields.
pub const ENVOY: &[&str] = &[
    "time",
    "method",
    "path",
    "status",
    "flags",
    "authority",
    "upstream",
    "outcome",
    "request_id",
];

/// Envoy's default access log, and Istio's, which has more of the same.
pub fn envoy<'a>(line: &'a [u8], out: &mut impl Put<'a>) -> Option<()> {
    let mut cursor = Cursor(line);
    cursor.eat(b"[")?;
    let time = cursor.until(b']')?;
    cursor.0 = cursor.0.trim_ascii_start();
    let asked = cursor.quoted()?;
    let code = cursor.word()?;
    if !code.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let flags = cursor.word()?;
    // Everything in quotes that follows ends with request id, authority and upstream.
    let mut quoted: [&[u8]; 3] = [b""; 3];
    let mut count = 0;
    while !cursor.0.is_empty() {
        if cursor.0[0] == b'"' {
            quoted.rotate_left(1);
            quoted[2] = cursor.quoted()?;
            count += 1;
        } else {
            cursor.word()?;
        }
    }
    if count < 5 {
        return None;
    }
    out.put(0, time);
    request(asked, out, 1, 2);
    out.put(3, code);
    out.put(4, flags);
    out.put(8, quoted[0]);
    out.put(5, quoted[1]);
    out.put(6, authority(quoted[2]));
    out.outcome(7, envoy_verdict(flags, code));
    Some(())
}

/// Who is to blame by Envoy's response flags, or by the status where there are none.
pub fn envoy_verdict(flags: &[u8], code: &[u8]) -> Verdict {
    let mut verdict = None;
    for flag in flags.split(|byte| *byte == b',') {
        match flag {
            b"DC" | b"DPE" | b"IH" | b"RL" | b"UAEX" | b"RLSE" => return Verdict::Neutral,
            b"UF" | b"UH" | b"UO" | b"UT" | b"UC" | b"URX" | b"LH" | b"NR" | b"NC" | b"LR"
            | b"UR" | b"UMSDR" | b"OM" | b"SI" | b"DT" => verdict = Some(Verdict::Failed),
            _ => {}
        }
    }
    verdict.unwrap_or_else(|| {
        if code == b"0" {
            Verdict::Neutral
        } else {
            Verdict::of(code)
        }
    })
}

/// The names of an HAProxy log's fields.
pub const HAPROXY: &[&str] = &[
    "time",
    "client",
    "frontend",
    "backend",
    "server",
    "status",
    "termination",
    "outcome",
    "request",
    "path",
    "syslog_time",
    "timers",
    "backend_server",
];

/// HAProxy's HTTP and TCP logs, behind a syslog header or not. The time is that of the accept, which
/// has a year and the fraction of a second; the syslog stamp is taken only when there is none. What
/// HAProxy says of itself (`Proxy web started.`) is neutral.
pub fn haproxy<'a>(line: &'a [u8], out: &mut impl Put<'a>) -> Option<()> {
    haproxy_session(line, out).or_else(|| {
        memchr::memmem::find(line, b"haproxy[")?;
        out.outcome(7, Verdict::Neutral);
        Some(())
    })
}

fn haproxy_session<'a>(line: &'a [u8], out: &mut impl Put<'a>) -> Option<()> {
    let mut header: &[u8] = b"";
    let mut cursor = Cursor(line);
    if let Some(found) = memchr::memmem::find(line, b"haproxy") {
        header = &line[..found];
        cursor.0 = &line[found..];
        cursor.until(b':')?;
        cursor.0 = cursor.0.trim_ascii_start();
    }
    let syslog_time = syslog_stamp(header);
    if let Some(stamp) = syslog_time {
        out.put(10, stamp);
    }
    let client = cursor.word()?;
    if cursor.0.starts_with(b"[") {
        cursor.eat(b"[")?;
        out.put(0, cursor.until(b']')?);
        cursor.0 = cursor.0.trim_ascii_start();
    } else {
        out.put(0, syslog_time?);
    }
    let frontend = cursor.word()?;
    let backend_server = cursor.word()?;
    let slash = memchr::memchr(b'/', backend_server)?;
    let timers = cursor.word()?;
    if !timers
        .iter()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'/' | b'-' | b'+'))
    {
        return None;
    }
    let mut code: &[u8] = b"";
    // Five timers are HTTP, with a status and two cookies; three are TCP, with bytes alone.
    let termination = if timers.iter().filter(|byte| **byte == b'/').count() >= 4 {
        code = cursor.word()?;
        cursor.word()?;
        cursor.word()?;
        cursor.word()?;
        cursor.word()?
    } else {
        cursor.word()?;
        cursor.word()?
    };
    if !(2..=4).contains(&termination.len()) {
        return None;
    }
    out.put(1, client);
    out.put(2, frontend);
    out.put(3, &backend_server[..slash]);
    out.put(4, &backend_server[slash + 1..]);
    out.put(12, backend_server);
    out.put(11, timers);
    if !code.is_empty() {
        out.put(5, code);
    }
    out.put(6, termination);
    if let Some(quote) = memchr::memchr(b'"', cursor.0) {
        cursor.0 = &cursor.0[quote..];
        // HAProxy cuts long lines, and with them the closing quote.
        let asked = cursor.quoted().unwrap_or_default();
        out.put(8, asked);
        let mut words = Cursor(asked);
        if let (Some(_), Some(path)) = (words.word(), words.word()) {
            out.put(9, path);
        }
    }
    out.outcome(7, haproxy_verdict(termination[0], code));
    Some(())
}

/// By HAProxy's termination state: who ended the session first.
fn haproxy_verdict(first: u8, code: &[u8]) -> Verdict {
    match first {
        // The server refused, timed out or died; the proxy had no slot or broke; the server was taken
        // down.
        b'S' | b's' | b'R' | b'I' | b'D' => Verdict::Failed,
        // The client went away, or the proxy or an administrator decided against the request.
        b'C' | b'c' | b'P' | b'L' | b'K' | b'U' => Verdict::Neutral,
        // A normal end: whatever the status is, the server sent it.
        _ if code.is_empty() || code.starts_with(b"-") => Verdict::Reached,
        _ => Verdict::Reached,
    }
}

/// The stamp in a syslog header, with `<134>` in front or not: the old form or RFC 3339.
fn syslog_stamp(header: &[u8]) -> Option<&[u8]> {
    let header = match header.strip_prefix(b"<") {
        Some(rest) => &rest[memchr::memchr(b'>', rest)? + 1..],
        None => header,
    };
    let header = header.strip_prefix(b"1 ").unwrap_or(header);
    if header.first()?.is_ascii_digit() {
        return Cursor(header).word();
    }
    // `Feb  6 12:14:14`, perhaps with a fraction.
    let length = 15
        + header
            .get(15..)?
            .iter()
            .take_while(|byte| **byte != b' ')
            .count();
    header.get(..length)
}

/// The names of the fields of JupyterHub's logs.
pub const JUPYTERHUB: &[&str] = &[
    "time", "level", "status", "method", "path", "message", "outcome", "error",
];

/// JupyterHub's proxy (`15:04:05.678 [ConfigProxy] error: 503 GET /user/NAME/ connect ECONNREFUSED …`,
/// before its release 4 `15:04:05.678 - error: [ConfigProxy] 503 GET …`) and JupyterHub's own request
/// lines (`[I 2024-01-02 15:04:05.678 JupyterHub log:192] 200 GET /…`). Both colour their levels when they
/// think that a terminal reads.
pub fn jupyterhub<'a>(line: &'a [u8], out: &mut impl Put<'a>) -> Option<()> {
    const TAG: &[u8] = b"[ConfigProxy] ";
    let mut cursor = Cursor(past_colours(line));
    if let Some(found) = memchr::memmem::find(line, TAG) {
        let mut before = line[..found].trim_ascii_end();
        cursor.0 = &line[found + TAG.len()..];
        if let Some(rest) = before.strip_suffix(b":") {
            let dash = memchr::memmem::rfind(rest, b" - ")?;
            out.put(1, uncoloured(&rest[dash + 3..]));
            before = rest[..dash].trim_ascii_end();
        } else {
            out.put(1, uncoloured(cursor.until(b':')?));
        }
        // Docker or systemd may have put more in front: the stamp is the last word before the tag, or
        // two words with the date.
        let words = before
            .iter()
            .rposition(|byte| *byte == b' ')
            .map_or(0, |space| space + 1);
        if !before.is_empty() {
            let dated = words
                .checked_sub(11)
                .filter(|start| before[*start + 4] == b'-');
            out.put(0, &before[dated.unwrap_or(words)..]);
        }
    } else {
        cursor.eat(b"[")?;
        let level = cursor.until(b' ')?;
        let time = cursor.0.get(..23)?;
        if level.len() != 1 || time[4] != b'-' || time[19] != b'.' {
            return None;
        }
        out.put(0, time);
        out.put(1, level);
        cursor.until(b']')?;
        cursor.0 = past_colours(cursor.0);
    }
    let message = cursor.0.trim_ascii();
    cursor.0 = message;
    out.put(5, message);
    let Some(code) = cursor.word().and_then(status) else {
        out.outcome(6, Verdict::Neutral);
        return Some(());
    };
    let (Some(method), Some(path)) = (cursor.word(), cursor.word()) else {
        out.outcome(6, Verdict::Neutral);
        return Some(());
    };
    out.put(2, code);
    out.put(3, method);
    out.put(4, path);
    if !cursor.0.is_empty() {
        out.put(7, cursor.0);
    }
    // What the hub and the proxy ask of each other's API is not an attempt of a user.
    let is_api = path.starts_with(b"/api/") || memchr::memmem::find(path, b"/hub/").is_some();
    let is_user = !is_api && memchr::memmem::find(path, b"/user/").is_some();
    out.outcome(
        6,
        if is_user {
            Verdict::of(code)
        } else {
            Verdict::Neutral
        },
    );
    Some(())
}

/// What follows the terminal's escape sequences that a text begins with.
fn past_colours(mut text: &[u8]) -> &[u8] {
    loop {
        text = match text {
            [0x1B, b'[', rest @ ..] => {
                let end = rest.iter().position(|byte| (b'@'..=b'~').contains(byte));
                &rest[end.map_or(rest.len(), |end| end + 1)..]
            }
            [0x1B, b'(', _, rest @ ..] => rest,
            _ => return text,
        };
    }
}

/// A word without the escape sequences around it.
fn uncoloured(text: &[u8]) -> &[u8] {
    let text = past_colours(text);
    &text[..memchr::memchr(0x1B, text).unwrap_or(text.len())]
}
