"""A score as of a time is the same before and after later events reach the store: training never sees the future."""
import csv
import pathlib
import sys
import time
import unittest

import pyarrow as pa

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import harness

UNTIL = harness.START + harness.EVENTS * 7 * harness.MINUTE  # every event of the world lies before


def later_events(path):
    """Exposures after UNTIL, clicks after UNTIL on exposures before it, and clicks on items that rows ask for."""
    harness.write_events(path, seed=2, first=harness.EVENTS + 10)
    with open(path, "a", newline="") as file:
        out = csv.writer(file)
        for user in range(harness.USERS):
            for item in range(1, harness.ITEMS):
                out.writerow([f"u{user}", UNTIL + item * harness.MINUTE, item, "exposure", 1, "feed", 1])


class PointInTimeTest(harness.WorldTest):
    def rows(self, count=3000):
        rows = harness.make_rows(count)
        times = [min(t, UNTIL) for t in rows["time_us"].to_pylist()]
        return rows.set_column(2, "time_us", pa.array(times))

    def ingest(self, events):
        harness.run_binary("ingest", "--store", self.world / "store", "--namespace", "shop", "--events", events)

    def test_later_events_change_no_score(self):
        rows = self.rows()
        with self.scorer() as scorer:
            before, events = harness.bits(scorer.score(rows)), scorer.engine.store_events
            future = rows.set_column(2, "time_us", pa.array([harness.LATER] * rows.num_rows))
            future_before = harness.bits(scorer.score(future))
        later_events(self.folder / "later.csv")
        self.ingest(self.folder / "later.csv")
        with self.scorer() as scorer:
            self.assertGreater(scorer.engine.store_events, events + 500)
            self.assertEqual(harness.bits(scorer.score(rows)), before)
            # The same events do count for who asks later: the test above can fail.
            self.assertNotEqual(harness.bits(scorer.score(future)), future_before)

    def test_what_arrived_late_is_hidden_by_known_by(self):
        rows = self.rows(300)
        with self.scorer() as scorer:
            before = harness.bits(scorer.score(rows))
        known_by = time.time_ns() // 1000
        time.sleep(0.01)
        harness.write_events(self.folder / "late.csv", seed=3)  # other events of the same days, which arrive only now
        self.ingest(self.folder / "late.csv")
        with self.scorer() as scorer:
            self.assertNotEqual(harness.bits(scorer.score(rows)), before)
            out = scorer.score(rows.append_column("known_by_us", pa.array([known_by] * rows.num_rows)))
            for name in ("rows_visible", "user", "unknown_user"):
                self.assertEqual(harness.bits(out)[name], before[name], name)

    def test_as_of_hides_what_lies_between_it_and_the_time(self):
        rows = self.rows(300)
        as_of = [t - 100 * harness.MINUTE for t in rows["time_us"].to_pylist()]
        with self.scorer() as scorer:
            full = scorer.score(rows)["rows_visible"].to_pylist()
            narrow = scorer.score(rows.append_column("as_of_us", pa.array(as_of)))["rows_visible"].to_pylist()
        self.assertTrue(all(a <= b for a, b in zip(narrow, full)))
        self.assertLess(sum(narrow), sum(full))


if __name__ == "__main__":
    unittest.main()
