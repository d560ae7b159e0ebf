"""The client with a real fleet (CONMAN says which binary), and with servers that refuse and close as a gateway may."""

import http.server
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
import urllib.request

import conman_client
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.sync.server import serve

PATIENCE_SECONDS = 60
# What a user's own program may be: says which process it is, and gives back what it gets.
ECHO = """
import os
from websockets.sync.server import serve
def answer(opened):
    opened.send(str(os.getpid()))
    for message in opened:
        opened.send(message)
serve(answer, "127.0.0.1", int(os.environ["PORT"])).serve_forever()
"""


def free_port():
    """A free port outside the range that the kernel gives to outgoing connections."""
    while True:
        with socket.socket() as held:
            try:
                held.bind(("127.0.0.1", random.randrange(20000, 32000)))
                return held.getsockname()[1]
            except OSError:
                pass


class WithFleet(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.url = f"http://127.0.0.1:{free_port()}"
        cls.log = open(os.path.join(cls.directory.name, "log"), "wb")
        cls.child = subprocess.Popen(
            # Two of them are preempted, and a preempted one is there for half a minute.
            [os.environ["CONMAN"], "up", "--runtime", "process", "--hosts", "4", "--listen", cls.url.removeprefix("http://"),
             "--state", os.path.join(cls.directory.name, "state")], stdin=subprocess.DEVNULL, stdout=cls.log, stderr=cls.log)
        cls.fleet = conman_client.Conman(cls.url, patience=PATIENCE_SECONDS)
        cls.addClassCleanup(cls.end)
        # Another process's state, which has no event.
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{cls.url}/readyz", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the fleet is not ready")

    @classmethod
    def end(cls):
        cls.child.send_signal(signal.SIGINT)
        cls.child.wait(PATIENCE_SECONDS)
        cls.log.close()
        cls.directory.cleanup()

    def preempt(self, repl):
        victim = repl.get()["host"]
        self.fleet.call("POST", f"/v1/hosts/{victim}/preempt")
        return victim

    def test_a_repl_is_made_used_and_deleted(self):
        repl = self.fleet.repl("commands")
        self.assertEqual(repl.create(["sleep", "infinity"], env={"COLOUR": "blue"})["spec"]["env"], {"COLOUR": "blue"})
        done = repl.exec(["sh", "-c", "cat; echo $COLOUR; echo no >&2; exit 3"], stdin="in ")
        self.assertEqual(done, conman_client.Done(3, "in blue\n", "no\n", False))
        self.assertIn("commands", [one["id"] for one in self.fleet.repls()])
        repl.kill()
        repl.delete()
        with self.assertRaises(conman_client.Refused) as refused:
            repl.exec(["true"])
        error = refused.exception
        self.assertEqual((error.status, error.code, error.side, error.is_retryable), (404, "unknown_repl", "client", False))
        self.assertEqual(str(error), 'unknown_repl: there is no repl "commands"')

    def test_two_share_a_shell_that_goes_on_elsewhere(self):
        repl = self.fleet.repl("shared")
        repl.create(["sleep", "infinity"])
        self.addCleanup(repl.delete)
        with repl.shell() as mine, repl.shell(columns=100, rows=30) as others:
            mine.write(b"echo be$((40+2))fore\n")
            self.read_until(others, b"be42fore")
            victim = self.preempt(repl)
            moved = next(event for event in mine if isinstance(event, conman_client.Moved))
            self.assertNotEqual(moved.host, victim)
            mine.write(b"echo af$((40+2))ter\n")
            self.read_until(others, b"af42ter")
            mine.write(b"exit 7\n")
            *_, last = mine
            self.assertEqual(last, conman_client.Exited(7))

    def read_until(self, shell, wanted):
        seen = b""
        for event in shell:
            seen += event if isinstance(event, bytes) else b""
            if wanted in seen:
                return
        self.fail(f"{wanted} is not in {seen}")

    def test_a_lost_connection_to_a_program_is_opened_again_where_it_runs_now(self):
        repl = self.fleet.repl("echo")
        repl.create([sys.executable, "-c", ECHO], port=8000)
        self.addCleanup(repl.delete)
        processes = []
        for opened in repl.connect("/any"):
            processes.append(opened.recv())
            opened.send("there")
            self.assertEqual(opened.recv(), "there")
            if len(processes) == 2:
                break
            self.preempt(repl)
            with self.assertRaises(ConnectionClosed):
                opened.recv()
        self.assertEqual(len(set(processes)), 2)

    def test_every_call_is_one_of_the_api(self):
        paths = self.fleet.call("GET", "/v1/openapi.json")["paths"]
        for path, methods in {
            "/v1/repls": ["get"], "/v1/repls/{id}": ["get", "put", "delete"], "/v1/repls/{id}/start": ["post"],
            "/v1/repls/{id}/kill": ["post"], "/v1/repls/{id}/exec": ["post"], "/v1/repls/{id}/shell": ["get"],
        }.items():
            for method in methods:
                self.assertIn(method, paths[path], path)


