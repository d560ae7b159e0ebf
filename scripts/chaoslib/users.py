"""The users: of each repl, through each node's gateway, one with a WebSocket that is opened again whenever it is dropped, and
others that come and go. A process of its own, so that who breaks the fleet does not slow them down.

    python3 users.py '{"nets": {"node-1": "NAMESPACE", …}, "repls": [ … ], "visit_every_seconds": 1}'

Prints one line of JSON for each attempt to reach a repl: where, when it began and ended (CLOCK_MONOTONIC), which container
answered, or how it failed; and one for each WebSocket that was dropped. Ends when its standard input does.
"""

import asyncio
import base64
import concurrent.futures
import json
import os
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from fleet import socket_in  # noqa: E402

PORT = 8080
# A gateway gives up after 15 s; one that is still silent then has failed.
SESSION_MAX_SECONDS = 17.0
AGAIN_AFTER_SECONDS = 0.05
# And where nobody listens.
AGAIN_AFTER_REFUSAL_SECONDS = 0.25
# How often a WebSocket sends something, and how long it waits for the echo.
ECHO_EVERY_SECONDS = 0.5
SILENCE_MAX_SECONDS = 3.0


class Refused(Exception):
    """The gateway is not there: a load balancer would ask another."""


class Failed(Exception):
    """The gateway or the repl has failed the session."""


async def connect(net):
    made = await asyncio.to_thread(socket_in, net)
    made.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", PORT))
    except OSError as error:
        made.close()
        raise Refused(error.strerror) from None
    return await asyncio.open_connection(sock=made)


async def head(reader):
    """The status of an answer, and its headers in small letters."""
    text = await reader.readuntil(b"\r\n\r\n")
    lines = text.decode("latin-1").split("\r\n")
    return int(lines[0].split()[1]), dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)


async def visit(reader, writer, repl):
    writer.write(f"GET / HTTP/1.1\r\nHost: {repl}.localhost\r\nConnection: close\r\n\r\n".encode())
    status, headers = await head(reader)
    body = await reader.read() if "content-length" not in headers else await reader.readexactly(int(headers["content-length"]))
    if status != 200:
        raise Failed(f"{status} {reason(body)}")
    return body.decode().split()[-1]


def reason(body):
    try:
        return json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip()[:80]


def frame(text):
    """A client's frame of text, masked with zeros."""
    return bytes([0x81, 0x80 | len(text)]) + bytes(4) + text


async def message(reader):
    """The next frame's text; None at the end."""
    first, length = await reader.readexactly(2)
    if length > 125:
        raise Failed("a long frame")
    text = await reader.readexactly(length)
    return None if first & 0x0F == 8 else text


async def upgrade(reader, writer, repl):
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write((f"GET / HTTP/1.1\r\nHost: {repl}.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                  f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
    status, headers = await head(reader)
    if status != 101:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        raise Failed(f"{status} {reason(body)}")
    instance = await message(reader)
    if instance is None:
        raise Failed("closed at once")
    return instance.decode()


class Users:
    def __init__(self, nets, repls, visit_every_seconds):
        self.nets, self.repls = nets, repls
        # How often somebody new comes to each repl at each gateway.
        self.visit_every_seconds = visit_every_seconds
        self.draw = random.Random("users")

    async def attempt(self, kind, node, repl, begin):
        """One attempt: what became of it, and the connection, if it is to be used further."""
        began, stream = time.monotonic(), None
        line = {"kind": kind, "node": node, "repl": repl, "began": began}
        try:
            async with asyncio.timeout(SESSION_MAX_SECONDS):
                stream = await connect(self.nets[node])
                line["instance"] = await begin(*stream, repl)
        except Refused as error:
            line["refused"] = str(error)
        except TimeoutError:
            line["failed"] = "silent"
        except (Failed, OSError, asyncio.IncompleteReadError) as error:
            line["failed"] = str(error) if isinstance(error, Failed) else "cut off"
        line["ended"] = time.monotonic()
        print(json.dumps(line), flush=True)
        if "instance" in line and kind == "websocket":
            return line, stream
        if stream:
            stream[1].close()
        return line, None

    async def come_and_go(self, node, repl):
        tasks = set()
        await asyncio.sleep(self.draw.uniform(0, self.visit_every_seconds))
        while True:
            # Whether or not those who came before have been served.
            task = asyncio.create_task(self.attempt("http", node, repl, visit))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(self.visit_every_seconds)

    async def stay(self, node, repl):
        while True:
            line, stream = await self.attempt("websocket", node, repl, upgrade)
            if stream is None:
                await asyncio.sleep(AGAIN_AFTER_REFUSAL_SECONDS if "refused" in line else AGAIN_AFTER_SECONDS)
                continue
            await self.echo(*stream)
            print(json.dumps({"node": node, "repl": repl, "dropped": time.monotonic()}), flush=True)

    async def echo(self, reader, writer):
        try:
            while True:
                writer.write(frame(b"are you there?"))
                async with asyncio.timeout(SILENCE_MAX_SECONDS):
                    if await message(reader) is None:
                        break
                # Whichever comes first: the time for the next, or the end.
                try:
                    async with asyncio.timeout(ECHO_EVERY_SECONDS):
                        await message(reader)
                    break
                except TimeoutError:
                    pass
        except (TimeoutError, OSError, asyncio.IncompleteReadError, Failed):
            pass
        finally:
            writer.close()

    async def run(self):
        users = [asyncio.create_task(work(node, repl)) for node in self.nets for repl in self.repls
                 for work in (self.come_and_go, self.stay)]
        await asyncio.to_thread(sys.stdin.buffer.read)
        for user in users:
            user.cancel()


async def main():
    told = json.loads(sys.argv[1])
    asyncio.get_running_loop().set_default_executor(concurrent.futures.ThreadPoolExecutor(8))
    await Users(**told).run()


if __name__ == "__main__":
    asyncio.run(main())
    os._exit(0)
