"""A small client of conman: create a repl by its name, run commands in it, use its terminal, talk to what it serves.

    import conman_client

    fleet = conman_client.Conman("http://127.0.0.1:8080")
    repl = fleet.repl("hello")
    repl.create(["python3", "-m", "http.server", "8000"], port=8000)
    print(repl.exec(["uname", "-a"]).stdout)
    with repl.shell() as shell:
        shell.write(b"ls\\n")
        for event in shell:
            print(event)

Whoever uses it sees no move: what is safe to repeat is repeated while the platform says that trying again helps, after the time
that `Retry-After` names, and a WebSocket that was closed with 1012 (Service Restart) or lost is opened again. Nothing else is
repeated: a command may have run. Needs Python 3.11 and `websockets`.
"""

from __future__ import annotations

import dataclasses
import json
import random
import socket
import time
import typing
import urllib.error
import urllib.parse
import urllib.request

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_websocket

# How long a call, or a connection that was lost, is tried again for.
PATIENCE_SECONDS = 60.0
CONNECT_SECONDS = 10.0
# Longer than a gateway holds a request (15 s).
ANSWER_SECONDS = 30.0
PAUSE_FIRST_SECONDS = 0.1
PAUSE_MAX_SECONDS = 5.0
# RFC 6455, section 7.4.1, and the registry that it makes.
GOING_AWAY, ABNORMAL_CLOSURE, SERVICE_RESTART, TRY_AGAIN_LATER = 1001, 1006, 1012, 1013
COMES_BACK = {GOING_AWAY, ABNORMAL_CLOSURE, SERVICE_RESTART, TRY_AGAIN_LATER}
REPEATABLE = {"GET", "PUT", "DELETE"}


class Refused(Exception):
    """What the API says, in its words.

    `code` is from a closed list, `side` says who failed (`client`, `user`, `platform`), `is_retryable` whether it may help to try
    again, and `retry_after` after how many seconds, where the answer says it.
    """

    def __init__(self, status: int, body: bytes, retry_after: str | None):
        try:
            error = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError):
            error = {"code": "unknown", "message": body.decode(errors="replace").strip() or f"status {status}"}
        self.status = status
        self.code: str = error["code"]
        self.side: str = error.get("side", "platform" if status >= 500 else "client")
        self.is_retryable: bool = error.get("retryable", status in (429, 502, 503, 504))
        # The form with a date is not used by conman.
        self.retry_after = float(retry_after) if retry_after and retry_after.isdigit() else None
        super().__init__(f"{self.code}: {error['message']}")


