"""What happens to the fleet, and when: all of it from one seed, and from nothing else.

A run is a row of rounds. In a round some faults begin, each at its time and on its target, and end; then everything must be
usable again before the next. Every kind of fault comes alone once in each cycle, in an order of the seed's, so that what it costs
can be measured; between those are storms of several at once.
"""

import dataclasses
import random

NODE, MEMBER, REPL, FLEET, CLOCK = "node", "member", "repl", "fleet", "clock"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of fault: on what, and for how long, in seconds."""

    name: str
    target: str
    shortest: float
    longest: float
    # Whether it may be a part of a storm. Not what takes the store from everybody: others could not show there.
    storms: bool = True


@dataclasses.dataclass(frozen=True)
class Planned:
    """One fault: `target` counts nodes, members or repls from 0."""

    kind: str
    target: int
    begins: float
    lasts: float
    # For what needs another choice of its own: the other side of a partition, a rate.
    other: int


@dataclasses.dataclass(frozen=True)
class Round:
    number: int
    faults: tuple[Planned, ...]

    @property
    def is_alone(self):
        return len(self.faults) == 1


# A lost machine is back only after its repls are elsewhere: its lease, and time to start them.
MACHINE = (6.0, 7.0)

KINDS = (
    Kind("conman_killed", NODE, 0.0, 0.0),
    Kind("conman_stopped", NODE, 0.5, 6.0),
    Kind("keeper_killed", NODE, 0.0, 0.0),
    Kind("keeper_stopped", NODE, 0.5, 5.0),
    Kind("container_killed", REPL, 0.0, 0.0),
    Kind("container_stopped", REPL, 0.5, 2.0),
    Kind("machine_killed", NODE, *MACHINE),
    Kind("machine_gone", NODE, *MACHINE),
    Kind("preempted", NODE, 3.0, 5.0),
    Kind("preemption_wave", FLEET, 3.0, 5.0, storms=False),
    Kind("cut_off", NODE, 1.0, 6.0),
    Kind("cut_off_from_store", NODE, 1.0, 6.0),
    Kind("deaf_to_store", NODE, 1.0, 6.0),
    Kind("mute_to_store", NODE, 1.0, 6.0),
    Kind("nodes_apart", NODE, 1.0, 4.0),
    Kind("node_deaf_to_node", NODE, 1.0, 4.0),
    Kind("member_killed", MEMBER, 0.0, 0.0),
    Kind("member_stopped", MEMBER, 0.5, 3.0),
    Kind("leader_killed", FLEET, 0.0, 0.0),
    Kind("leader_stopped", FLEET, 1.0, 3.0),
    Kind("leader_slow", FLEET, 2.0, 4.0),
    Kind("leader_cut_off", FLEET, 1.0, 3.0),
    Kind("quorum_stopped", FLEET, 0.5, 1.5, storms=False),
    Kind("quorum_lost", FLEET, 4.0, 6.0, storms=False),
    Kind("disk_full", NODE, 2.0, 4.0),
    Kind("member_disk_full", MEMBER, 2.0, 4.0),
    Kind("fork_bomb", REPL, 2.0, 3.0),
)
# All machines of the fleet share one kernel, and its clocks with everything else that runs there: only where these are nobody
# else's. What owners count by is slewed, what observers count by is not: to each other, all machines' clocks drift.
CLOCK_KINDS = (
    Kind("clock_stepped", CLOCK, 2.0, 6.0),
    Kind("clock_fast", CLOCK, 6.0, 10.0),
    Kind("clock_slow", CLOCK, 6.0, 10.0),
)
BY_NAME = {kind.name: kind for kind in KINDS + CLOCK_KINDS}


@dataclasses.dataclass(frozen=True)
class Shape:
    """How many of each the fleet has."""

    nodes: int
    members: int
    repls: int
    # The profile of leases: in an emulated machine, tens of times slower, nobody renews within the fast one's 3 s.
    profile: str = "fast"

    def count(self, target):
        return {NODE: self.nodes, MEMBER: self.members, REPL: self.repls, FLEET: 1, CLOCK: 1}[target]


# Of the faults of a storm, so that there is somebody left to recover: fewer than a majority of etcd, not all nodes.
STORM_MEMBERS_MAX = 1
STORM_FAULTS = (4, 6)


def rounds(seed, shape, kinds=KINDS):
    """All rounds of a seed, without an end. Each storm has its clock where there are kinds of that."""
    draw = random.Random(f"chaos {seed}")
    number = 0
    while True:
        order = list(kinds)
        draw.shuffle(order)
        for kind in order:
            yield Round(number, (plan(draw, kind, shape, 0.0),))
            yield Round(number + 1, storm(draw, shape, kinds))
            number += 2


def plan(draw, kind, shape, begins, target=None):
    if target is None:
        target = draw.randrange(shape.count(kind.target))
    lasts = round(draw.uniform(kind.shortest, kind.longest), 2)
    return Planned(kind.name, target, begins, lasts, draw.randrange(1 << 16))


def storm(draw, shape, kinds):
    """Several at once, no two on the same target. One node at least is left alone."""
    wanted = draw.randint(*STORM_FAULTS)
    nodes = draw.sample(range(shape.nodes), shape.nodes - 1)
    repls = draw.sample(range(shape.repls), shape.repls)
    members = [draw.randrange(shape.members)] * STORM_MEMBERS_MAX
    able = [kind for kind in kinds if kind.storms and kind.target != CLOCK]
    clocks = [kind for kind in kinds if kind.target == CLOCK]
    # From the beginning, so that the others come while it lasts.
    faults = [plan(draw, draw.choice(clocks), shape, 0.0)] if clocks else []
    while len(faults) < wanted:
        kind = draw.choice(able)
        # The leader is one of the members.
        pool = {NODE: nodes, REPL: repls, MEMBER: members, FLEET: members}[kind.target]
        if not pool:
            if not nodes and not members:
                able = [kind for kind in able if kind.target == REPL]
            if not able:
                break
            continue
        target = pool.pop()
        faults.append(plan(draw, kind, shape, round(draw.uniform(0.0, 2.0), 2), 0 if kind.target == FLEET else target))
    return tuple(sorted(faults, key=lambda fault: fault.begins))
