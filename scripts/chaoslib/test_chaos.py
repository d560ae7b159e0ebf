"""Tests of what is pure: `python3 -m unittest discover scripts/chaoslib`."""

import itertools
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from chaoslib.faults import FAULTS  # noqa: E402
from chaoslib.report import percentile  # noqa: E402
from chaoslib.schedule import BY_NAME, CLOCK, CLOCK_KINDS, FLEET, KINDS, MEMBER, NODE, REPL, Shape, rounds  # noqa: E402
from chaoslib.witness import judge  # noqa: E402

SHAPE = Shape(nodes=4, members=3, repls=12)


def first(count, seed=1):
    return list(itertools.islice(rounds(seed, SHAPE), count))


class Schedule(unittest.TestCase):
    def test_a_seed_is_a_schedule(self):
        self.assertEqual(first(200), first(200))
        self.assertNotEqual(first(200), first(200, seed=2))

    def test_every_kind_comes_alone_in_each_cycle(self):
        alone = [one.faults[0].kind for one in first(2 * len(KINDS)) if one.is_alone]
        self.assertEqual(sorted(alone), sorted(kind.name for kind in KINDS))

    def test_clocks_are_moved_where_they_may_be(self):
        def clocks(one):
            return [fault for fault in one.faults if BY_NAME[fault.kind].target == CLOCK]

        self.assertFalse(any(map(clocks, first(200))))
        kinds = KINDS + CLOCK_KINDS
        played = list(itertools.islice(rounds(1, SHAPE, kinds), 2 * len(kinds)))
        self.assertEqual(sorted(one.faults[0].kind for one in played if one.is_alone), sorted(BY_NAME))
        for storm in (one for one in played if not one.is_alone):
            self.assertEqual([fault.begins for fault in clocks(storm)], [0.0])

    def test_every_kind_can_be_done(self):
        self.assertEqual(set(FAULTS), set(BY_NAME))

    def test_a_storm_leaves_a_node_and_a_majority_alone(self):
        for one in first(2_000):
            if one.is_alone:
                continue
            targets = [(BY_NAME[fault.kind].target, fault.target) for fault in one.faults]
            nodes = [target for what, target in targets if what == NODE]
            self.assertEqual(len(nodes), len(set(nodes)))
            self.assertLess(len(nodes), SHAPE.nodes)
            self.assertLessEqual(sum(what in (MEMBER, FLEET) for what, _ in targets), 1)
            repls = [target for what, target in targets if what == REPL]
            self.assertEqual(len(repls), len(set(repls)))
            self.assertTrue(all(fault.begins <= after.begins for fault, after in zip(one.faults, one.faults[1:])))

    def test_faults_last_as_long_as_their_kind_says(self):
        for fault in itertools.chain.from_iterable(one.faults for one in first(500)):
            kind = BY_NAME[fault.kind]
            self.assertTrue(kind.shortest <= fault.lasts <= kind.longest, fault)


class Judgement(unittest.TestCase):
    @staticmethod
    def line(epoch, event="start", repl="r"):
        return {"repl": repl, "epoch": epoch, "host": "h", "event": event, "monotonic_raw_ns": 0}

    def test_lives_one_after_the_other_are_good(self):
        self.assertEqual(judge([self.line(1), self.line(4, repl="s"), self.line(3)]), (0, []))

    def test_two_at_once_are_not(self):
        overlaps, wrong = judge([self.line(1), self.line(3, "overlap")])
        self.assertEqual((overlaps, len(wrong)), (1, 1))

    def test_epochs_rise(self):
        self.assertEqual(judge([self.line(2), self.line(2)]), (0, ["epoch 2 of r was used twice, the second time on h"]))
        self.assertEqual(judge([self.line(2), self.line(1)]), (0, ["r went back from epoch 2 to 1 on h"]))


class Figures(unittest.TestCase):
    def test_percentiles_are_of_what_was_measured(self):
        self.assertEqual(percentile([3, 1, 2], 0.50), 2)
        self.assertEqual(percentile(list(range(100)), 0.99), 99)
        self.assertEqual(percentile([7], 0.99), 7)


if __name__ == "__main__":
    unittest.main()
