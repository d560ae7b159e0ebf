"""One round: its faults begin and end at their times, then all must be usable again."""

import dataclasses
import heapq
import time

from .faults import FAULTS

# After so long without a fault, everything that is not usable never will be.
USABLE_SECONDS_MAX = 40
# A lease of the patient profile is so much longer, and one may have to run out after another.
PATIENT_SECONDS = 2 * 30
# No container may end by these but those of the machine that they are done to.
SPARING = {
    "conman_killed", "container_killed", "container_stopped", "nodes_apart", "node_deaf_to_node", "member_killed", "member_stopped",
    "leader_killed", "leader_stopped", "leader_slow", "leader_cut_off", "disk_full", "member_disk_full",
    "fork_bomb", "clock_stepped", "clock_fast", "clock_slow",
}
# And these end containers, whose users are to be elsewhere after so and so long.
MOVING = {
    "keeper_killed", "keeper_stopped", "conman_stopped", "container_killed", "machine_killed", "machine_gone", "preempted",
    "preemption_wave", "cut_off", "cut_off_from_store", "deaf_to_store", "mute_to_store", "quorum_lost", "fork_bomb",
}
# Without a majority nobody renews. When a leader alone is lost, others take over.
OUTAGES = {"quorum_stopped", "quorum_lost"}


@dataclasses.dataclass
class Outcome:
    """What came of a round."""

    faults: list
    usable_seconds: float
    unusable: list
    # Of a fault that came alone: from its begin to the first byte of a new container, for each repl and gateway.
    moves_ms: list = dataclasses.field(default_factory=list)
    # Repls whose containers ended though nothing was done to their machine.
    lost: list = dataclasses.field(default_factory=list)
    outage_seconds: float = 0.0


def usable_seconds_max(shape):
    return USABLE_SECONDS_MAX + (PATIENT_SECONDS if shape.profile == "patient" else 0)


def play(fleet, sessions, planned):
    """Plays a round."""
    owners = {repl: host for repl, (host, _) in fleet.witness.owners().items()}
    epochs = fleet.witness.owners()
    began = time.monotonic()
    before = sessions.instances(began)
    turns = [(fault.begins, number, True) for number, fault in enumerate(planned.faults)]
    heapq.heapify(turns)
    faults, done, ended = {}, [], {}
    while turns:
        at, number, is_begin = heapq.heappop(turns)
        pause = began + at - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        if is_begin:
            plan = planned.faults[number]
            fault = faults[number] = FAULTS[plan.kind](fleet, plan)
            fault.begun = time.monotonic()
            # Without a container to break there is no fault.
            if fault.begin() is not False:
                done.append(plan.kind)
            heapq.heappush(turns, (time.monotonic() - began + plan.lasts, number, False))
        else:
            faults[number].end()
            ended[number] = time.monotonic()
    since = time.monotonic()
    unusable = sessions.wait_served(since, since + usable_seconds_max(fleet.shape))
    outcome = Outcome(done, time.monotonic() - since, unusable)
    if planned.is_alone and done:
        measure(fleet, sessions, outcome, faults[0], ended[0], before, owners, epochs)
    return outcome


def measure(fleet, sessions, outcome, fault, ended, before, owners, epochs):
    kind = fault.planned.kind
    now = fleet.witness.owners()
    moved = {repl for repl, (_, epoch) in now.items() if repl in epochs and epoch != epochs[repl][1]}
    expected = {repl for repl, host in owners.items() if host in fault.hosts} | {getattr(fault, "repl", None)}
    if kind in SPARING:
        # A conman that is back in time adopts what it finds.
        expected = {getattr(fault, "repl", None)}
    outcome.lost = sorted(moved - expected)
    if kind in MOVING:
        pairs = [(repl, node) for repl in moved & expected for node in fleet.nets_of_users()
                 if node not in fault.hosts or len(fault.hosts) == len(fleet.nodes)]
        found = sessions.moves_ms(fault.begun, before, pairs)
        outcome.moves_ms = [value for value in found.values() if value is not None]
    if kind in OUTAGES and not moved:
        outcome.outage_seconds = ended - fault.begun

