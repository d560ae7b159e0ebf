"""A fleet of machines on this one, for scripts/drill-fleet and scripts/chaos: network namespaces with addresses of their own on
one switch, nodes (a keeper and a conman) and members of etcd in them, and the certificates by which they know each other.
"""

import ctypes
import errno
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIGURES = ROOT / "target" / "figures"
PATIENCE_SECONDS = 60
CLONE_NEWNET = 0x4000_0000
# Since this kernel, a tmpfs can be mounted with other owners, as a container's workspace is.
TMPFS_SHIFTS_OWNERS = (6, 3)
# What nobody has: a frame to it goes to every port of the switch, and is taken by none.
NOBODY = "02:00:00:00:de:ad"


def say(text):
    print(f"{pathlib.Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def run(*command, **options):
    return subprocess.run([str(word) for word in command], check=True, text=True, **options)


def kernel():
    """The running kernel's version: two numbers."""
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


def until(what, ask, seconds=PATIENCE_SECONDS):
    """Other machines' state has no event here: asks again until it is so."""
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise SystemExit(f"{pathlib.Path(sys.argv[0]).name}: not in time: {what}")
        time.sleep(0.1)


class Process:
    """A process in a namespace, started again when it ends, as its service manager would; not while it is held."""

    def __init__(self, net, log, *command, env=None):
        self.words = [*net.inside(), "setpriv", "--pdeathsig", "KILL", *map(str, command)]
        self.log = open(log, "ab")
        self.env = {"PATH": os.environ["PATH"], **(env or {})}
        self.wanted = True
        self.may_run = threading.Event()
        self.may_run.set()
        self.started = threading.Event()
        self.child = None
        self.starts = 0
        self.guard = threading.Lock()
        self.keeper = threading.Thread(target=self._keep, daemon=True)
        self.keeper.start()
        self.started.wait()

    def _keep(self):
        while self.wanted:
            self.may_run.wait()
            with self.guard:
                if not self.wanted or not self.may_run.is_set():
                    continue
                self.child = subprocess.Popen(self.words, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                              env=self.env)
                self.starts += 1
            self.started.set()
            self.child.wait()
            # What fails at its start is not to fill the log.
            time.sleep(0.1)

    def send(self, number):
        self.child.send_signal(number)

    def restart(self, number):
        """Ends it so, and waits until another has taken its place."""
        before = self.child
        self.send(number)
        until("a restart", lambda: self.child is not before)

    def hold(self, number=signal.SIGKILL):
        """Ends it, and leaves it ended until it is released."""
        with self.guard:
            self.may_run.clear()
            self.child.send_signal(number)

    def release(self):
        self.may_run.set()

    def stop(self, number=signal.SIGKILL):
        with self.guard:
            self.wanted = False
            self.may_run.set()
            self.child.send_signal(number)
        self.keeper.join(PATIENCE_SECONDS)
        if self.keeper.is_alive():
            self.child.kill()
            self.keeper.join()
        self.log.close()


class Net:
    """A network namespace with an address, on a switch that is in a namespace too."""

    def __init__(self, fleet, name, number):
        self.fleet, self.number = fleet, number
        self.name = f"{fleet.name}-{name}"
        self.address = f"10.77.0.{number}"
        run("ip", "netns", "add", self.name)
        fleet.nets.append(self.name)
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        if number == 0:
            run("ip", "-n", self.name, "link", "add", "switch", "type", "bridge")
            run("ip", "-n", self.name, "link", "set", "switch", "up")
            return
        port = f"p{number}"
        run("ip", "-n", fleet.switch.name, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        run("ip", "-n", fleet.switch.name, "link", "set", port, "master", "switch", "up")
        run("ip", "-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", self.name, "link", "set", "eth0", "up")

    def inside(self):
        """What a command in it begins with. Not `ip netns exec`, which mounts another /sys without cgroups."""
        return ["nsenter", f"--net=/run/netns/{self.name}"]

    def plug(self, is_in):
        """Takes its cable out of the switch, or puts it back."""
        run("ip", "-n", self.fleet.switch.name, "link", "set", f"p{self.number}", "up" if is_in else "down")

    def deafen(self, others, is_deaf):
        """What it sends to the others is lost without a word, or no longer; what they send to it arrives."""
        for other in others:
            words = ["replace", other.address, "lladdr", NOBODY, "nud", "permanent"] if is_deaf else ["del", other.address]
            # It may have been undone already, by the end of another cut between the two.
            subprocess.run(["ip", "-n", self.name, "neigh", *words, "dev", "eth0"], check=is_deaf,
                           stderr=None if is_deaf else subprocess.DEVNULL)


def socket_in(net):
    """A TCP socket in a network namespace, for a process outside: it stays there, whoever uses it."""
    made = []

    def make():
        # Python's os has no setns before 3.12.
        with open(f"/run/netns/{net}", "rb") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
                made.append(OSError(ctypes.get_errno(), f"enter {net}"))
                return
        made.append(socket.socket())

    # A thread of its own: only it changes its namespace, and it ends.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


class Node:
    """A machine: a keeper and a conman. `more` is further lines of its configuration."""

    def __init__(self, fleet, number, more="", size=None):
        self.fleet, self.number, self.name = fleet, number, f"node-{number}"
        self.net = Net(fleet, f"n{number}", number)
        self.state = fleet.scratch / self.name
        self.state.mkdir()
        if size:
            fleet.mount(self.state, size)
        fleet.sign(self.name, self.net.address)
        certificates = fleet.certificates
        beyond = f'listen = "{self.net.address}:8080"\ntoken_keys = "{fleet.token_keys}"'
        self.config = fleet.scratch / f"{self.name}.toml"
        self.config.write_text(f"""
state = "{self.state}"
host = "{self.name}"
host_address = "tls:{self.net.address}:7000"
keeper_socket = "{self.state}/keeper"
node_ca = "{certificates}/ca.pem"
node_certificate = "{certificates}/{self.name}.pem"
node_key = "{certificates}/{self.name}-key.pem"
probe_hosts = 0
{more or beyond}

[store]
kind = "etcd"
endpoints = [{", ".join(f'"https://10.77.0.{member}:2379"' for member in fleet.member_numbers)}]
ca = "{certificates}/ca.pem"
certificate = "{certificates}/{self.name}.pem"
key = "{certificates}/{self.name}-key.pem"
""")
        self.keeper = self.process("keeper")
        self.conman = self.process("serve")

    def process(self, command):
        return Process(self.net, self.log(command), self.fleet.conman, command, "--config", self.config)

    def log(self, command):
        # Not where a full disk would lose it.
        return self.fleet.scratch / f"{self.name}.{command}.log"


class Member:
    """A member of etcd on an address of the fleet."""

    def __init__(self, fleet, number, net, state="new", size=None):
        self.fleet, self.number, self.name = fleet, number, f"etcd-{number}"
        self.net, self.address = net, net.address
        self.data = fleet.scratch / self.name
        if size and not self.data.exists():
            self.data.mkdir()
            fleet.mount(self.data, size)
        fleet.sign(self.name, self.address)
        pem = fleet.certificates / self.name
        tls = [f"--{peer}{flag}={value}" for peer in ("", "peer-") for flag, value in (
            ("cert-file", f"{pem}.pem"), ("key-file", f"{pem}-key.pem"),
            ("trusted-ca-file", fleet.certificates / "ca.pem"), ("client-cert-auth", "true"))]
        self.process = Process(
            self.net, fleet.scratch / f"{self.name}.log", "etcd", "--name", self.name,
            "--data-dir", self.data / "data", "--listen-client-urls", f"https://{self.address}:2379",
            "--advertise-client-urls", f"https://{self.address}:2379", "--listen-peer-urls",
            f"https://{self.address}:2380", "--initial-advertise-peer-urls", f"https://{self.address}:2380",
            "--initial-cluster", fleet.cluster(), "--initial-cluster-state", state, "--heartbeat-interval", "50",
            "--election-timeout", "500", "--pre-vote", "--auto-compaction-mode", "periodic", "--auto-compaction-retention", "10m",
            "--listen-metrics-urls", "http://127.0.0.1:2381", "--logger", "zap", "--log-level", "warn", *tls)


class Machines:
    """What every fleet has: namespaces, certificates, nodes, members; and the end of all of it."""

    def __init__(self, name, conman, scratch, member_numbers):
        self.name = f"{name}{os.getpid()}"
        self.conman, self.scratch, self.member_numbers = conman, scratch, member_numbers
        self.nets, self.mounts, self.nodes, self.members = [], [], {}, {}
        self.certificates = scratch / "certificates"
        run(conman, "certs", "ca", "--directory", self.certificates, stdout=subprocess.DEVNULL)
        self.token_keys = scratch / "token-keys"
        with open(self.token_keys, "w") as file:
            run(conman, "token", "key", "drill", stdout=file)

    def cluster(self):
        return ",".join(f"etcd-{number}=https://10.77.0.{number}:2380" for number in self.member_numbers)

    def sign(self, name, address):
        place = self.certificates
        run(self.conman, "certs", "node", name, "--address", address, "--ca-directory", place, "--directory", place,
            stdout=subprocess.DEVNULL)

    def mount(self, directory, size):
        """A disk of its own, of this size, that can be filled."""
        if kernel() >= TMPFS_SHIFTS_OWNERS:
            run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", directory)
        else:
            disk = directory.with_suffix(".disk")
            run("mke2fs", "-q", "-t", "ext4", "-m", "0", disk, size, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            run("mount", "-o", "loop", disk, directory)
        self.mounts.append(directory)

    def stop(self):
        for process in [*(node.conman for node in self.nodes.values()), *(node.keeper for node in self.nodes.values()),
                        *(member.process for member in self.members.values())]:
            process.stop()
        for name in self.nets:
            subprocess.run(["ip", "netns", "delete", name])
        # A node that was killed leaves them to its next start; here there is none.
        for state in self.scratch.glob("node-*/"):
            until(f"the end of {state.name}'s cgroups", lambda: remove_cgroups(state))
        for directory in self.mounts:
            # What the containers of a killed node still had mounted in it goes with it.
            subprocess.run(["umount", "--lazy", directory])


def cgroups(state):
    """The cgroups of the fleet in this state directory, in every tree."""
    # The name that conman gives them: FNV-1a of the path.
    number = 0xCBF2_9CE4_8422_2325
    for byte in bytes(state.resolve()):
        number = (number ^ byte) * 0x0100_0000_01B3 % 2**64
    trees = pathlib.Path("/sys/fs/cgroup")
    name = f"conman-{number >> 24:010x}"
    return [*trees.glob(name), *trees.glob(f"*/{name}")]


def remove_cgroups(state):
    """Removes them; whether none is left."""
    left = cgroups(state)
    for top in left:
        for directory, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(directory)
            except OSError as error:
                # A process in it is still dying.
                if error.errno != errno.EBUSY:
                    raise
    return not any(top.exists() for top in left)
