"""What the users saw: their attempts as they come in, and what can be asked of them."""

import collections
import json
import pathlib
import subprocess
import sys
import threading
import time

USERS = pathlib.Path(__file__).resolve().parent / "users.py"


class Sessions:
    """Starts the users and reads what they say, in a thread of its own that wakes whoever waits."""

    def __init__(self, nets, repls, log, visit_every_seconds=1.0):
        self.pairs = [(repl, node) for repl in repls for node in nets]
        self.served = collections.defaultdict(list)
        self.tried = 0
        self.failures = collections.Counter()
        self.refused = self.dropped = 0
        self.news = threading.Condition()
        with open(log, "ab") as errors:
            self.child = subprocess.Popen(
                [sys.executable, USERS,
                 json.dumps({"nets": nets, "repls": repls, "visit_every_seconds": visit_every_seconds})],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for text in self.child.stdout:
            self.take(json.loads(text))

    def take(self, line):
        with self.news:
            if "dropped" in line:
                self.dropped += 1
                return
            if "refused" in line:
                self.refused += 1
                return
            self.tried += 1
            if "failed" in line:
                self.failures[f"{line['kind']}: {line['failed']}"] += 1
                return
            self.served[line["repl"], line["node"]].append((line["began"], line["ended"], line["instance"]))
            self.news.notify_all()

    def wait_served(self, since, deadline, pairs=None):
        """Until each pair of repl and gateway has been served with an attempt that began since then. Those that were not."""
        left = set(self.pairs if pairs is None else pairs)
        with self.news:
            while True:
                left = {pair for pair in left if not any(began >= since for began, _, _ in self.served[pair][-3:])}
                remaining = deadline - time.monotonic()
                if not left or remaining <= 0:
                    return sorted(left)
                self.news.wait(remaining)

    def instances(self, at):
        """Which container of each repl served last, by then."""
        with self.news:
            latest = {}
            for (repl, _), served in self.served.items():
                for _, ended, instance in reversed(served):
                    if ended <= at:
                        if ended > latest.get(repl, (0, None))[0]:
                            latest[repl] = (ended, instance)
                        break
            return {repl: instance for repl, (_, instance) in latest.items()}

    def moves_ms(self, since, before, pairs):
        """From then to the first byte of another container than before, for each pair; None for one that had none."""
        with self.news:
            return {pair: next(((ended - since) * 1e3 for _, ended, instance in self.served[pair]
                                if ended > since and instance != before.get(pair[0])), None) for pair in pairs}

    def stop(self):
        """Safe to repeat."""
        self.child.stdin.close()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.reader.join()
