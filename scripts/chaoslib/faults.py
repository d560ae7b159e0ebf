"""The faults themselves: each begins, and ends. Both may be called once only, in this order."""

import errno
import os
import signal
import subprocess
import threading
import time

from fleet import Process, until

from . import clock

KILL, STOP, CONT = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT


class Fault:
    """One that is under way. `hosts` are the machines whose containers it may end."""

    def __init__(self, fleet, planned):
        self.fleet, self.planned = fleet, planned
        self.hosts = set()
        self.begun = None

    def begin(self):
        raise NotImplementedError

    def end(self):
        pass


class OnNode(Fault):
    def __init__(self, fleet, planned):
        super().__init__(fleet, planned)
        self.node = fleet.nodes[planned.target + 1]
        self.hosts = {self.node.name}

    def another(self):
        numbers = [number for number in self.fleet.nodes if number != self.node.number]
        return self.fleet.nodes[numbers[self.planned.other % len(numbers)]]


def killed(part):
    class Killed(OnNode):
        def begin(self):
            getattr(self.node, part).send(KILL)

        def end(self):
            process = getattr(self.node, part)
            until(f"a new {part}", lambda: process.child.poll() is None)
    return Killed


def stopped(part):
    class Stopped(OnNode):
        def begin(self):
            self.child = getattr(self.node, part).child
            self.child.send_signal(STOP)

        def end(self):
            # The kernel may have killed it at its deadline: then this is nothing.
            self.child.send_signal(CONT)
    return Stopped


class MachineKilled(OnNode):
    """Conman, keeper and with it the containers, at once."""

    def begin(self):
        self.node.keeper.hold(KILL)
        self.node.conman.hold(KILL)

    def end(self):
        self.node.keeper.release()
        self.node.conman.release()


class MachineGone(MachineKilled):
    """The same, and nobody is told by its network either: the machine is simply no longer there."""

    def begin(self):
        self.node.net.plug(False)
        super().begin()

    def end(self):
        self.node.net.plug(True)
        super().end()


class Preempted(OnNode):
    """A notice; the machine is gone when its time is over, and another with its name takes its place."""

    def begin(self):
        self.notice = self.node.state / "notice"
        self.notice.touch()

    def end(self):
        self.node.keeper.hold(KILL)
        self.node.conman.hold(KILL)
        self.notice.unlink()
        self.node.keeper.release()
        self.node.conman.release()


