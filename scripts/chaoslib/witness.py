"""What the containers' inits have said of their own lives.

Each holds an exclusive flock for its repl as long as it lives, and appends one line when it has tried to take it: all machines of
the fleet share one kernel, so that two at once cannot be missed. See crates/keeper/src/witness.rs.
"""

import collections
import json
import os
import pathlib
import re


class Witness:
    def __init__(self, directory):
        self.directory = directory
        self.record = directory / "record"

    def init_of(self, repl):
        """The init that holds the repl's lock now; None if none does. Asks the kernel, and no part of the fleet."""
        try:
            inode = os.stat(self.directory / f"{repl}.lock").st_ino
        except FileNotFoundError:
            return None
        found = re.search(rf"FLOCK +ADVISORY +WRITE (\d+) [0-9a-f]+:[0-9a-f]+:{inode} ", pathlib.Path("/proc/locks").read_text())
        return int(found[1]) if found else None

    def lines(self):
        try:
            return [json.loads(line) for line in self.record.read_text().splitlines()]
        except FileNotFoundError:
            return []

    def owners(self):
        """Where each repl was started last, at which epoch."""
        return {line["repl"]: (line["host"], line["epoch"]) for line in self.lines()}


def judge(lines):
    """How often two were alive, and every violation in the record, in words."""
    overlaps, wrong = 0, []
    highest = collections.defaultdict(int)
    for line in lines:
        repl, epoch = line["repl"], line["epoch"]
        if line["event"] == "overlap":
            overlaps += 1
            wrong.append(f"two containers of {repl} alive: {line['host']} started one at epoch {epoch}")
        if epoch == highest[repl]:
            wrong.append(f"epoch {epoch} of {repl} was used twice, the second time on {line['host']}")
        elif epoch < highest[repl]:
            wrong.append(f"{repl} went back from epoch {highest[repl]} to {epoch} on {line['host']}")
        highest[repl] = max(highest[repl], epoch)
    return overlaps, wrong
