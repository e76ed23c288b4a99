"""The Python client against the real server: the wheel is built, installed into a folder of its own and imported from
there, as a user would have it."""
import asyncio
import concurrent.futures
import datetime
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest
import zipfile

ROOT = pathlib.Path(os.environ.get("BACKSTORY_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BINARY = pathlib.Path(os.environ.get("BACKSTORY_BINARY_DIR", ROOT / "build/release")) / "bin/backstory"
START = 1_600_000_000_000_000
MINUTE = 60_000_000
LATER = START + 400_000 * MINUTE


def build_wheel(folder):
    """Builds from a copy of what the wheel needs, so that the source tree stays as it is."""
    copy = folder / "tree"
    for part in ("serving/client", "proto", "deploy/client_service_config.json"):
        (copy / part).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(ROOT / part), str(copy / part)], check=True)
    built = subprocess.run([sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(folder / "dist")],
                           cwd=copy / "serving/client", capture_output=True, text=True)
    if built.returncode:
        raise RuntimeError(built.stdout + built.stderr)
    (wheel,) = (folder / "dist").glob("*.whl")
    if importlib.util.find_spec("pip"):
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps",
                        "--root-user-action=ignore", "--target", str(folder / "site"), str(wheel)], check=True)
    else:  # a wheel of pure Python is its folder, zipped
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    sys.path.insert(0, str(folder / "site"))


# Users of the experiment's scene only, so that the other tests see no arm.
EXPERIMENTS = """hash_version: 1
domain {
  name: "main"
  buckets { first: 0 count: 10000 }
  layer {
    name: "length"
    salt: "length-1"
    parameter: "history_rows"
    experiment {
      name: "short"
      state: RUNNING
      salt: "short-1"
      targeting: "scene == 'lab'"
      buckets { first: 0 count: 10000 }
      ramp: 10000
      arm { name: "control" weight: 5000 }
      arm { name: "short" weight: 5000 parameters { name: "history_rows" value: "4" } }
    }
  }
}
"""


class Server:
    def __init__(self, folder, generative=True):
        model = folder / "models/grab-tiny/1"
        subprocess.run([BINARY, "model", "init-random", "grab-tiny", "--seed", "5", "--out", model], check=True,
                       capture_output=True)
        if generative:
            from tests.training import glass_random_version  # needs torch
            items, self.embeddings = glass_random_version.write(str(folder / "models/glass-tiny/1"))
            self.items = [int(item) for item in items]
        port_file = folder / "port"
        experiments = folder / "experiments.textproto"
        experiments.write_text(EXPERIMENTS)
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [BINARY, "serve", "--store", folder / "store", "--create-store", "--models", folder / "models", "--port", "0",
             "--port-file", port_file, "--experiments", experiments], stdout=subprocess.DEVNULL, stderr=self.log)
        for _ in range(3000):
            if port_file.exists() and port_file.read_text().split():
                break
            if self.process.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.01)
        self.address = f"127.0.0.1:{port_file.read_text().split()[0]}"

    def stop(self):
        self.process.terminate()
        self.log.close()
        return self.process.wait(30)


class ClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory(prefix="backstory-client-")
        folder = pathlib.Path(cls.scratch.name)
        build_wheel(folder)
        global backstory
        import backstory
        assert backstory.__file__.startswith(str(folder)), backstory.__file__
        cls.server = Server(folder)
        cls.client = backstory.Client(cls.server.address, namespace="client", timeout=20)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        code = cls.server.stop()
        cls.scratch.cleanup()
        assert code == 0, f"the server ended with {code}"

    def events(self, count, first=1):
        shown = [backstory.Event(first + 2 * i, START + i * MINUTE, 1 + i % 20) for i in range(count)]
        clicks = [backstory.Event(e.event_id + 1, e.time_us + MINUTE // 2, e.item_id, action="click",
                                  exposure_id=e.event_id) for e in shown[::3]]
        return shown + clicks

    def test_append_is_idempotent_and_rank_sees_it(self):
        events = self.events(30)
        first, again = self.client.append("ann", events), self.client.append("ann", events)
        self.assertEqual((first.accepted, first.rejected), (len(events), 0))
        self.assertEqual((again.accepted, again.duplicate, again.seq), (0, len(events), first.seq))
        result = self.client.rank("ann", [3, 4, 5], now=LATER, explain_top=2, timings=True)
        (task, column), = result.probabilities.items()
        self.assertEqual(len(column), 3)
        self.assertTrue(all(0 < p < 1 for p in column))
        self.assertGreaterEqual(result.rows_visible[0], 30)
        self.assertEqual(len(result.explanations), 3)
        self.assertIn("score", result.timings_us)
        self.assertEqual(result.best(1)[0][1], max(column))
        self.assertFalse(result.unknown_user)

    def test_a_bad_event_refuses_the_batch_and_a_conflict_only_itself(self):
        good, bad = backstory.Event(1, START, 7), backstory.Event(2, -5, 7)
        with self.assertRaises(backstory.BackstoryError) as caught:
            self.client.append("bea", [good, bad])
        self.assertEqual(caught.exception.code, "INVALID_ARGUMENT")
        self.assertIn("events[1].time_us", caught.exception.message)
        self.assertEqual(self.client.append("bea", [good]).accepted, 1)  # nothing of the refused batch was kept
        result = self.client.append("bea", [backstory.Event(1, START, 8), backstory.Event(3, START, 9)])
        self.assertEqual((result.accepted, result.conflict), (1, 1))
        self.assertEqual(result.refusals[0][0], 0)

    def test_errors_name_the_field(self):
        with self.assertRaises(backstory.BackstoryError) as caught:
            self.client.rank("ann", [], now=LATER)
        self.assertEqual(caught.exception.code, "INVALID_ARGUMENT")
        self.assertIn("candidates", caught.exception.message)
        with self.assertRaises(backstory.BackstoryError) as caught:
            self.client.rank("ann", [1], now=LATER, model=backstory.Model("nonesuch"))
        self.assertEqual(caught.exception.code, "NOT_FOUND")
        with self.assertRaisesRegex(TypeError, "user"):
            self.client.rank(1.5, [1])
        with self.assertRaisesRegex(ValueError, "time zone"):
            self.client.rank("ann", [1], now=datetime.datetime(2020, 1, 1))

    def test_a_table_scores_every_row_as_of_its_own_time(self):
        self.client.append("cyd", self.events(40))
        rows = {"user": ["cyd", "ann", "cyd", "cyd"], "item": [3, 4, 5, 3],
                "t": [LATER, LATER, LATER, START + 10 * MINUTE]}
        scores = self.client.score_table(rows, user="user", item="item", time="t")
        for row, p in enumerate(scores):
            single = self.client.rank(rows["user"][row], [rows["item"][row]], now=rows["t"][row])
            self.assertEqual([p], list(single.probabilities.values())[0], f"row {row} differs from its own call")
        self.assertNotEqual(scores[0], scores[3], "the same pair at another time sees another past")
        with self.assertRaisesRegex(backstory.TableError, "nonesuch"):
            self.client.score_table(rows, user="user", item="nonesuch")
        with self.assertRaisesRegex(backstory.TableError, "row 1"):
            self.client.score_table({"user": ["a", "b"], "item": [1, "x"]}, user="user", item="item")

    def test_a_large_table_comes_back_whole_and_in_order(self):
        count = 3000
        rows = {"user": [f"u{i % 300}" for i in range(count)], "item": [1 + i % 50 for i in range(count)],
                "t": [LATER + i % 7 for i in range(count)]}
        scores = self.client.score_table(rows, user="user", item="item", time="t")
        self.assertEqual(len(scores), count)
        again = self.client.score_table({k: v[::-1] for k, v in rows.items()}, user="user", item="item", time="t")
        self.assertEqual(scores, again[::-1])

    def test_async_gives_the_same_scores(self):
        self.client.append("dan", self.events(20))

        async def run():
            async with backstory.AsyncClient(self.server.address, namespace="client", timeout=20) as client:
                results = await asyncio.gather(*(client.rank("dan", [i], now=LATER) for i in range(1, 9)))
                table = await client.score_table({"u": ["dan"] * 8, "i": list(range(1, 9)), "t": [LATER] * 8},
                                                 user="u", item="i", time="t")
                return [list(r.probabilities.values())[0][0] for r in results], table

        singles, table = asyncio.run(run())
        together = list(self.client.rank("dan", list(range(1, 9)), now=LATER).probabilities.values())[0]
        self.assertEqual(singles, together)
        self.assertEqual(table, together)

    def test_every_call_has_an_async_twin(self):
        def calls(kind):
            return {name for name in vars(kind) if not name.startswith("_")}

        self.assertEqual(calls(backstory.Client), calls(backstory.AsyncClient))

        async def run():
            async with backstory.AsyncClient(self.server.address, namespace="client", timeout=20) as client:
                await client.upsert_items([backstory.Item(950, title="A film")])
                self.assertEqual((await client.append("fay", self.events(6))).accepted, 8)
                self.assertEqual(len(await client.prefetch("fay")), 1)
                frame = await client.score_dataframe({"u": ["fay"] * 3, "i": [1, 2, 950], "t": [LATER] * 3}, into="like",
                                                     user="u", item="i", time="t")
                self.assertEqual(len((await client.recommend("fay", 5)).items), 5)
                with self.assertRaisesRegex(backstory.TableError, "nonesuch"):
                    await client.score_table({"u": []}, user="u", item="nonesuch")
                with self.assertRaises(backstory.BackstoryError) as caught:
                    await client.score_table({"u": ["fay"], "i": [1], "t": [-1]}, user="u", item="i", time="t")
                self.assertEqual(caught.exception.code, "INVALID_ARGUMENT")
                self.assertEqual(await client.delete_user("fay"), 8)
                return frame

        frame = asyncio.run(run())
        self.assertEqual(set(frame), {"u", "i", "t", "like"})
        self.assertEqual(len(frame["like"]), 3)

    def test_what_the_server_does_not_serve_says_so(self):
        with self.assertRaises(backstory.BackstoryError) as caught:
            self.client.recommend("ann", 10, model=backstory.Model("nonesuch"))
        self.assertEqual(caught.exception.code, "NOT_FOUND")
        self.assertIn("nonesuch", caught.exception.message)

    def test_recommendations_with_reasons_filters_and_ranking(self):
        ids = self.server.items
        self.client.append("rex", [backstory.Event(i + 1, START + i * MINUTE, ids[i * 7 % 60], action="rating", value=5)
                                   for i in range(30)])
        plain = self.client.recommend("rex", 5, now=LATER)
        self.assertEqual(len(plain.items), 5)
        self.assertEqual(plain.model, "glass-tiny")
        self.assertEqual(plain.rows_visible, [5, 25])
        self.assertFalse(plain.partial)
        self.assertEqual(sorted((i.log_probability for i in plain.items), reverse=True),
                         [i.log_probability for i in plain.items])
        self.assertFalse({i.item_id for i in plain.items} & {ids[i * 7 % 60] for i in range(30)})
        ranked = self.client.recommend("rex", 3, now=LATER, rank=True, explain_top=4, timings=True, exclude=[plain.items[0].item_id])
        self.assertEqual(ranked.rank_model, "grab-tiny")
        self.assertNotIn(plain.items[0].item_id, [i.item_id for i in ranked.items])
        self.assertEqual(ranked.filtered["excluded"], 1)
        self.assertEqual(list(ranked.items[0].probabilities), ["click"])
        self.assertGreaterEqual(ranked.items[0].score, ranked.items[1].score)
        self.assertIn("decode", ranked.timings_us)
        for item in ranked.items:
            self.assertLessEqual(sum(event.mass for event in item.explanation), 1.001)
        with self.assertRaisesRegex(backstory.BackstoryError, "include_categories"):
            self.client.recommend("rex", 3, categories=["nonesuch"])
        with self.assertRaisesRegex(backstory.BackstoryError, "count is 0"):
            self.client.recommend("rex", 0)

    def test_a_new_item_is_recommended_by_its_embedding(self):
        embedding = [float(x) for x in self.server.embeddings[0]]
        upserted = self.client.upsert_items([backstory.Item(4711, title="New", embedding=embedding), backstory.Item(4713)])
        encoded, = upserted.encoded
        self.assertEqual((encoded.item_id, len(encoded.sid)), (4711, 3))
        everything = self.client.recommend("sue", 91, beam=200)
        found = {item.item_id: item for item in everything.items}
        self.assertEqual((found[4711].sid, encoded.model, encoded.version),
                         (encoded.sid, everything.model, everything.version))
        with self.assertRaisesRegex(backstory.BackstoryError, "embedding has 3 numbers"):
            self.client.upsert_items([backstory.Item(4712, embedding=[1, 2, 3])])

    def test_replies_say_which_arm_and_why_and_the_bucket_can_be_computed(self):
        self.client.append("gus", self.events(40))
        result = self.client.rank("gus", [1, 2], now=LATER, scene="lab")
        arm = "control" if backstory.bucket("short-1", "gus") < 5000 else "short"
        self.assertEqual(result.exposures, [backstory.Exposure("length", "short", arm, "user", "targeted")])
        self.assertEqual(result.exposures[0].reason, "targeted")
        quiet = self.client.rank("gus", [1, 2], now=LATER, scene="lab", suppress_exposure=True)
        self.assertEqual(quiet.exposures, [])
        self.assertEqual(quiet.logits, result.logits, "the same arm, exposed or not")

    def test_golden_vectors_are_reproduced(self):
        with open(ROOT / "tests/conformance/experiments/buckets.json", encoding="utf-8") as file:
            vectors = json.load(file)["vectors"]
        self.assertGreater(len(vectors), 300)
        for vector in vectors:
            self.assertEqual(backstory.bucket(vector["salt"], vector["unit"]), vector["bucket"], vector)

    def test_a_frame_gets_its_column(self):
        class Frame(dict):  # what of pandas is used
            def assign(self, **columns):
                return Frame({**self, **columns})

        frame = Frame(user=["ann", "ann"], item=[3, 4], t=[LATER, LATER])
        scored = self.client.score_dataframe(frame, into="like", user="user", item="item", time="t")
        self.assertEqual(scored["like"], self.client.score_table(frame, user="user", item="item", time="t"))
        self.assertNotIn("like", frame)
        with self.assertRaisesRegex(ValueError, "task: 'buy' is not one of click"):
            self.client.score_dataframe(frame, user="user", item="item", time="t", task="buy")

    def test_pandas_and_pyarrow_if_there(self):
        rows = {"user": ["ann", "ann"], "item": [3, 4], "t": [LATER, LATER]}
        plain = self.client.score_table(rows, user="user", item="item", time="t")
        tried = 0
        if importlib.util.find_spec("pandas"):
            import pandas
            frame = self.client.score_dataframe(pandas.DataFrame(rows), user="user", item="item", time="t")
            self.assertEqual(frame["p"].tolist(), plain)
            tried += 1
        if importlib.util.find_spec("pyarrow"):
            import pyarrow
            arrow = self.client.score_dataframe(pyarrow.table(rows), user="user", item="item", time="t")
            self.assertEqual(arrow["p"].to_pylist(), plain)
            tried += 1
        if not tried:
            self.skipTest("neither pandas nor pyarrow is installed")

    def test_catalog_and_delete(self):
        version = self.client.upsert_items([backstory.Item(900, title="A film", categories=["Drama"], year=1995)]).version
        again = self.client.upsert_items([backstory.Item(901, title="Another")])
        self.assertEqual((again.version, again.encoded), (version + 1, []))
        self.assertEqual(self.client.rank("ann", [900, 999], now=LATER).unknown_items, [1])
        self.client.append("eve", self.events(5))
        self.assertGreater(self.client.delete_user("eve"), 0)
        self.assertEqual(self.client.append("eve", self.events(5)).accepted, 0)  # replays of what was deleted