class PreemptionWave(Fault):
    """Half of the machines, at once."""

    def __init__(self, fleet, planned):
        super().__init__(fleet, planned)
        first = planned.other
        numbers = sorted(fleet.nodes)
        chosen = {numbers[(first + step) % len(numbers)] for step in range(len(numbers) // 2)}
        self.parts = [Preempted(fleet, planned) for _ in chosen]
        for part, number in zip(self.parts, sorted(chosen)):
            part.node = fleet.nodes[number]
        self.hosts = {part.node.name for part in self.parts}

    def begin(self):
        for part in self.parts:
            part.begin()

    def end(self):
        for part in self.parts:
            part.end()


class OfContainer(Fault):
    """The repl's init, wherever it is; no fault if it does not run just now."""

    def __init__(self, fleet, planned):
        super().__init__(fleet, planned)
        self.repl = fleet.repls[planned.target]

    def begin(self):
        self.init = self.fleet.witness.init_of(self.repl)
        return self.send(KILL)

    def send(self, number):
        """Whether there was an init to send it to."""
        try:
            return self.init is not None and os.kill(self.init, number) is None
        except ProcessLookupError:
            return False


class ContainerStopped(OfContainer):
    def begin(self):
        self.init = self.fleet.witness.init_of(self.repl)
        return self.send(STOP)

    def end(self):
        self.send(CONT)


class CutOff(OnNode):
    """No cable."""

    def begin(self):
        self.node.net.plug(False)

    def end(self):
        self.node.net.plug(True)


class Cut(Fault):
    """What `losing` sends to `unheard` is lost, for each pair. One way, or two where both ways are listed."""

    def ways(self):
        raise NotImplementedError

    def begin(self):
        self.cut = list(self.ways())
        for net, others in self.cut:
            net.deafen(others, True)

    def end(self):
        for net, others in self.cut:
            net.deafen(others, False)


class FromStore(Cut, OnNode):
    def members(self):
        return [member.net for member in self.fleet.members.values()]

    def mute(self):
        return [(self.node.net, self.members())]

    def deaf(self):
        return [(net, [self.node.net]) for net in self.members()]


class CutOffFromStore(FromStore):
    def ways(self):
        return self.mute() + self.deaf()


class DeafToStore(FromStore):
    """What it writes is written, and it never learns."""

    def ways(self):
        return self.deaf()


class MuteToStore(FromStore):
    def ways(self):
        return self.mute()


class NodesApart(Cut, OnNode):
    def ways(self):
        other = self.another()
        return [(self.node.net, [other.net]), (other.net, [self.node.net])]


class NodeDeafToNode(Cut, OnNode):
    def ways(self):
        return [(self.another().net, [self.node.net])]


class OfMember(Fault):
    def member(self):
        numbers = sorted(self.fleet.members)
        return self.fleet.members[numbers[self.planned.target % len(numbers)]]

    def choose(self):
        self.chosen = self.member()
        return self.chosen


class MemberKilled(OfMember):
    def begin(self):
        self.choose().process.send(KILL)


class MemberStopped(OfMember):
    def begin(self):
        self.child = self.choose().process.child
        self.child.send_signal(STOP)

    def end(self):
        self.child.send_signal(CONT)


class OfLeader(OfMember):
    def member(self):
        return self.fleet.leader()


class LeaderKilled(OfLeader, MemberKilled):
    pass


class LeaderStopped(OfLeader, MemberStopped):
    pass


class LeaderSlow(OfLeader):
    """It runs for a fifth of the time: too little to be good, enough to stay the leader."""

    RUNS_SECONDS, RESTS_SECONDS = 0.02, 0.08

    def begin(self):
        self.child = self.choose().process.child
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.slow, daemon=True)
        self.thread.start()

    def slow(self):
        while not self.over.wait(self.RUNS_SECONDS):
            self.child.send_signal(STOP)
            self.over.wait(self.RESTS_SECONDS)
            self.child.send_signal(CONT)

    def end(self):
        self.over.set()
        self.thread.join()
        self.child.send_signal(CONT)


class LeaderCutOff(OfLeader, Cut):
    """From the other members; the nodes reach it, and it believes for a while that it leads."""

    def ways(self):
        leader = self.choose()
        others = [member.net for member in self.fleet.members.values() if member is not leader]
        return [(leader.net, others)] + [(net, [leader.net]) for net in others]


class Quorum(Fault):
    def majority(self):
        """The leader and as many others as it takes."""
        leader = self.fleet.leader()
        others = [member for member in self.fleet.members.values() if member is not leader]
        return [leader, *others[:len(self.fleet.members) // 2]]


class QuorumStopped(Quorum):
    """For less than a lease: nobody should notice."""

    def begin(self):
        self.children = [member.process.child for member in self.majority()]
        for child in self.children:
            child.send_signal(STOP)

    def end(self):
        for child in self.children:
            child.send_signal(CONT)


class QuorumLost(Quorum):
    """For longer than a lease: everyone fences."""

    def begin(self):
        self.hosts = {node.name for node in self.fleet.nodes.values()}
        self.lost = self.majority()
        for member in self.lost:
            member.process.hold(KILL)

    def end(self):
        for member in self.lost:
            member.process.release()


class DiskFull(OnNode):
    def directory(self):
        return self.node.state

    def begin(self):
        self.filler = self.directory() / "filler"
        with open(self.filler, "wb", buffering=0) as file:
            for bytes_at_once in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(bytes(bytes_at_once))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def end(self):
        self.filler.unlink()


class MemberDiskFull(OfMember, DiskFull):
    def __init__(self, fleet, planned):
        Fault.__init__(self, fleet, planned)

    def directory(self):
        return self.choose().data


class ForkBomb(OfContainer):
    """In a repl of its own kind: its limit of processes is all that holds it."""

    BOMB = "bomb() { bomb | bomb & }; bomb"

    def begin(self):
        self.init = self.fleet.witness.init_of(self.repl)
        if self.init is None:
            return False
        self.command = subprocess.Popen(
            self.fleet.command("repl", "exec", self.repl, "--", "/bin/sh", "-c", self.BOMB),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=self.fleet.environment())
        return True

    def end(self):
        if self.init is None:
            return
        self.command.kill()
        self.command.wait()
        # The bomb goes with its container, and with nothing less.
        self.send(KILL)


class ClockStepped(Fault):
    """The time of day, an hour forth or back; and then the other way. It is no part of any rule."""

    def begin(self):
        self.step = clock.HOUR if self.planned.other % 2 else -clock.HOUR
        clock.step(self.step)

    def end(self):
        clock.step(-self.step)


def slewed(share):
    class Slewed(Fault):
        def begin(self):
            clock.slew(share)
            measured = clock.rate()
            if abs(measured - 1 - share) > 0.02:
                raise SystemExit(f"chaos: the clocks run at a rate of {measured:.3f}, slewed by {share}")

        def end(self):
            clock.slew(0)
    return Slewed


FAULTS = {
    "conman_killed": killed("conman"),
    "conman_stopped": stopped("conman"),
    "keeper_killed": killed("keeper"),
    "keeper_stopped": stopped("keeper"),
    "container_killed": OfContainer,
    "container_stopped": ContainerStopped,
    "machine_killed": MachineKilled,
    "machine_gone": MachineGone,
    "preempted": Preempted,
    "preemption_wave": PreemptionWave,
    "cut_off": CutOff,
    "cut_off_from_store": CutOffFromStore,
    "deaf_to_store": DeafToStore,
    "mute_to_store": MuteToStore,
    "nodes_apart": NodesApart,
    "node_deaf_to_node": NodeDeafToNode,
    "member_killed": MemberKilled,
    "member_stopped": MemberStopped,
    "leader_killed": LeaderKilled,
    "leader_stopped": LeaderStopped,
    "leader_slow": LeaderSlow,
    "leader_cut_off": LeaderCutOff,
    "quorum_stopped": QuorumStopped,
    "quorum_lost": QuorumLost,
    "disk_full": DiskFull,
    "member_disk_full": MemberDiskFull,
    "fork_bomb": ForkBomb,
    "clock_stepped": ClockStepped,
    "clock_fast": slewed(clock.SLEW_MAX),
    "clock_slow": slewed(-clock.SLEW_MAX),
}
