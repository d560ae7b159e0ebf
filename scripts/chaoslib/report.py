"""What a run has shown: a table for people, JSON for machines."""

import collections


def percentile(values, share):
    """The value below which that share of them is, as the nearest of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Report:
    def __init__(self, seed):
        self.seed = seed
        self.faults = collections.Counter()
        self.moves = collections.defaultdict(list)
        self.false_fences = collections.Counter()
        self.longest_outage = 0.0
        self.usable = []
        self.rounds = 0
        self.violations = []

    def take(self, planned, outcome):
        """Adds a round."""
        self.rounds += 1
        self.faults.update(outcome.faults)
        self.usable.append(outcome.usable_seconds)
        self.longest_outage = max(self.longest_outage, outcome.outage_seconds)
        if outcome.moves_ms:
            self.moves[planned.faults[0].kind] += outcome.moves_ms
        if outcome.lost:
            self.false_fences[planned.faults[0].kind] += len(outcome.lost)
        if outcome.unusable:
            kinds = ", ".join(fault.kind for fault in planned.faults)
            self.violations.append(f"round {planned.number} ({kinds}): not usable again: "
                                   + ", ".join(f"{repl} at {node}" for repl, node in outcome.unusable))

    def failover(self):
        return {kind: {"count": len(values), "p50_ms": round(percentile(values, 0.50)),
                       "p99_ms": round(percentile(values, 0.99)), "max_ms": round(max(values))}
                for kind, values in sorted(self.moves.items())}

    def figures(self, seconds, lifetimes, overlaps, sessions):
        return {
            "seed": self.seed, "seconds": round(seconds), "rounds": self.rounds,
            "faults": dict(sorted(self.faults.items())), "faults_total": self.faults.total(),
            "lifetimes": lifetimes, "overlaps": overlaps,
            "sessions": sessions.tried, "sessions_failed": sessions.failures.total(),
            "sessions_refused": sessions.refused, "websockets_dropped": sessions.dropped, "failures": dict(sessions.failures.most_common()),
            "failover": self.failover(),
            "usable_again_seconds_max": round(max(self.usable, default=0.0), 1),
            "false_fences": self.false_fences.total(), "false_fences_by_fault": dict(self.false_fences),
            "longest_store_outage_survived_seconds": round(self.longest_outage, 1),
            "violations": self.violations,
        }


def table(figures):
    rows = [f"{'fault':22} {'times':>5} {'moved':>6} {'p50':>8} {'p99':>8} {'max':>8}"]
    for kind, times in figures["faults"].items():
        moves = figures["failover"].get(kind)
        cells = [f"{moves['count']:>6}", *(f"{moves[key]:>5} ms" for key in ("p50_ms", "p99_ms", "max_ms"))] if moves else []
        rows.append(f"{kind:22} {times:>5} {' '.join(cells)}".rstrip())
    rows += [
        f"{figures['faults_total']} faults in {figures['seconds']} s from seed {figures['seed']};"
        f" {figures['lifetimes']} container lifetimes, {figures['overlaps']} overlaps",
        f"{figures['sessions']} sessions, {figures['sessions_failed']} failed while something was broken;"
        f" {figures['sessions_refused']} met a gateway that was not there",
        f"usable again after {figures['usable_again_seconds_max']} s at the most; {figures['false_fences']} false fences;"
        f" longest outage of the store survived: {figures['longest_store_outage_survived_seconds']} s",
        f"{len(figures['violations'])} violations",
    ]
    return "\n".join(rows)
