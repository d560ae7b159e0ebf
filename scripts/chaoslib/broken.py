"""The witness is tested itself: with a keeper that lacks a rule of the protocol, it must see two containers.

The rule is `deadline-enforced` (crates/model/src/mutant.rs): the keeper is armed with the deadline, and dies at it. What it guards
against is a conman that hangs: then nobody renews, others take its repls, and its containers live on.
"""

import os
import signal
import subprocess
import time

from fleet import ROOT, Node, Process

from .machines import NODE_DISK, Fleet
from .witness import judge

RULE = "deadline-enforced"
# The first uid of the containers' users, as conman has it.
UID_BASE = 1_000_000_000
OVERLAP_SECONDS_MAX = 30


class LawlessNode(Node):
    """Its keeper was built with the switches, and one is on."""

    def process(self, command):
        if command != "keeper":
            return super().process(command)
        keeper = ROOT / "target" / "mutants" / "debug" / "conman-keeper"
        return Process(self.net, self.log(command), keeper, self.state / "keeper", self.name, UID_BASE,
                       env={"CONMAN_MUTANT": RULE})


class LawlessFleet(Fleet):
    node_type = LawlessNode


def build():
    subprocess.run(["cargo", "build", "--quiet", "--locked", "--package", "keeper", "--bin", "conman-keeper", "--features", "model/mutants",
                    "--target-dir", "target/mutants"], cwd=ROOT, check=True)


def overlaps_seen(fleet, sessions):
    """Stops a conman that has containers, for good, and waits until the witness fires; how often it did."""
    unserved = sessions.wait_served(time.monotonic(), time.monotonic() + OVERLAP_SECONDS_MAX)
    if unserved:
        raise SystemExit(f"chaos: with a rule removed, but nothing broken yet, not served: {unserved}")
    owner = next(iter(fleet.witness.owners().values()))[0]
    node = next(node for node in fleet.nodes.values() if node.name == owner)
    os.kill(node.conman.child.pid, signal.SIGSTOP)
    deadline = time.monotonic() + OVERLAP_SECONDS_MAX
    while time.monotonic() < deadline:
        overlaps, _ = judge(fleet.witness.lines())
        if overlaps:
            return overlaps
        time.sleep(0.1)
    return 0