class FlakyServer:
    """Answers Rank by a script: how often UNAVAILABLE first, or never at all."""

    def __init__(self, failures, pushback_ms=None, hang=False):
        import grpc

        class Handler(grpc.GenericRpcHandler):
            def service(handler, details):
                if details.method != "/backstory.v1.Ranking/Rank":
                    return None
                return grpc.unary_unary_rpc_method_handler(self._answer)

        self._grpc, self._failures, self._pushback_ms, self._hang = grpc, failures, pushback_ms, hang
        self.calls, self.remaining = 0, []
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=(Handler(),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _answer(self, request, context):
        self.calls += 1
        self.remaining.append(context.time_remaining())
        if self._hang:
            while context.is_active():
                time.sleep(0.01)
        if self.calls <= self._failures:
            if self._pushback_ms is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", str(self._pushback_ms)),))
            context.abort(self._grpc.StatusCode.UNAVAILABLE, "shed")
        return b""

    def stop(self):
        self._server.stop(None).wait()


class WithoutServer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if "backstory" not in globals():
            cls.scratch = tempfile.TemporaryDirectory(prefix="backstory-client-")
            build_wheel(pathlib.Path(cls.scratch.name))
            global backstory
            import backstory


class RequestTest(WithoutServer):
    """What is sent, without sending it."""

    def test_the_model_that_ranks_recommendations_is_sent(self):
        from backstory import wire
        pinned = backstory.Model(name="grab", version="7")
        self.assertEqual(wire.recommend_request("ns", "ann", 5, rank_model=pinned).rank.model.version, "7")
        request = wire.recommend_request("ns", "ann", 5, rank=True, rank_model=pinned, rank_candidates=9)
        self.assertEqual((request.rank.model.name, request.rank.candidates), ("grab", 9))
        self.assertTrue(wire.recommend_request("ns", "ann", 5, rank=True).HasField("rank"))
        self.assertFalse(wire.recommend_request("ns", "ann", 5).HasField("rank"))
        with self.assertRaisesRegex(ValueError, "rank_candidates"):
            wire.recommend_request("ns", "ann", 5, rank_candidates=9)

    def test_a_time_that_is_not_in_microseconds_is_refused(self):
        from backstory.types import to_us

        class Nanoseconds:  # int() takes it, as it takes numpy's datetime64[ns]
            def __int__(self):
                return 1_600_000_000_000_000_000

        self.assertEqual((to_us(START), to_us(float(START)), to_us(None)), (START, START, 0))
        times = [Nanoseconds(), 1.5, "3"]
        if importlib.util.find_spec("numpy"):
            import numpy
            times.append(numpy.datetime64("2024-01-01", "ns"))
            self.assertEqual(to_us(numpy.int64(START)), START)
        for each in times:
            with self.assertRaisesRegex(TypeError, "microseconds"):
                to_us(each)

    def test_a_row_without_its_time_is_refused(self):
        # On the wire 0 means the server's clock: such a row would see its own future.
        from backstory import table
        for missing in (None, 0):
            rows = {"u": ["ann", "bob"], "i": [1, 2], "t": [LATER, missing]}
            with self.assertRaisesRegex(backstory.TableError, "row 1: column 't'"):
                list(table.requests(rows, "ns", user="u", item="i", time="t"))
        rows.pop("t")
        self.assertEqual([r.now_us for _, r in table.requests(rows, "ns", user="u", item="i")], [0, 0])


class SheddingServer:
    """Answers RankStream with the item as the probability, but sheds every request the first time it comes."""

    def __init__(self):
        import grpc
        from backstory import schema
        request, response = schema.message("RankRequest"), schema.message("RankStreamResponse")
        self.asked = {}

        def answer(requests, context):
            for one in requests:
                reply = response(request_id=one.request_id)
                self.asked[one.request_id] = self.asked.get(one.request_id, 0) + 1
                if self.asked[one.request_id] == 1:
                    reply.error.code, reply.error.message, reply.error.retry_pushback_ms = 14, "overloaded", 10
                else:
                    score = reply.response.scores.add(task="like")
                    score.calibrated.extend(float(item) for item in one.candidates.item_ids)
                yield reply

        class Handler(grpc.GenericRpcHandler):
            def service(handler, details):
                return grpc.stream_stream_rpc_method_handler(answer, request.FromString, response.SerializeToString)

        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=(Handler(),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self):
        self._server.stop(None).wait()


class ShedTableTest(WithoutServer):
    def test_what_is_shed_is_asked_again(self):
        server = SheddingServer()
        count = 100  # several windows
        rows = {"u": [f"user {i}" for i in range(count)], "i": list(range(1, count + 1))}
        with backstory.Client(server.address) as client:
            scores = client.score_table(rows, user="u", item="i", timeout=20)
        server.stop()
        self.assertEqual(scores, [float(i) for i in rows["i"]])
        self.assertEqual(set(server.asked.values()), {2})


class RetryTest(WithoutServer):
    """Retries by the shipped service config, deadlines by the client; both clients."""

    def rank(self, kind, address, timeout):
        if kind == "blocking":
            with backstory.Client(address, timeout=timeout) as client:
                return client.rank("u", [1])

        async def run():
            async with backstory.AsyncClient(address, timeout=timeout) as client:
                return await client.rank("u", [1])

        return asyncio.run(run())

    def test_unavailable_is_tried_three_times_and_no_more(self):
        for kind in ("blocking", "async"):
            server = FlakyServer(failures=2)
            self.rank(kind, server.address, 20)
            self.assertEqual(server.calls, 3, kind)
            server.stop()
            server = FlakyServer(failures=9, pushback_ms=1)
            with self.assertRaises(backstory.BackstoryError) as caught:
                self.rank(kind, server.address, 20)
            server.stop()
            self.assertEqual((caught.exception.code, caught.exception.retry_after_ms), ("UNAVAILABLE", 1), kind)
            self.assertEqual(server.calls, 3, kind)

    def test_every_call_carries_a_deadline_and_ends_by_it(self):
        for kind in ("blocking", "async"):
            server = FlakyServer(failures=0)
            self.rank(kind, server.address, 20)
            self.assertLessEqual(server.remaining[0], 21, f"{kind}: the server was told")
            server.stop()
            server = FlakyServer(failures=0, hang=True)
            with self.assertRaises(backstory.BackstoryError) as caught:
                self.rank(kind, server.address, 0.3)
            server.stop()
            self.assertEqual(caught.exception.code, "DEADLINE_EXCEEDED", kind)
        with self.assertRaisesRegex(ValueError, "timeout"):
            backstory.Client("127.0.0.1:1", timeout=0)

    def test_the_service_config_has_no_timeout(self):
        # gRPC core would cut calls short by one to two seconds: docs/reference/api.md.
        config = json.loads((ROOT / "deploy/client_service_config.json").read_text())
        for method in config["methodConfig"]:
            self.assertNotIn("timeout", method)


if __name__ == "__main__":
    unittest.main()
