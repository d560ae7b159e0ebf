"""The fleet that is broken: nodes whose gateways listen on their own loopback, where their users are, and members of etcd on
machines of their own. Every node and member has a small disk, and every container has a witness.
"""

import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

from fleet import Machines, Member, Net, Node, cgroups, socket_in, until

from .users import PORT
from .witness import Witness

# Of a node: nothing but its state; of a member: its log is laid out 64 MiB at a time, and the next one beforehand.
NODE_DISK, MEMBER_DISK = "48m", "320m"
# A fork bomb has so many processes.
PIDS_MAX = 48
API_SECONDS_MAX = 20


class Fleet(Machines):
    node_type = Node

    def __init__(self, conman, testserver, scratch, shape):
        first = 101
        super().__init__("chaos", conman, scratch, range(first, first + shape.members))
        self.shape = shape
        self.repls = [f"repl-{number}" for number in range(1, shape.repls + 1)]
        self.witness = Witness(scratch / "witness")
        self.image = scratch / "image"
        make_image(self.image, [testserver, shutil.which("sh")])
        self.switch = Net(self, "switch", 0)
        for number in self.member_numbers:
            self.members[number] = Member(self, number, Net(self, f"e{number}", number), size=MEMBER_DISK)
        for number in range(1, shape.nodes + 1):
            self.nodes[number] = self.make_node(number)
        until("the hosts", lambda: len(self.hosts()) == shape.nodes)
        for repl in self.repls:
            spec = {"image": f"dir:{self.image}", "command": ["/bin/testserver"], "port": 8000,
                    "limits": {"pids": PIDS_MAX, "memory_bytes": 64 << 20}}
            status, body = self.ask("PUT", f"/v1/repls/{repl}", spec)
            if status != 201:
                raise SystemExit(f"chaos: create {repl}: {body}")

    def make_node(self, number):
        more = f"""
listen = "127.0.0.1:{PORT}"
profile = "{self.shape.profile}"
witness = "{self.scratch}/witness"
notice_file = "{self.scratch}/node-{number}/notice"
"""
        return self.node_type(self, number, more, NODE_DISK)

    def note(self, text):
        """For whoever reads the logs afterwards."""
        with open(self.scratch / "rounds.log", "a") as file:
            file.write(f"{time.monotonic():.3f} {time.strftime('%H:%M:%S')} {text}\n")

    def nets_of_users(self):
        return {node.name: node.net.name for node in self.nodes.values()}

    def ask(self, method, path, body=None, node=None):
        """The API at a node's gateway, or at the first that answers: status and body. An error of the network is status 0."""
        for one in [node] if node else self.nodes.values():
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=API_SECONDS_MAX)
            connection.sock = socket_in(one.net.name)
            connection.sock.settimeout(API_SECONDS_MAX)
            try:
                connection.sock.connect(("127.0.0.1", PORT))
                connection.request(method, path, json.dumps(body) if body else None,
                                   {"Host": "localhost", "Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                if answer.status < 500 or node:
                    return answer.status, json.loads(text) if text else None
            except (OSError, http.client.HTTPException, ValueError):
                pass
            finally:
                connection.close()
        return 0, None

    def listed(self, what):
        status, body = self.ask("GET", f"/v1/{what}")
        return {one["id"]: one for one in body[what]} if status == 200 else {}

    def hosts(self):
        return self.listed("hosts")

    def command(self, *words):
        """The command line, at some node's gateway."""
        return [*self.nodes[1].net.inside(), str(self.conman), *words]

    def environment(self):
        return {"PATH": os.environ["PATH"], "CONMAN_URL": f"http://127.0.0.1:{PORT}"}

    def leader(self):
        """The member of etcd that leads, as it says itself."""
        return until("a leader of etcd", lambda: next((one for one in self.members.values() if leads(one)), None))

    def leave(self):
        """Ends everything in order, and says what is left behind then."""
        left = []
        for part in ("conman", "keeper"):
            processes = [getattr(node, part) for node in self.nodes.values()]
            for process in processes:
                process.hold(signal.SIGTERM)
            deadline = time.monotonic() + 30
            for process in processes:
                try:
                    process.child.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    left.append(f"a {part} that was told to end: {process.words[-1]}")
        for node in self.nodes.values():
            for group in cgroups(node.state):
                # Empty ones stay until the next start, which removes them.
                left += [f"{node.name}: the process {text}" for file in group.rglob("cgroup.procs")
                         for text in file.read_text().split()]
        own = {str(directory) for directory in self.mounts}
        for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
            place = line.split()[4]
            if place.startswith(f"{self.scratch}/") and place not in own:
                left.append(f"a mount at {place}")
        return left


def leads(member):
    connection = http.client.HTTPConnection("127.0.0.1", 2381, timeout=1)
    connection.sock = socket_in(member.net.name)
    connection.sock.settimeout(1)
    try:
        connection.sock.connect(("127.0.0.1", 2381))
        connection.request("GET", "/metrics")
        return re.search(r"^etcd_server_is_leader 1$", connection.getresponse().read().decode(), re.MULTILINE)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def make_image(image, programs):
    """A root file system with these programs in /bin, and their libraries."""
    (image / "bin").mkdir(parents=True)
    for program in programs:
        shutil.copy(program, image / "bin")
        listed = subprocess.run(["ldd", program], check=True, text=True, capture_output=True).stdout
        for library in re.findall(r"(/\S+)", listed):
            place = image / library.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)
