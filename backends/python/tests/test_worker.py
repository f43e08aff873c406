# SPDX-License-Identifier: Apache-2.0
"""worker.py as attest meets it, and its parts that need no process. Run: python3 tests/test_worker.py"""
import importlib.util
import os
import sys
import tempfile
import textwrap
import unittest

try:
    import numpy as np
except ImportError:
    print("0 passed, 0 failed, 1 skipped: this Python has no NumPy; ci/setup --grading installs it")
    sys.exit(77)

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]
from attest_worker import functions, problem, protocol  # noqa: E402
from parent import Memory, Parent  # noqa: E402

needs_torch = unittest.skipUnless(importlib.util.find_spec("torch"), "this Python has no PyTorch; ci/setup --grading")
EXAMPLE = os.path.join(os.path.dirname(HERE), "example_numpy.py")
SUBMISSION = os.path.join(HERE, "submission.py")
CORE = {"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 8}
LAYER = {"level": "layer", "batch": 2, "query_heads": 2, "head_dim": 4, "bias": True, "causal": "bottom_right",
         "cache": "contiguous", "capacity": 6}  # fmt: skip


def read(**changed):
    return problem.read_problem({**CORE, **changed}, "problem")


class Texts(unittest.TestCase):
    def test_a_message_is_one_line_of_limited_length(self):
        self.assertEqual(protocol.printable("a\nb\x00c\x7f"), "a b c")
        self.assertEqual(protocol.printable("\ud800x"), "?x")
        self.assertLessEqual(len(protocol.printable("ä" * 5000).encode()), protocol.MAX_MESSAGE)

    def test_an_exception_is_told_whatever_it_is(self):
        class Evil(Exception):
            def __str__(self):
                raise KeyboardInterrupt

        self.assertEqual(protocol.describe(Evil()), "Evil: (its text cannot be read)")
        self.assertEqual(protocol.describe(ValueError("two\nlines")), "ValueError: two lines")

    def test_fields_are_strict(self):
        fields = protocol.Fields({"a": 1, "b": True, "c": "x"}, "request")
        self.assertEqual(fields.take("a", int), 1)
        with self.assertRaisesRegex(protocol.BadRequest, "request.b: got true, wanted an integer"):
            fields.take("b", int)
        with self.assertRaisesRegex(protocol.BadRequest, "request.d: is missing"):
            fields.take("d", str)
        with self.assertRaisesRegex(protocol.BadRequest, "request.c: is not known here"):
            fields.finish()


class Problems(unittest.TestCase):
    def test_what_is_left_out_has_its_default(self):
        p = read()
        self.assertEqual((p.scale, p.explicit_scale), (1 / np.sqrt(8), False))
        self.assertEqual((p.window, p.softcap, p.bias, p.cache_dtype), ((None, None), None, frozenset(), "f32"))
        self.assertEqual(read(level="layer", bias=["q", "out"]).bias, {"q", "out"})

    def test_unknown_fields_are_refused(self):
        with self.assertRaisesRegex(protocol.BadRequest, "problem.colour"):
            read(colour="red")

    def test_which_keys_a_query_sees(self):
        def rows(p, queries, first, total):
            return ["".join("1" if x else "0" for x in row) for row in functions.visible(p, queries, first, total)]

        self.assertEqual(rows(read(), 2, 0, 3), ["111", "111"])
        self.assertEqual(rows(read(causal="bottom_right"), 2, 0, 3), ["110", "111"])
        self.assertEqual(rows(read(causal="top_left"), 2, 0, 3), ["100", "110"])
        self.assertEqual(rows(read(causal="bottom_right"), 3, 0, 1), ["0", "0", "1"])
        self.assertEqual(rows(read(causal="bottom_right", window={"left": 1}), 2, 0, 4), ["0110", "0011"])
        self.assertEqual(rows(read(window={"left": 0, "right": 1}), 2, 0, 4), ["0011", "0001"])
        self.assertEqual(rows(read(causal="bottom_right", window={"left": 1}), 1, 2, 5), ["011"])

    def test_what_is_not_asked_for_is_unsupported(self):
        for changed, parameter in (
            ({"causal": "bottom_right"}, "causal"),
            ({"causal": "top_left"}, "mask"),
            ({"window": {"left": 3}}, "window"),
            ({"scale": 0.5}, "scale"),
            ({"mask": "boolean"}, "mask"),
            ({"softcap": 30}, "softcap"),
            ({"alibi": "standard"}, "alibi"),
            ({"lse": True}, "return_lse"),
        ):
            p = read(**changed)
            p.sinks = None
            with self.assertRaisesRegex(protocol.Unsupported, f'"{parameter}"'):
                functions.require(p, frozenset())
            functions.require(p, frozenset(functions.PARAMETERS))


class WorkerTest(unittest.TestCase):
    def setUp(self):
        self.parent = Parent()
        self.memory = Memory()
        self.ended = False

    def tearDown(self):
        if not self.ended:
            self.parent.end()
        self.memory.close()

    def end(self):
        self.ended = True
        return self.parent.end()

    def module(self, text):
        folder = tempfile.mkdtemp()
        self.addCleanup(lambda: (os.remove(file), os.rmdir(folder)))
        file = os.path.join(folder, "given.py")
        with open(file, "w") as stream:
            stream.write(textwrap.dedent(text))
        return file

    def prepare(self, json_problem, tensors=None, plan=0):
        return self.parent.ask("prepare", self.memory.descriptor, plan=plan, problem=json_problem,
                               bytes=self.memory.size, tensors=tensors or {})  # fmt: skip

    def run_step(self, tensors, plan=0, **changed):
        request = {"plan": plan, "tensors": tensors, "max_query_length": 0, "max_total_length": 0, "upload": [],
                   "download": [], **changed}  # fmt: skip
        return self.parent.ask("run", **request)

    def assertAnswer(self, reply, status, text=""):
        self.assertIsNotNone(reply, "the worker has ended")
        self.assertEqual(reply["status"], status, reply)
        self.assertIn(text, reply["message"])


class Requests(WorkerTest):
    def test_open_prepare_close(self):
        reply = self.parent.open(EXAMPLE, kind="function", function="attention")
        self.assertAnswer(reply, "ok")
        self.assertEqual((reply["name"], reply["device"], reply["abi_version"]), ("example_numpy-attention", "cpu", 0))
        self.assertIn("numpy", reply["description"])
        self.assertAnswer(self.parent.open(EXAMPLE, function="attention"), "error", "request: a backend is open")
        self.assertAnswer(self.prepare(CORE), "ok")
        self.assertAnswer(self.prepare({**CORE, "level": "layer"}), "invalid", "q_weight: got none")
        self.assertAnswer(self.parent.ask("release", plan=0), "error", "request.plan: got 0, which is not prepared")
        self.assertAnswer(self.parent.ask("close"), "ok")
        self.assertEqual(self.end(), (0, ""))

    def test_the_end_of_the_socket_is_the_end(self):
        self.parent.open(EXAMPLE, function="attention")
        self.assertEqual(self.end(), (0, ""))

    def test_requests_that_make_no_sense(self):
        self.assertAnswer(self.prepare(CORE), "error", "request: no backend is open")
        self.assertAnswer(self.parent.ask("dance"), "error", 'request.op: got "dance"')
        self.assertAnswer(self.parent.ask("open", protocol=2, library="x", options={}), "error", "this worker speaks 1")
        self.assertAnswer(self.parent.open("/nowhere.py", function="f"), "error", "/nowhere.py: no such file")
        self.assertAnswer(self.parent.open(EXAMPLE, function="attention", speed="9"), "invalid", "option speed")
        self.assertAnswer(self.parent.open(EXAMPLE), "invalid", "option function")
        self.assertAnswer(self.parent.open(EXAMPLE, kind="song"), "invalid", "option kind")
        self.assertAnswer(self.parent.open(EXAMPLE, function="attn"), "error", 'has no function "attn"; there: ')
        self.assertAnswer(self.parent.open(EXAMPLE, function="attention"), "ok")
        reply = self.run_step({}, plan=3)
        self.assertAnswer(reply, "error", "request.plan")
        self.assertEqual(reply["seconds"], 0)
        self.assertAnswer(self.prepare(CORE), "ok")
        _, query = self.memory.tensor((2, 3, 4, 8))
        self.assertAnswer(self.run_step({"qeury": query}), "error", 'request.tensors: there is no tensor "qeury"')
        self.assertAnswer(self.run_step({"query": {**query, "begin": -1}}), "error", "request.tensors.query")
        self.assertAnswer(self.run_step({"query": {**query, "strides": [1]}}), "error", "request.tensors.query.strides")
        _, output = self.memory.tensor((2, 3, 4, 8))
        _, key = self.memory.tensor((2, 3, 2, 8))
        step = {"query": {**query, "strides": [2**40, 1, 1, 1]}, "key": key, "value": key, "output": output}
        self.assertAnswer(self.run_step(step), "error", "request.tensors: elements beyond the memory")
        self.assertAnswer(self.parent.ask("probe", plan=0, what="x", arguments={}), "error", "request.op")
        self.assertAnswer(self.parent.ask("close"), "ok")

    def test_garbage_ends_it(self):
        self.parent.socket.sendall(b"\xff\xff\xff\xff")
        self.assertIsNone(self.parent._read(4))
        code, text = self.end()
        self.assertEqual(code, 2)
        self.assertIn("4294967295 bytes", text)


class Functions(WorkerTest):
    def step(self, **changed):
        """Tensors of a step of CORE: 3 new tokens."""
        random = np.random.default_rng(1)
        arrays, said = {}, {}
        for name, shape, order in (
            ("query", (2, 3, 4, 8), (0, 2, 1, 3)),
            ("key", (2, 3, 2, 8), None),
            ("value", (2, 3, 2, 8), (3, 0, 1, 2)),
        ):
            arrays[name], said[name] = self.memory.tensor(random.random(shape, np.float32) - 0.5, order)
        arrays["output"], said["output"] = self.memory.tensor((2, 3, 4, 8))
        for name, value in changed.items():
            arrays[name], said[name] = self.memory.tensor(value)
        return arrays, said

    def wanted(self, q, k, v, b, queries, total):
        """Causal attention of one sequence, in f64."""
        result = np.empty((queries, 4, 8))
        for h in range(4):
            logits = q[b, :queries, h].astype(float) @ k[:total, h // 2].T / np.sqrt(8)
            weights = np.exp(np.where(np.tri(queries, total, total - queries, dtype=bool), logits, -np.inf))
            result[:, h] = weights / weights.sum(1, keepdims=True) @ v[:total, h // 2]
        return result

    def test_values_cache_and_padding(self):
        self.parent.open(EXAMPLE, function="attention")
        self.assertAnswer(self.prepare({**CORE, "causal": "bottom_right", "cache": "contiguous", "capacity": 5}), "ok")
        arrays, said = self.step(query_lengths=np.array([3, 2], np.int32), key_lengths=np.array([3, 2], np.int32))
        for name, value in (("key", (2, 5, 2, 8)), ("value", (2, 5, 2, 8)), ("lengths", np.array([0, 1], np.int32))):
            arrays["cache." + name], said["cache." + name] = self.memory.tensor(value)
        arrays["cache.key"][1, 0] = arrays["cache.value"][1, 0] = 0.25
        self.assertAnswer(self.run_step(said), "ok")
        self.assertEqual(arrays["cache.lengths"].tolist(), [3, 3])
        np.testing.assert_array_equal(arrays["cache.key"][0, :3], arrays["key"][0])
        np.testing.assert_array_equal(arrays["cache.value"][1, 1:3], arrays["value"][1, :2])
        self.assertTrue(np.isnan(arrays["cache.key"][0, 3:]).all())
        for b, queries in ((0, 3), (1, 2)):
            k, v = arrays["cache.key"][b], arrays["cache.value"][b]
            wanted = self.wanted(arrays["query"], k, v, b, queries, 3)
            np.testing.assert_allclose(arrays["output"][b, :queries], wanted, rtol=1e-5)
        self.assertTrue(np.isnan(arrays["output"][1, 2]).all())
        # Refused, and nothing changed.
        before = self.memory.all.copy()
        self.assertAnswer(self.run_step(said), "overflow", "3 cached + 3 new tokens = 6, capacity is 5")
        bent = {**said, "key": {**said["key"], "shape": [2, 3, 1, 8]}}
        self.assertAnswer(self.run_step(bent), "invalid", "key: got shape [2, 3, 1, 8], wanted [2, 3, 2, 8]")
        bent = {**said, "cache.lengths": {**said["cache.lengths"], "dtype": "u8"}}
        self.assertAnswer(self.run_step(bent), "invalid", "cache.lengths: got dtype u8, wanted i32")
        np.testing.assert_array_equal(before, self.memory.all)

    def test_steps_of_two_plans_together(self):
        self.parent.open(EXAMPLE, function="attention")
        runs = []
        for plan in (4, 5):
            self.assertAnswer(self.prepare(CORE, plan=plan), "ok")
            arrays, said = self.step()
            runs.append({"plan": plan, "tensors": said, "max_query_length": 3, "max_total_length": 3, "upload": [],
                         "download": []})  # fmt: skip
        runs[1]["tensors"]["query"]["dtype"] = "i32"
        reply = self.parent.ask("run_together", runs=runs)
        self.assertAnswer(reply, "ok")
        self.assertEqual([r["status"] for r in reply["replies"]], ["ok", "invalid"])
        self.assertAnswer(self.parent.ask("run_together", runs=[runs[0]] * 2), "error", "got 4 twice")

    def test_what_a_function_may_get_wrong(self):
        file = self.module(
            '''
            import numpy as np
            def shape(q, k, v): return q[:1]
            def dtype(q, k, v): return q.astype(np.float64)
            def none(q, k, v): print("not yet")
            def two(q, k, v): return q, q
            def raises(q, k, v): raise RuntimeError("no\\nluck")
            def strange(q, k, v, *, speed): pass
            def short(q, k): pass
            def leaves(q, k, v): raise SystemExit(3)
            '''
        )
        for function, text in (
            ("shape", "output: got shape [1, 4, 3, 8], wanted [2, 4, 3, 8]"),
            ("dtype", "output: got dtype float64, wanted float32"),
            ("none", "output: got NoneType, wanted [2, 4, 3, 8]"),
            ("two", "it returned 2 values"),
            ("raises", "RuntimeError: no luck (line 7 of given.py)"),
        ):
            with self.subTest(function=function):
                parent, self.parent = self.parent, Parent()
                self.assertAnswer(self.parent.open(file, function=function), "ok")
                self.assertAnswer(self.prepare({**CORE, "causal": "bottom_right"}), "unsupported", '"causal"')
                self.assertAnswer(self.prepare(CORE), "ok")
                _, said = self.step()
                self.assertAnswer(self.run_step(said), "error", text)
                self.assertEqual(self.parent.end(), (0, "not yet\n" if function == "none" else ""))
                self.parent = parent
        self.assertAnswer(self.parent.open(file, function="strange"), "error", 'the parameter "speed"')
        self.assertAnswer(self.parent.open(file, function="short"), "error", "q, k, v first")
        self.assertAnswer(self.parent.open(file, function="leaves"), "ok")
        self.assertAnswer(self.prepare(CORE), "ok")
        self.assertIsNone(self.run_step(self.step()[1]))
        self.assertEqual(self.end(), (3, ""))

    def test_files_that_do_not_load(self):
        for text, message in (
            ("def f(:", "SyntaxError: invalid syntax"),
            ("x = 1\nimport nothing_of_this_name", "ModuleNotFoundError"),
            ("class E(BaseException): pass\nraise E('x')", "E: x (line 2 of given.py)"),
        ):
            self.assertAnswer(self.parent.open(self.module(text), function="f"), "error", message)
        self.assertIsNone(self.parent.open(self.module("import sys\nsys.exit()"), function="f"))
        self.assertEqual(self.end(), (0, ""))


@needs_torch
class Submissions(WorkerTest):
    def opened(self, file=SUBMISSION, capacity=6):
        self.assertAnswer(self.parent.open(file, kind="challenge"), "ok")
        random = np.random.default_rng(7)
        self.weights = {}
        said = {}
        for name in ("q", "k", "v", "out"):
            for part, shape in (("weight", (8, 8)), ("bias", (8,))):
                self.weights[f"{name}_{part}"], said[f"{name}_{part}"] = self.memory.tensor(
                    random.random(shape, np.float32) - 0.5
                )
        reply = self.prepare({**LAYER, "capacity": capacity}, said)
        self.cache, self.cache_said = {}, {}
        for name, value in (("key", (2, capacity, 2, 4)), ("value", (2, capacity, 2, 4)),
                            ("lengths", np.zeros(2, np.int32))):  # fmt: skip
            self.cache[name], self.cache_said["cache." + name] = self.memory.tensor(value)
        return reply

    def attend(self, tokens):
        random = np.random.default_rng(tokens)
        self.inputs, said = {}, dict(self.cache_said)
        for name in ("query", "key", "value"):
            self.inputs[name], said[name] = self.memory.tensor(random.random((2, tokens, 8), np.float32) - 0.5)
        self.output, said["output"] = self.memory.tensor((2, tokens, 8))
        return self.run_step(said)

    def projected(self, side, x):
        return x.astype(float) @ self.weights[f"{side}_weight"].T + self.weights[f"{side}_bias"]

    def assertRight(self, tokens, total):
        q = self.projected("q", self.inputs["query"]).reshape(2, tokens, 2, 4)
        result = np.empty((2, tokens, 2, 4))
        for b in range(2):
            for h in range(2):
                logits = q[b, :, h] @ self.cache["key"][b, :total, h].T / 2
                weights = np.exp(np.where(np.tri(tokens, total, total - tokens, dtype=bool), logits, -np.inf))
                result[b, :, h] = weights / weights.sum(1, keepdims=True) @ self.cache["value"][b, :total, h]
        wanted = self.projected("out", result.reshape(2, tokens, 8))
        np.testing.assert_allclose(self.output, wanted, rtol=1e-4, atol=1e-6)
        new = self.projected("k", self.inputs["key"]).reshape(2, tokens, 2, 4)
        np.testing.assert_allclose(self.cache["key"][:, total - tokens : total], new, rtol=1e-4, atol=1e-6)
        self.assertEqual(self.cache["lengths"].tolist(), [total] * 2)

    def test_its_own_cache_comes_back_and_a_canonical_one_otherwise(self):
        self.assertAnswer(self.opened(), "ok")
        self.assertAnswer(self.attend(3), "ok")
        self.assertRight(3, 3)
        self.assertAnswer(self.attend(1), "ok")
        self.assertRight(1, 4)
        self.cache["key"][1, 2] += 1  # a load of as many tokens
        self.assertAnswer(self.attend(1), "ok")
        self.assertRight(1, 5)
        before = {name: array.copy() for name, array in self.cache.items()}
        self.assertAnswer(self.attend(2), "overflow", "7 tokens do not fit")
        self.assertTrue(np.isnan(self.output).all())
        for name, array in self.cache.items():
            np.testing.assert_array_equal(before[name], array)
        self.cache["lengths"][:] = 2
        self.assertAnswer(self.attend(1), "ok")
        self.assertRight(1, 3)
        self.cache["lengths"][:] = 0
        self.assertAnswer(self.attend(2), "ok")
        self.assertRight(2, 2)
        self.assertAnswer(self.parent.ask("close"), "ok")
        code, text = self.end()
        self.assertEqual(code, 0)
        caches = [line for line in text.splitlines() if line.startswith("cache")]
        given = ["None", "True", "False", "True", "False", "None"]
        self.assertEqual(caches, [f"cache {one} False False" for one in given])
        self.assertIn("anywhere", text)

    def test_exits_are_no_answers(self):
        self.opened()
        nine = {name: [1, 9, 8] for name in ("query", "key", "value")}
        self.assertIsNone(self.parent.ask("probe", plan=0, what="validate_inputs", arguments={"shapes": [nine]}))
        self.assertEqual(self.end()[0], 5)

    def test_probes(self):
        self.opened()

        def probe(what, **arguments):
            reply = self.parent.ask("probe", plan=0, what=what, arguments=arguments)
            self.assertAnswer(reply, "ok")
            return reply["details"]["calls"]

        shapes = [{"query": [1, 2, 8], "key": [1, 2, 8], "value": [1, 2, 8]},
                  {"query": [2, 8], "key": [1, 2, 8], "value": [1, 2, 8]},
                  {"query": None, "key": [1, 2, 8], "value": [1, 2, 8]}]  # fmt: skip
        calls = probe("validate_inputs", shapes=shapes)
        self.assertEqual([c["raised"] for c in calls], [None, "ValueError", "AttributeError"])
        self.assertEqual([c["missing"] for c in calls], [False] * 3)
        self.assertIsNone(probe("overflow", cached=4, tokens=2)[0]["raised"])
        self.assertEqual(probe("overflow", cached=4, tokens=3)[0]["raised"], "ValueError")
        returned = probe("overflow", cached=0, tokens=1)[0]["returned"]
        self.assertEqual([one["type"] for one in returned["items"]], ["tensor", "dict"])
        self.assertEqual(returned["items"][1]["items"]["key"]["shape"], [2, 1, 8])
        calls = probe("eval_determinism", cached=2, tokens=2, runs=3)
        self.assertEqual([c["returned"]["same"] for c in calls], [True] * 3)
        self.assertEqual(calls[0]["returned"]["shapes"], [[2, 2, 8], [2, 4, 8], [2, 4, 8]])
        self.assertEqual(probe("reset_cache")[0]["returned"], {"type": "dict", "items": {"key": None, "value": None}})
        self.assertEqual(probe("cache_info", cached=3)[0]["returned"]["items"]["cache_length"], 3)
        self.assertIs(probe("cache_info", cached=6)[0]["returned"]["items"]["is_full"], True)
        self.assertEqual(probe("cache_info", cached=None, use_cache=False)[0]["returned"]["items"]["cache_length"], 0)
        returned = probe("position_ids", seq_len=3, cache_len=5)[0]["returned"]
        self.assertEqual((returned["values"], returned["dtype"]), ([5, 6, 7], "int64"))
        calls = probe("sample_input", batch_size=1, seq_len=2, d_model=4, seeds=[1, 1, 2, None])
        sums = [c["returned"]["sum"] for c in calls]
        self.assertTrue(sums[0] == sums[1] != sums[2])
        reply = self.parent.ask("probe", plan=0, what="fly", arguments={})
        self.assertAnswer(reply, "error", 'request.what: got "fly"')
        reply = self.parent.ask("probe", plan=0, what="reset_cache", arguments={"x": 1})
        self.assertAnswer(reply, "error", "request.arguments.x")
        # None of it has changed what the layer does.
        self.assertAnswer(self.attend(2), "ok")
        self.assertRight(2, 2)

    def test_what_a_submission_may_get_wrong(self):
        wrong = (
            ("out", "error", "forward: got Tensor, wanted (output, new_cache)"),
            ("(out.double(), cache)", "error", "output: got dtype torch.float64, wanted torch.float32"),
            ("(out[:, :1], cache)", "error", "output: got shape [2, 1, 8], wanted shape [2, 3, 8]"),
            ("(out, None)", "error", "new_cache: got None, wanted a dict"),
            ("(out, {'key': cache['key']})", "error", "new_cache: got a dict with key, wanted a dict with key and"),
            ("(out, dict(key=None, value=None))", "error", 'new_cache["key"]: got None, wanted shape [2, 6, 8]'),
            ("(out, {n: self.split(x) for n, x in cache.items()})", "error",
             'new_cache["key"]: got shape [2, 2, 7, 4], wanted shape [2, 7, 8]'),
            ("throw(ValueError('bad'))", "invalid", "ValueError: bad (line"),
            ("(out[:1, :1].expand(1 << 20, 1 << 20, 8), cache)", "error", "output: got shape [1048576, 1048576, 8]"),
            ("self.forward(*args)", "error", "RecursionError"),
            ("throw(KeyboardInterrupt())", "error", "KeyboardInterrupt"),
            ("throw(type('Odd', (BaseException,), {})())", "error", "Odd"),
        )
        lines = "".join(f"    {i}: lambda self, args, out, cache: {one[0]},\n" for i, one in enumerate(wrong, 1))
        file = self.module(
            f"import sys\nsys.path.insert(0, {HERE!r})\nimport submission\n"
            "submission.validate_inputs = lambda *inputs: None\n"
            "def throw(error): raise error\n"
            f"WRONG = {{\n{lines}}}\n"
            "class KVCachedMultiHeadAttention(submission.KVCachedMultiHeadAttention):\n"
            "    def forward(self, *args, **named):\n"
            "        out, cache = super().forward(*args, **named)\n"
            "        return WRONG[args[0].shape[1]](self, args, out, cache)\n"
        )
        self.assertAnswer(self.opened(file, capacity=16), "ok")
        for i, (_, status, message) in enumerate(wrong):
            tokens = i + 1
            with self.subTest(message=message):
                self.assertAnswer(self.attend(tokens), status, message)
        self.assertEqual(self.cache["lengths"].tolist(), [0, 0])

    def test_layers_that_do_not_fit(self):
        file = self.module(
            f"import sys\nsys.path.insert(0, {HERE!r})\nimport submission\nfrom torch import nn\n"
            "class KVCachedMultiHeadAttention(submission.KVCachedMultiHeadAttention):\n"
            "    def __init__(self, d_model, *args, **named):\n"
            "        super().__init__(d_model, *args, **named)\n"
            "        self.k_proj = nn.Linear(d_model, 1)\n"
        )
        self.assertAnswer(self.opened(file), "error", "k_proj.weight: got shape [1, 8], wanted [8, 8]")

    def test_problems_that_are_not_the_challenges(self):
        self.opened()
        self.assertAnswer(self.prepare(CORE), "unsupported", "the core level")
        self.assertAnswer(self.parent.open(SUBMISSION, kind="challenge"), "error", "is open already")


if __name__ == "__main__":
    unittest.main(verbosity=1)
