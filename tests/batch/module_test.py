"""backstory_engine.Scorer: Arrow in, Arrow out, the bits of the server, and errors that name what is wrong."""
import pathlib
import pickle
import sys
import threading
import unittest

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parents[1] / "client")]
import harness

from backstory_engine import BackstoryError, BadRowsError, InputError, Scorer, _native, columns as fields_of


class ModuleTest(harness.WorldTest):
    def test_columns_and_row_order(self):
        rows = harness.make_rows(500).append_column("bid", pa.array(np.arange(500) / 7.0))
        with self.scorer() as scorer:
            out = scorer.score(rows, keep=["bid"])
            self.assertEqual(scorer.model_version, "grab-tiny/1")
            task, = scorer.tasks
        self.assertEqual(out.column_names, ["row", "user", "item_id", "time_us", f"calibrated.{task}", f"raw_logit.{task}",
                                            "rows_visible", "unknown_user", "unknown_item", "bid"])
        self.assertEqual(out.select(rows.column_names), rows)
        self.assertEqual(out["row"].to_pylist(), list(range(500)))
        unknown = pc.is_in(rows["user"], pa.array([f"u{harness.USERS}", f"u{harness.USERS + 1}"]))
        self.assertEqual(out["unknown_user"], unknown)
        self.assertEqual(out["unknown_item"], pc.greater_equal(rows["item_id"], harness.ITEMS))
        self.assertTrue(all(0 < p < 1 for p in out[f"calibrated.{task}"].to_pylist()))
        self.assertGreater(pc.max(out["rows_visible"]).as_py(), 50)

    def test_numbers_are_copied_neither_in_nor_out(self):
        table = pa.table({"user": pa.array(np.arange(64)), "item_id": pa.array(np.arange(64).astype(np.uint64)),
                          "time_us": pa.array(np.full(64, harness.LATER)),
                          "candidate_numbers.bid": pa.array(np.linspace(0, 1, 64, dtype=np.float32))})
        fields = fields_of.rows_of(table, fields_of.resolve(table.schema))
        batch, = fields.combine_chunks().to_batches()
        for name in table.column_names:
            self.assertEqual(batch.column(name).buffers()[1].address, table.column(name).chunk(0).buffers()[1].address, name)
        with self.scorer() as scorer:
            result = scorer.engine.score(batch)
            once, again = pa.record_batch(result), pa.record_batch(result)
        for name in once.schema.names:  # the same memory twice, and it outlives the result and the engine
            self.assertEqual(once.column(name).buffers()[1].address, again.column(name).buffers()[1].address)
        del result, again
        once.validate(full=True)

    def test_any_split_and_order_gives_the_same_bits(self):
        rows = harness.make_rows(800)
        with self.scorer() as scorer, self.scorer(threads=3, cache_bytes=1 << 20) as other:
            whole = harness.bits(scorer.score(rows))
            pieces = [other.score(rows.slice(at, 90)) for at in range(0, 800, 90)]
            joined = pa.concat_tables(pieces).set_column(0, "row", pa.array(range(800)))
            self.assertEqual(harness.bits(joined), whole)
            backwards = rows.take(pa.array(range(799, -1, -1)))
            turned = scorer.score(backwards).set_column(0, "row", pa.array(range(799, -1, -1)))
            self.assertEqual(harness.bits(turned), whole)
            chunked = pa.Table.from_batches(rows.to_batches(max_chunksize=17))
            self.assertEqual(harness.bits(scorer.score(chunked)), whole)

    def test_every_type_of_a_column_that_makes_sense_means_the_same(self):
        count = 200
        rows = harness.make_rows(count).set_column(0, "user", pa.array([i % 20 for i in range(count)]))
        rows = rows.append_column("candidate_numbers.bid", pa.array([i % 8 for i in range(count)]))
        with self.scorer() as scorer:
            wanted = harness.bits(scorer.score(rows).select(["row", *self.scores(scorer)]))
            for field, kinds in {
                    "user": [pa.int32(), pa.uint64(), pa.string(), pa.large_string(), pa.string_view(),
                             pa.dictionary(pa.int32(), pa.string())],
                    "item_id": [pa.int16(), pa.uint64(), pa.uint32(), pa.string(), pa.dictionary(pa.int8(), pa.int64())],
                    "time_us": [pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ns", "Asia/Tokyo"), pa.uint64()],
                    "candidate_numbers.bid": [pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.float16(),
                                              pa.decimal128(24, 2)]}.items():
                for kind in kinds:
                    if field == "time_us" and pa.types.is_timestamp(kind):
                        column = rows[field].cast(pa.timestamp("us", "UTC")).cast(pa.timestamp(kind.unit, kind.tz))
                    elif pa.types.is_dictionary(kind):
                        column = rows[field].cast(kind.value_type).dictionary_encode()
                    else:
                        column = rows[field].cast(kind)
                    other = rows.set_column(rows.column_names.index(field), field, column)
                    with self.subTest(field=field, kind=kind):
                        self.assertEqual(harness.bits(scorer.score(other).select(["row", *self.scores(scorer)])), wanted)
            struct = rows.drop_columns(["candidate_numbers.bid"]).append_column(
                "candidate_numbers", pa.array([{"bid": i % 8} for i in range(count)]))
            self.assertEqual(harness.bits(scorer.score(struct).select(["row", *self.scores(scorer)])), wanted)

    def scores(self, scorer):
        return [f"{kind}.{task}" for task in scorer.tasks for kind in ("calibrated", "raw_logit")]

    def test_time_units_mapping_and_defaults(self):
        rows = harness.make_rows(100)
        seconds = pa.table({"who": rows["user"], "what": rows["item_id"], "at": pc.divide(rows["time_us"], 1_000_000)})
        with self.scorer() as scorer:
            wanted = harness.bits(scorer.score(rows))
            self.assertEqual(harness.bits(scorer.score(
                seconds, fields={"user": "who", "item": "what", "time_us": "at"}, time_unit="s")), wanted)
            fixed = scorer.score(rows.drop_columns(["time_us"]), defaults={"time_us": harness.LATER})
            late = rows.set_column(2, "time_us", pa.array([harness.LATER] * 100))
            self.assertEqual(harness.bits(fixed), harness.bits(scorer.score(late)))
            holes = rows.set_column(0, "user", pa.array([None if i % 3 else u for i, u in enumerate(rows["user"].to_pylist())]))
            filled = rows.set_column(0, "user", pa.array(["u1" if i % 3 else u for i, u in enumerate(rows["user"].to_pylist())]))
            self.assertEqual(harness.bits(scorer.score(holes, defaults={"user": "u1"})), harness.bits(scorer.score(filled)))

    def test_errors_name_column_type_and_what_was_wanted(self):
        good = {"user": ["a"], "item_id": [1], "time_us": [1]}
        with self.scorer() as scorer:
            for change, words in [({"user": [1.5]}, ("'user'", "double", "text or a whole number")),
                                  ({"user": [True]}, ("'user'", "bool")),
                                  ({"user": [b"a"]}, ("'user'", "binary")),
                                  ({"item_id": [1.0]}, ("'item_id'", "double")),
                                  ({"item_id": [[1]]}, ("'item_id'", "list")),
                                  ({"time_us": [0.5]}, ("'time_us'", "double", "timestamp")),
                                  ({"time_us": ["2020"]}, ("'time_us'", "string")),
                                  ({"scene": [7]}, ("'scene'", "int64", "text")),
                                  ({"candidate_numbers.bid": ["x"]}, ("'candidate_numbers.bid'", "string", "a number"))]:
                with self.subTest(change=change), self.assertRaises(InputError) as caught:
                    scorer.score(pa.table({**good, **change}))
                for word in words:
                    self.assertIn(word, str(caught.exception))
            for missing in good:
                with self.assertRaisesRegex(InputError, f"column '{missing}': not in the table"):
                    scorer.score(pa.table({k: v for k, v in good.items() if k != missing}))
            with self.assertRaisesRegex(InputError, "'user'.*given twice"):
                scorer.score(pa.table([["a"], ["b"], [1], [1]], names=["user", "user", "item_id", "time_us"]))
            with self.assertRaisesRegex(InputError, "'nonesuch'.*not in the table"):
                scorer.score(pa.table(good), keep=["nonesuch"])
            with self.assertRaisesRegex(InputError, "'usr': there is no such field"):
                scorer.score(pa.table(good), fields={"usr": "user"})
            with self.assertRaisesRegex(InputError, "time_us.*'soon'"):
                scorer.score(pa.table(good), defaults={"time_us": "soon"})

    def test_bad_rows_are_named_and_cost_the_others_nothing(self):
        rows = harness.make_rows(9)
        users, items = rows["user"].to_pylist(), rows["item_id"].to_pylist()
        users[1], users[4], items[2], items[5] = None, "x" * 300, -1, None
        broken = pa.table({"user": users, "item_id": items, "time_us": [0 if i == 7 else t.as_py() for i, t in
                                                                      enumerate(rows["time_us"])]})
        with self.scorer() as scorer:
            with self.assertRaises(BadRowsError) as caught:
                scorer.score(broken)
            self.assertEqual([(row, column) for row, column, _ in caught.exception.rows],
                             [(1, "user"), (2, "item_id"), (4, "user"), (5, "item_id"), (7, "time_us")])
            self.assertIn("256", caught.exception.rows[2][2])
            self.assertIn("-1", caught.exception.rows[1][2])
            out = scorer.score(broken, bad_rows="null")
            out.validate(full=True)
            task, = scorer.tasks
            good = [0, 3, 6, 8]
            self.assertEqual([i for i, p in enumerate(out[f"calibrated.{task}"].to_pylist()) if p is not None], good)
            self.assertEqual(harness.bits(out.take(good).select(["row", f"calibrated.{task}"])),
                             harness.bits(scorer.score(rows).take(good).select(["row", f"calibrated.{task}"])))
            negative = rows.append_column("request_id", pa.array([-5 if i == 3 else 0 for i in range(9)]))
            with self.assertRaisesRegex(BadRowsError, "row 3: request_id: -5"):
                scorer.score(negative)

    def test_a_time_out_of_range_is_its_rows_problem(self):
        for column, unit in [(pa.array([9, 2**63 - 1]), "s"), (pa.array([9, -2**63]), "ms"), (pa.array([9, 2**64 - 1], pa.uint64()), "us"),
                             (pa.array([9, 2**62], pa.timestamp("s")), "us"), (pa.array([9_000, 0], pa.timestamp("ns")), "us")]:
            with self.subTest(type=column.type, unit=unit), self.scorer() as scorer:
                with self.assertRaisesRegex(BadRowsError, "^INVALID_ARGUMENT: row 1: time_us: .* must be within [^,]*$"):
                    scorer.score(pa.table({"user": ["a", "b"], "item_id": [1, 2], "time_us": column}), time_unit=unit)

    def test_arrays_that_lie_are_refused(self):
        offsets = pa.py_buffer(np.array([0, 5, 2, 6], dtype=np.int32).tobytes())
        lying = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"abcdef"))
        latin = pa.StringArray.from_buffers(3, pa.py_buffer(np.array([0, 1, 2, 3], np.int32).tobytes()), pa.py_buffer(b"\xe9\xe9\xe9"))
        with self.scorer() as scorer:
            for users in (lying, latin):
                with self.assertRaisesRegex(BackstoryError, "column 'user'"):
                    scorer.score(pa.table({"user": users, "item_id": [1, 2, 3], "time_us": [9, 9, 9]}))

    def test_empty_table_and_close(self):
        scorer = self.scorer()
        empty = scorer.score(harness.make_rows(3).slice(0, 0))
        self.assertEqual((empty.num_rows, empty.schema), (0, scorer.score(harness.make_rows(3)).schema))
        scorer.close()
        scorer.close()
        with self.assertRaisesRegex(ValueError, "closed"):
            scorer.score(harness.make_rows(3))

    def test_opening_says_what_is_missing(self):
        for options, code, word in [({"store": "/nonesuch"}, "NOT_FOUND", "/nonesuch"),
                                    ({"models": "/nonesuch"}, "NOT_FOUND", "/nonesuch"),
                                    ({"model": "nonesuch"}, "NOT_FOUND", "nonesuch"),
                                    ({"version": "9"}, "NOT_FOUND", "9"),
                                    ({"parameters": {"history_rowz": 5}}, "NOT_FOUND", "history_rows"),
                                    ({"parameters": {"history_rows": -5}}, "INVALID_ARGUMENT", "history_rows")]:
            with self.subTest(options=options), self.assertRaises(BackstoryError) as caught:
                Scorer(**{"store": self.world / "store", "models": self.world / "models", **options})
            self.assertEqual(caught.exception.code, code, str(caught.exception))
            self.assertIn(word, str(caught.exception))
            again = pickle.loads(pickle.dumps(caught.exception))  # errors travel between processes
            self.assertEqual((again.code, str(again)), (code, str(caught.exception)))

    def test_slots_are_those_of_the_store(self):
        for users in (pa.array(["123456789", "{123456789}x"]), pa.array([123456789, 123456789])):
            slots = np.frombuffer(_native.slots(pa.record_batch({"user": users})), dtype=np.uint16)
            self.assertEqual(list(slots), [0x31c3, 0x31c3])  # the check value of CRC16/XMODEM; a {tag} is hashed alone

    def test_parameters_reach_the_engine(self):
        rows = harness.make_rows(200)
        with self.scorer(parameters={"history_rows": 5}) as short, self.scorer() as full:
            self.assertEqual(short.engine.parameters["history_rows"], "5")
            self.assertNotEqual(harness.bits(short.score(rows)), harness.bits(full.score(rows)))

    def test_python_runs_while_the_engine_works_and_threads_share_it(self):
        rows = harness.make_rows(4000)
        with self.scorer() as scorer:
            wanted = harness.bits(scorer.score(rows))
            results = {}
            threads = [threading.Thread(target=lambda n=n: results.update({n: scorer.score(rows)})) for n in range(3)]
            for thread in threads:
                thread.start()
            turns = 0
            while any(thread.is_alive() for thread in threads):
                turns += 1
                threads[turns % 3].join(0.001)
            self.assertGreater(turns, 10)  # with the lock held, a turn would take a whole call
            for n in range(3):
                self.assertEqual(harness.bits(results[n]), wanted)

    def test_what_a_listener_raises_ends_the_call(self):
        def stop(_rows):
            raise KeyboardInterrupt
        rows = harness.make_rows(20000)
        with self.scorer() as scorer:
            with self.assertRaises(KeyboardInterrupt):
                scorer.score_columns(rows, fields_of.resolve(rows.schema), progress=stop)
            self.assertEqual(scorer.score(rows.slice(0, 5)).num_rows, 5)