class Pauses:
    """How long to wait before each further attempt: what the server says, else longer each time and never all at once."""

    def __init__(self, patience: float):
        self.ends = time.monotonic() + patience
        self.next = PAUSE_FIRST_SECONDS

    def rest(self, asked: float | None) -> bool:
        """Waits, unless that would be longer than the patience: then it is False."""
        pause = asked if asked is not None else self.next * random.uniform(0.5, 1.0)
        self.next = min(self.next * 2, PAUSE_MAX_SECONDS)
        if time.monotonic() + pause > self.ends:
            return False
        time.sleep(pause)
        return True


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command did."""

    exit_code: int | None
    stdout: str
    stderr: str
    truncated: bool


@dataclasses.dataclass(frozen=True)
class Moved:
    """The repl runs on another host, after so long; the shell is a new one."""

    host: str
    epoch: int
    milliseconds: float


@dataclasses.dataclass(frozen=True)
class Exited:
    """The shell ended."""

    code: int | None


class Conman:
    """A fleet, at the address of one of its gateways or of the load balancer before them.

    Repls are served below `domain`; `headers` go with every call of the API, as `{"authorization": f"Bearer {api_key}"}`.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        domain: str = "localhost",
        headers: typing.Mapping[str, str] | None = None,
        patience: float = PATIENCE_SECONDS,
    ):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address like http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self.domain = domain
        self.headers = dict(headers or {})
        self.patience = patience
        self.is_tls = parts.scheme == "https"
        self.host = parts.hostname
        self.port = parts.port or (443 if self.is_tls else 80)

    def repl(self, name: str) -> Repl:
        return Repl(self, name)

    def repls(self) -> list[dict[str, typing.Any]]:
        return self.call("GET", "/v1/repls")["repls"]

    def call(self, method: str, path: str, body: object = None) -> typing.Any:
        """One call of the API. Raises `Refused`, or `OSError` where there is no answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {**self.headers, **({} if data is None else {"content-type": "application/json"})}
        pauses = Pauses(self.patience if method in REPEATABLE else 0)
        while True:
            request = urllib.request.Request(self.url + path, data, headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                refused = Refused(error.code, error.read(), error.headers.get("retry-after"))
                if not (refused.is_retryable and pauses.rest(refused.retry_after)):
                    raise refused from None
            except OSError:
                if not pauses.rest(None):
                    raise

    def open(self, path: str, host: str | None = None, **options: typing.Any) -> ClientConnection:
        """A WebSocket to the gateway, for the name `host` where it is another. Is tried again as `call` is."""
        scheme = "wss" if self.is_tls else "ws"
        default = 443 if self.is_tls else 80
        port = "" if self.port == default else f":{self.port}"
        pauses = Pauses(self.patience)
        if host is None:
            options["additional_headers"] = {**self.headers, **options.get("additional_headers", {})}
        while True:
            try:
                # No name server needs to know the names of repls: it is the same gateway.
                link = socket.create_connection((self.host, self.port), CONNECT_SECONDS)
                link.settimeout(None)
                opening = open_websocket(f"{scheme}://{host or self.host}{port}{path}", sock=link, open_timeout=ANSWER_SECONDS, **options)
                return opening.__enter__()
            except InvalidStatus as error:
                refused = Refused(error.response.status_code, error.response.body or b"", error.response.headers.get("retry-after"))
                if not (refused.is_retryable and pauses.rest(refused.retry_after)):
                    raise refused from None
            except (OSError, EOFError, InvalidHandshake):
                if not pauses.rest(None):
                    raise


class Repl:
    """One repl; there need not be one yet."""

    def __init__(self, fleet: Conman, name: str):
        self.fleet = fleet
        self.name = name
        self.path = f"/v1/repls/{urllib.parse.quote(name, safe='')}"

    def create(self, command: typing.Sequence[str], **spec: typing.Any) -> dict[str, typing.Any]:
        """Creates it, or changes it while it does not run: `image`, `port`, `env`, `limits`, `idle_timeout_seconds`."""
        return self.fleet.call("PUT", self.path, {"command": list(command), **spec})

    def get(self) -> dict[str, typing.Any]:
        return self.fleet.call("GET", self.path)

    def start(self) -> dict[str, typing.Any]:
        return self.fleet.call("POST", f"{self.path}/start")

    def kill(self) -> None:
        """Returns when its death is proven."""
        self.fleet.call("POST", f"{self.path}/kill")

    def delete(self) -> None:
        self.fleet.call("DELETE", self.path)

    def exec(self, command: typing.Sequence[str], stdin: str = "", timeout: float = 20.0) -> Done:
        """Runs a command in its container, for at most `timeout` seconds. Is never repeated."""
        body = {"command": list(command), "stdin": stdin, "timeout_ms": round(timeout * 1000)}
        answer = self.fleet.call("POST", f"{self.path}/exec", body)
        return Done(answer["exit_code"], answer["stdout"], answer["stderr"], answer["truncated"])

    def shell(self, columns: int = 80, rows: int = 24) -> Shell:
        """Joins its terminal, which it shares with everyone else on it."""
        return Shell(self, columns, rows)

    def connect(
        self, path: str = "/", port: int | None = None, token: str | None = None, **options: typing.Any
    ) -> typing.Iterator[ClientConnection]:
        """WebSockets to what it serves, one after the other: the next when the one before was lost to a move. `token` lets a user in
        to a private repl.

            for opened in repl.connect("/live"):
                try:
                    for message in opened:
                        ...
                except websockets.ConnectionClosed:
                    pass

        Ends when the repl's own program closed the connection for good, or whoever uses it did.
        """
        name = self.name if port is None else f"{port}-{self.name}"
        if token is not None:
            options["additional_headers"] = {**options.get("additional_headers", {}), "authorization": f"Bearer {token}"}
        while True:
            with self.fleet.open(path, host=f"{name}.{self.fleet.domain}", **options) as opened:
                yield opened
                # None while it is open.
                code = opened.protocol.close_code
            if code not in COMES_BACK:
                return


class Shell:
    """A terminal that outlives moves. Its events: bytes, `Moved`, and `Exited` as the last."""

    def __init__(self, repl: Repl, columns: int, rows: int):
        self.repl = repl
        self.columns, self.rows = columns, rows
        self.socket = self._open()

    def _open(self) -> ClientConnection:
        return self.repl.fleet.open(f"{self.repl.path}/shell?columns={self.columns}&rows={self.rows}")

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, keys: bytes) -> None:
        """Raises `ConnectionClosed` while there is no connection: whether the keys arrived is not known, so they are not repeated."""
        self.socket.send(keys)

    def resize(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.socket.send(json.dumps({"type": "resize", "columns": columns, "rows": rows}))

    def __iter__(self) -> typing.Iterator[bytes | Moved | Exited]:
        while True:
            try:
                message = self.socket.recv()
            except ConnectionClosed:
                if self.socket.protocol.close_code not in COMES_BACK:
                    return
                self.socket = self._open()
                continue
            if isinstance(message, bytes):
                yield message
                continue
            told = json.loads(message)
            if told["type"] == "moved":
                yield Moved(told["host"], told["epoch"], told["milliseconds"])
            elif told["type"] == "exit":
                yield Exited(told["code"])
                return
            elif told["type"] == "error":
                raise Refused(0, json.dumps({"error": told}).encode(), None)

    def close(self) -> None:
        self.socket.close()
