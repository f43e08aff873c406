#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of the challenge's files that need nothing of attest.

    challenge_test.py files    they are as their sources say, and fit together
    challenge_test.py torch    they do what their tables say: compared with a reference in NumPy's double precision.
                               Exit code 77, a skip, where no Python has PyTorch
"""
import ast
import importlib.util
import json
import math
import os
import pathlib
import sys
import tempfile
import unittest
import warnings

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.dont_write_bytecode = True
import make_cases  # noqa: E402
import render  # noqa: E402

SKIPPED = 77
# What corpus/left_behind.py writes wherever it may.
NOTE = "attest-corpus-note"
STATUSES = {"pass", "fail", "error", "crash", "timeout"}
CASES = ["visible", *(str(row[0]) for row in make_cases.TABLE)]
# Automatic points: half of the visible case's ten are the interface's; the rest is shared out within the groups.
POINTS = {"visible": 5, **{str(n): 25 / 4 for n in range(1, 9)}, "9": 5, "10": 5}


def corpus():
    return json.loads((HERE / "corpus" / "corpus.json").read_text("utf-8"))["submissions"]


def status_of(entry, case):
    """The statuses that an entry of the corpus allows for a case."""
    return set(entry["cases"].get(case, entry["otherwise"]).split("|"))


class Files(unittest.TestCase):
    def test_rendered_files_are_as_the_source_says(self):
        self.assertEqual(render.differences(), [], "run cases/challenge/render.py")

    def test_case_files_are_as_the_table_says(self):
        self.assertEqual(make_cases.differences(), [], "run cases/challenge/make_cases.py")

    def test_hidden_file_holds_no_number(self):
        hidden = json.loads((HERE / "test_cases_hidden.json").read_text("utf-8"))
        self.assertEqual(sum(case["weight"] for case in hidden["test_cases"]), hidden["scoring"]["total_weight"])
        for case in hidden["test_cases"]:
            cache = case["inputs"]["cache"] or {}
            tensors = [case["inputs"][name] for name in ("query", "key", "value")] + list(cache.values())
            tensors += [case["expected"]["output"], *case["expected"]["cache"].values()]
            for tensor in tensors:
                self.assertRegex(tensor["values"], "^_[A-Z0-9_]+_$")

    def test_places(self):
        places = render.places()
        self.assertEqual(list(places), list(range(1, 17)))
        self.assertEqual([n for n, place in places.items() if place["kind"] == "bug"], list(range(1, 12)))
        bugs = json.loads((HERE.parent / "bugs.json").read_text("utf-8"))["bugs"]
        known = {bug["id"]: bug for bug in bugs}
        for number, place in places.items():
            if place["kind"] == "bug":
                self.assertIn("write-up", known[place["catalogue"]]["source"], place["name"])
                self.assertEqual(place["name"].replace("_", "-"), place["catalogue"])
                self.assertIn(place.get("shows_as", place["catalogue"]), known)
                self.assertTrue(set(map(str, place["fails"])) <= set(CASES), number)

    def test_every_place_is_numbered(self):
        text = (HERE / "kv_attention.py").read_text("utf-8")
        for number in range(1, 17):
            self.assertEqual(text.count(f"# Place {number}.\n"), 1)
        for mark in ("#@", "@about@", "@number@"):
            self.assertNotIn(mark, text)

    def test_corpus_lists_its_files(self):
        listed = [entry["file"] for entry in corpus()]
        self.assertEqual(len(listed), len(set(listed)))
        there = {path.name for path in (HERE / "corpus").iterdir() if path.suffix in (".py", ".c", ".cpp")}
        self.assertEqual({file for file in listed if not file.startswith("../")}, there)
        for file in listed:
            self.assertTrue((HERE / "corpus" / file).is_file(), file)
        controls = [entry for entry in corpus() if entry["threat"] == "control"]
        self.assertGreaterEqual(len(controls), 5)
        self.assertGreaterEqual(len(listed) - len(controls), 36)
        for entry in controls:
            self.assertEqual((entry["points"], entry["otherwise"], entry["cases"]), (70, "pass", {}), entry["file"])

    def test_corpus_adds_up(self):
        for entry in corpus():
            with self.subTest(entry["file"]):
                self.assertTrue(set(entry["cases"]) <= set(CASES))
                least = most = entry["interface"]
                for case in CASES:
                    statuses = status_of(entry, case)
                    self.assertTrue(statuses and statuses <= STATUSES)
                    least += POINTS[case] if statuses == {"pass"} else 0
                    most += POINTS[case] if "pass" in statuses else 0
                if isinstance(entry["points"], list):
                    self.assertTrue(least <= entry["points"][0] < entry["points"][1] <= most)
                else:
                    self.assertEqual((least, most), (entry["points"], entry["points"]))
                for field in ("tries", "why", "threat"):
                    self.assertTrue(entry[field])

    def test_what_writes_files_is_run_in_a_sandbox_only(self):
        for entry in corpus():
            text = (HERE / "corpus" / entry["file"]).read_text("utf-8")
            if NOTE in text or any(mark in text for mark in (', "w"', ", 'w'", ', "wb"', "mkdir", "os.write(")):
                self.assertTrue(entry["sandbox"], entry["file"])
        self.assertTrue(next(one for one in corpus() if one["file"] == "left_behind.py")["sandbox"])

    def test_corpus_parses(self):
        for entry in corpus():
            if not entry["file"].endswith(".py"):
                continue
            text = (HERE / "corpus" / entry["file"]).read_text("utf-8")
            try:
                tree = ast.parse(text)
            except SyntaxError:
                self.assertEqual(entry["file"], "fault_syntax_error.py")
                continue
            self.assertTrue(ast.get_docstring(tree), entry["file"])


# ------------------------------------------------------------------------------------------------------ with PyTorch


def load(path):
    """A file's module, anew each time."""
    spec = importlib.util.spec_from_file_location("submission", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Played:
    """A case of the table with random weights and inputs, and the answers of a reference that shares no code with the
    submissions: one call with the given cache, then two of one token that go on from what the first returned."""

    def __init__(self, row, np):
        self.number, _, _, self.d_model, self.heads, self.capacity, seed, batch, tokens, cached, self.causal, _ = row
        random = np.random.default_rng(seed)

        def normal(*shape, scale=1.0):
            return (scale * random.standard_normal(shape)).astype(np.float32)

        self.weights = {name: (normal(self.d_model, self.d_model, scale=1.5 / math.sqrt(self.d_model)),
                               normal(self.d_model, scale=0.3)) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        self.calls = [[normal(batch, n, self.d_model) for _ in range(3)] for n in (tokens, 1, 1)]
        self.given = [normal(batch, cached, self.d_model) for _ in range(2)] if cached else None
        self.answers = []
        held = [np.asarray(x, np.float64) for x in self.given] if cached else [np.zeros((batch, 0, self.d_model))] * 2
        for query, key, value in self.calls:
            q, k, v = (self._project(name, x) for name, x in (("q_proj", query), ("k_proj", key), ("v_proj", value)))
            held = [np.concatenate(pair, axis=1) for pair in zip(held, (k, v))]
            self.answers.append((self._attend(np, q, *held), *held))

    def _project(self, name, x):
        weight, bias = (part.astype("float64") for part in self.weights[name])
        return x @ weight.T + bias

    def _attend(self, np, q, k, v):
        width = self.d_model // self.heads
        mixed = np.empty_like(q)
        past = k.shape[1] - q.shape[1]
        for b in range(q.shape[0]):
            for i in range(q.shape[1]):
                end = past + i + 1 if self.causal else k.shape[1]
                for channels in (slice(h * width, (h + 1) * width) for h in range(self.heads)):
                    logits = k[b, :end, channels] @ q[b, i, channels] / math.sqrt(width)
                    shares = np.exp(logits - logits.max())
                    mixed[b, i, channels] = shares @ v[b, :end, channels] / shares.sum()
        return self._project("out_proj", mixed)

    def status(self, module, torch, np, calls=3):
        """pass, fail or error; and how far off the worst value was."""
        try:
            attention = module.KVCachedMultiHeadAttention(self.d_model, self.heads, self.capacity, 0.1)
            with torch.no_grad():
                for name, (weight, bias) in self.weights.items():
                    getattr(attention, name).weight.copy_(torch.from_numpy(weight))
                    getattr(attention, name).bias.copy_(torch.from_numpy(bias))
            attention.eval()
            cache = None
            if self.given is not None:
                cache = {name: torch.from_numpy(x.copy()) for name, x in zip(("key", "value"), self.given)}
            worst = 0.0
            for inputs, wanted in list(zip(self.calls, self.answers))[:calls]:
                tensors = [torch.from_numpy(x.copy()) for x in inputs]
                with torch.no_grad():
                    output, cache = attention(*tensors, cache=cache, use_causal_mask=self.causal)
                for got, right in zip((output, cache["key"], cache["value"]), wanted):
                    if type(got).__module__.split(".")[0] == "numpy" or got.dtype != torch.float32:
                        return "error", math.inf
                    if tuple(got.shape) != right.shape:
                        return "error", math.inf
                    difference = np.abs(got.detach().numpy() - right).max()
                    worst = max(worst, math.inf if math.isnan(difference) else float(difference))
        except Exception:
            return "error", math.inf
        # 64 tokens in 32-bit arithmetic stay below 2e-6; 16-bit arithmetic errs by more than 1e-4.
        return ("pass" if worst < 1e-5 else "fail"), worst


class Torch(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import numpy as np
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        cls.np, cls.torch = np, torch
        cls.cases = {row[0]: Played(row, np) for row in make_cases.TABLE}

    def statuses(self, path, calls=3):
        try:
            module = load(path)
        except (Exception, SystemExit):
            return dict.fromkeys(self.cases, ("error", math.inf))
        return {number: case.status(module, self.torch, self.np, calls) for number, case in self.cases.items()}

    def failing(self, path, calls=3):
        return [number for number, (status, _) in self.statuses(path, calls).items() if status != "pass"]

    def test_solution(self):
        for number, (status, worst) in self.statuses(HERE / "solution.py").items():
            self.assertEqual(status, "pass", f"case {number}: off by {worst}")

    def test_challenge_is_broken_everywhere(self):
        self.assertEqual(self.failing(HERE / "kv_attention.py"), list(self.cases))

    def test_bugs_show_where_their_table_says(self):
        for number, place in render.places().items():
            if place["kind"] == "bug":
                with self.subTest(place["name"]):
                    failing = self.failing(HERE / f"bugs/{number:02}_{place['name']}.py", calls=1)
                    self.assertEqual(failing, place["fails"])

    def test_decoys_are_right(self):
        for number, place in render.places().items():
            if place["kind"] == "decoy":
                with self.subTest(place["name"]):
                    self.assertEqual(self.failing(HERE / f"decoys/{number:02}_{place['name']}.py"), [])

    def interface(self, module):
        """What is wrong with the interface beside forward's values."""
        torch, wrong = self.torch, []
        x = torch.ones(2, 3, 16)
        for bad in ((x[0], x, x), (x, x[0], x), (x, x, x[0]), (x, x[:1], x), (x, x, torch.ones(2, 4, 16)), (None, x, x)):
            try:
                module.validate_inputs(*bad)
                wrong.append("validate_inputs")
            except ValueError:
                pass
        module.validate_inputs(x, x, x)
        attention = module.KVCachedMultiHeadAttention(16, 2, 8)
        attention.eval()
        full = {"key": torch.ones(1, 8, 16), "value": torch.ones(1, 8, 16)}
        five = {name: tensor[:, :5] for name, tensor in full.items()}
        token = torch.ones(1, 4, 16)
        try:
            attention(token[:, :3], token[:, :3], token[:, :3], cache=five)
        except ValueError:
            wrong.append("full")
        try:
            attention(token, token, token, cache=five)
            wrong.append("overflow")
        except ValueError:
            pass
        if attention.reset_cache() != {"key": None, "value": None}:
            wrong.append("reset_cache")
        for cache, length, filled in ((None, 0, False), (attention.reset_cache(), 0, False), (five, 5, False),
                                      (full, 8, True)):
            for info in (attention.get_cache_info(cache), attention.get_cache_info(cache, use_cache=False)):
                megabytes = 2 * length * 16 * 4 / 2**20
                if (info["cache_length"], info["is_full"]) != (length, filled) or \
                        not math.isclose(info["cache_size_mb"], megabytes):
                    wrong.append("get_cache_info")
        if module.compute_position_ids(5, 3).flatten().tolist() != [3, 4, 5, 6, 7]:
            wrong.append("compute_position_ids")
        first, again, other = (module.create_sample_input(2, 3, 16, seed)[0] for seed in (7, 7, 8))
        if not torch.equal(first, again) or torch.equal(first, other) or first.shape != (2, 3, 16):
            wrong.append("create_sample_input")
        module.create_sample_input(2, 3, 16)
        return set(wrong)

    def test_interface(self):
        right = [HERE / "solution.py", *sorted((HERE / "decoys").glob("*.py"))]
        right += [HERE / "corpus" / e["file"] for e in corpus() if e["interface"] == 5 and not e["sandbox"]]
        for path in right:
            with self.subTest(path.name):
                self.assertEqual(self.interface(load(path)), set())
        for number, place in render.places().items():
            if "interface" in place:
                with self.subTest(place["name"]):
                    path = HERE / f"bugs/{number:02}_{place['name']}.py"
                    self.assertIn(place["interface"], self.interface(load(path)))

    def test_dropout_only_in_training(self):
        torch = self.torch
        module = load(HERE / "solution.py")
        attention = module.KVCachedMultiHeadAttention(16, 2, dropout=0.5)
        x = torch.ones(1, 8, 16)
        self.assertFalse(torch.equal(attention(x, x, x)[0], attention(x, x, x)[0]))
        attention.eval()
        self.assertTrue(torch.equal(attention(x, x, x)[0], attention(x, x, x)[0]))

    def test_corpus_without_a_sandbox(self):
        """Those whose verdict hangs on values alone; as one call, as the table's cases are. The visible case is number
        1 here."""
        for entry in corpus():
            if entry["sandbox"]:
                continue
            with self.subTest(entry["file"]):
                for number, (status, worst) in self.statuses(HERE / "corpus" / entry["file"], calls=1).items():
                    self.assertIn(status, status_of(entry, str(number)), f"case {number}: off by {worst}")


def main(arguments):
    if arguments not in (["files"], ["torch"]):
        print(__doc__.strip())
        return 0 if {"-h", "--help"} & set(arguments) else 2
    if arguments == ["torch"]:
        try:
            import numpy  # noqa: F401
            import torch  # noqa: F401
        except ImportError as missing:
            # The first python3 on the PATH need not be the system's, for which ci/setup installs PyTorch.
            system = "/usr/bin/python3"
            if os.path.exists(system) and not os.path.samefile(sys.executable, system):
                os.execv(system, [system, __file__, *arguments])
            print(f"skipped: {missing}; ci/setup --grading installs it")
            return SKIPPED
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(Files if arguments == ["files"] else Torch)
    # What is run here is code of the corpus, without a sandbox: what it writes beside itself shall not stay.
    with tempfile.TemporaryDirectory(prefix="attest-challenge-") as scratch:
        os.chdir(scratch)
        successful = unittest.TextTestRunner(buffer=True).run(tests).wasSuccessful()
        left = os.listdir(scratch)
        os.chdir("/")
    if left:
        print(f"FAILED: files were left in the current folder: {left}")
    return 0 if successful and not left else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