class OnlineTest(harness.WorldTest):
    """The same bits as the server gave, through the wire client, for the same store."""

    def test_batch_equals_online(self):
        import client_test  # builds the client's wheel; needs grpcio
        client_test.build_wheel(self.folder)
        import backstory
        server = client_test.Server(self.folder, generative=False)
        rows = harness.make_rows(1500, seed=3)
        try:
            with backstory.Client(server.address, namespace="shop", timeout=60) as client:
                for user in range(harness.USERS):
                    events = [backstory.Event(1 + 2 * i, harness.START + i * 5 * harness.MINUTE, 1 + (i * 7 + user) % 20)
                              for i in range(60 + user)]
                    clicks = [backstory.Event(e.event_id + 1, e.time_us + 1000, e.item_id, action="click",
                                              exposure_id=e.event_id) for e in events[::3]]
                    client.append(f"u{user}", events + clicks)
                online = client.score_table(rows, user="user", item="item_id", time="time_us")
            with self.assertRaises(BackstoryError) as caught:  # the server has the store open
                Scorer(self.folder / "store", self.folder / "models")
            self.assertEqual(caught.exception.code, "FAILED_PRECONDITION")
        finally:
            self.assertEqual(server.stop(), 0)
        with Scorer(self.folder / "store", self.folder / "models", namespace="shop") as scorer:
            task, = scorer.tasks
            batch = scorer.score(rows)
        self.assertEqual(batch[f"calibrated.{task}"].to_numpy().tobytes(), np.array(online, dtype=np.float32).tobytes())
        self.assertGreater(len(set(online)), 500)


if __name__ == "__main__":
    unittest.main()