class Refusing(http.server.BaseHTTPRequestHandler):
    """Refuses as often as its server is told to, then answers."""

    def answer(self):
        self.server.asked += 1
        if self.server.asked <= self.server.refusals:
            error = {"code": "starting", "message": "not yet", "side": "platform", "retryable": True}
            status, body = 503, {"error": error}
        else:
            status, body = 200, {}
        text = json.dumps(body).encode()
        self.send_response(status)
        if status == 503:
            self.send_header("retry-after", "2")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


class Alone(unittest.TestCase):
    def setUp(self):
        self.rests = []
        patch = unittest.mock.patch.object(conman_client.time, "sleep", self.rests.append)
        patch.start()
        self.addCleanup(patch.stop)

    def refusing(self, refusals):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
        server.asked, server.refusals = 0, refusals
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server, conman_client.Conman(f"http://127.0.0.1:{server.server_port}")

    def test_what_is_safe_to_repeat_is_repeated_after_the_time_that_is_asked_for(self):
        server, fleet = self.refusing(2)
        fleet.repl("any").get()
        self.assertEqual((server.asked, self.rests), (3, [2.0, 2.0]))

    def test_a_command_is_never_repeated(self):
        server, fleet = self.refusing(2)
        with self.assertRaisesRegex(conman_client.Refused, "starting: not yet"):
            fleet.repl("any").exec(["true"])
        self.assertEqual((server.asked, self.rests), (1, []))

    def test_patience_ends(self):
        server, fleet = self.refusing(2)
        fleet.patience = 1.0
        with self.assertRaises(conman_client.Refused):
            fleet.repl("any").get()
        self.assertEqual((server.asked, self.rests), (1, []))

    def test_an_address_that_is_none_is_refused(self):
        with self.assertRaisesRegex(ValueError, "'localhost:8080' is no address like"):
            conman_client.Conman("localhost:8080")

    def test_a_service_restart_is_followed_and_a_normal_end_is_not(self):
        # What each connection is told.
        script = iter([503, 1012, 1001, 503, 1000])
        told = []

        def meet(_, __):
            told.append(next(script))
            if told[-1] == 503:
                headers = Headers({"Retry-After": "3", "Content-Length": "0"})
                return Response(503, "Service Unavailable", headers, b"")

        def answer(opened):
            opened.close(told[-1])

        server = serve(answer, "127.0.0.1", 0, process_request=meet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.shutdown)
        port = server.socket.getsockname()[1]
        hosts = []
        for opened in conman_client.Conman(f"http://127.0.0.1:{port}").repl("any").connect(port=9000):
            hosts.append(opened.request.headers["host"])
            with self.assertRaises(ConnectionClosed):
                opened.recv()
        self.assertEqual(told, [503, 1012, 1001, 503, 1000])
        self.assertEqual(self.rests, [3.0, 3.0])
        self.assertEqual(hosts, [f"9000-any.localhost:{port}"] * 3)


if __name__ == "__main__":
    unittest.main()
