# SPDX-License-Identifier: Apache-2.0
"""The kind `function`: any attention function on PyTorch or NumPy arrays (backends/python/README.md).

The adapter moves data and computes nothing: it finds the keys and values of each sequence wherever the cache has them,
calls the function, and puts away results and new tokens. What a function does not ask for by name it is not certified
for: such a problem is `unsupported`, with the parameter that would be needed."""
import inspect
import json
import sys
from types import SimpleNamespace

import numpy as np

from attest_worker.loading import load, table_name
from attest_worker.problem import CACHE_TENSORS, PROBLEM_TENSORS, STEP_TENSORS, check_step
from attest_worker.protocol import Failed, Invalid, Unsupported, describe, printable
from attest_worker.tensors import LIBRARIES

PARAMETERS = ("mask", "causal", "window", "scale", "bias", "softcap", "alibi", "sinks", "return_lse", "problem")


class FunctionBackend:
    def __init__(self, path, options):
        name = options.pop("function", None)
        chosen = options.pop("tensors", None)
        for option in options:
            raise Invalid(f"option {option}: the kinds of tensors and functions know no such option")
        if not name:
            raise Invalid("option function: got none, wanted the function's name")
        module = load(path)
        self.file = path
        self.function = getattr(module, name, None)
        if not callable(self.function):
            raise Failed(f'{path}: has no function "{name}"; there: {", ".join(_functions(module)) or "none"}')
        self._read_signature(path, name)
        chosen = chosen or getattr(self.function, "tensors", None) or getattr(module, "tensors", None)
        if chosen is None:
            chosen = "torch" if "torch" in sys.modules else "numpy"
        if chosen not in LIBRARIES:
            raise Invalid(f'tensors: got "{chosen}", wanted torch or numpy')
        try:
            self.library = LIBRARIES[chosen]()
        except ImportError as error:
            raise Failed(f"{path}: wants tensors of {chosen}, which cannot be imported: {error}") from None
        supports = getattr(self.function, "supports", None) or getattr(module, "supports", None)
        self.supports = supports if callable(supports) else lambda problem: None
        declared = getattr(self.function, "declarations", None) or getattr(module, "declarations", None)
        self.declarations = declared if isinstance(declared, dict) else {}
        try:
            json.dumps(self.declarations, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Failed(f"{path}: declarations: {error}") from None
        python = ".".join(map(str, sys.version_info[:3]))
        about = printable((inspect.getdoc(self.function) or inspect.getdoc(module) or "no description").split("\n")[0])
        self.table = {
            "name": table_name(path, name),
            "version": printable(getattr(module, "__version__", "0")),
            "description": f"{about} ({chosen} {self.library.version}, Python {python})",
            "device": "cpu",
            "abi_version": 0,
            "declarations": self.declarations,
        }

    def _read_signature(self, path, name):
        try:
            parameters = list(inspect.signature(self.function).parameters.values())
        except (TypeError, ValueError):
            raise Failed(f"{path}: {name}: its signature cannot be read; wrap it in a function of your own") from None
        self.whole_step = [p.name for p in parameters[:2]] == ["problem", "step"]
        kinds = inspect.Parameter
        named = [p for p in parameters if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
        first, rest = (named[:2], named[2:]) if self.whole_step else (named[:3], named[3:])
        for p in rest:
            if (self.whole_step or p.name not in PARAMETERS) and p.default is kinds.empty:
                known = "no third parameter" if self.whole_step else f"one of {', '.join(PARAMETERS)}, or a default"
                raise Failed(f'{path}: {name}: got the parameter "{p.name}", wanted {known}')
        if len(first) < (2 if self.whole_step else 3) or any(p.kind == kinds.KEYWORD_ONLY for p in first):
            raise Failed(f"{path}: {name}: wanted the parameters q, k, v first, or problem and step")
        self.asked = frozenset(p.name for p in rest if p.name in PARAMETERS)

    def prepare(self, problem):
        lacks = self.library.lacks(problem.dtype)
        if lacks:
            raise Unsupported(lacks)
        self._wrap_problem(problem)
        if not self.whole_step:
            require(problem, self.asked)
        reason = self.supports(problem)
        if reason not in (None, True, ""):
            raise Unsupported(printable(reason) if isinstance(reason, str) else "its supports() says no")
        return WholeStepPlan(self, problem) if self.whole_step else PlainPlan(self, problem)

    def close(self):
        pass

    def _wrap_problem(self, p):
        """The problem's tensors become attributes, as arrays of the function's library."""
        for name in PROBLEM_TENSORS:
            tensor = p.tensors[name]
            setattr(p, name, None if tensor is None else self.library.wrap(tensor.array, tensor.dtype))


def _functions(module):
    return [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]


def require(p, asked):
    """Raises Unsupported if a problem needs what a function has no parameter for."""

    def need(*names):
        for name in names:
            if name not in asked:
                raise Unsupported(f'the function has no parameter "{name}"')

    if p.level == "layer":
        raise Unsupported("the layer level: only a function of (problem, step) is given the weights")
    if p.rope is not None or p.qk_norm is not None:
        raise Unsupported("RoPE and QK-norm come before the cache write: only a function of (problem, step) does that")
    if p.kv_scale != "none":
        raise Unsupported("a quantised cache: only a function of (problem, step) sees codes and scales")
    if p.mask != "none":
        need("mask", "bias")  # they come in both kinds, and a profile is certified as a whole
    if "mask" not in asked:
        if p.causal == "top_left":
            need("mask")
        if p.causal != "none":
            need("causal")
        if p.window != (None, None):
            need("window")
    if p.explicit_scale:
        need("scale")
    if p.softcap is not None:
        need("softcap")
    if p.alibi != "none":
        need("alibi")
    if p.sinks is not None:
        need("sinks")
    if p.lse:
        need("return_lse")


# --------------------------------------------------------------------------------------------------------- whole steps


class WholeStepPlan:
    """A function of (problem, step): it is given all tensors in place, and does what a backend does."""

    def __init__(self, backend, problem):
        self.backend, self.problem = backend, problem

    def run(self, tensors, numbers):
        check_step(self.problem, tensors)
        wrapped = {
            name: None if t is None else self.backend.library.wrap(t.array, t.dtype) for name, t in tensors.items()
        }
        cache = None
        if self.problem.cache != "none":
            cache = SimpleNamespace(**{name: wrapped[f"cache.{name}"] for name in CACHE_TENSORS})
        step = SimpleNamespace(**{name: wrapped[name] for name in STEP_TENSORS if "." not in name}, cache=cache)
        vars(step).update(numbers)
        with self.backend.library.quiet():
            self.backend.function(self.problem, step)


# ---------------------------------------------------------------------------------------------------------- plain ones


class PlainPlan:
    """A function of (q, k, v, ...). Sequences of equal lengths are one call, others are a call each: the function never
    sees padding."""

    def __init__(self, backend, problem):
        self.backend, self.problem = backend, problem

    def run(self, tensors, numbers):
        p, library = self.problem, self.backend.library
        sequences = check_step(p, tensors)
        held = {s.number: (self._keys(s, tensors, "key"), self._keys(s, tensors, "value")) for s in sequences}
        same = len({(s.queries, s.past, s.keys) for s in sequences}) == 1
        with library.quiet():
            results = [
                (group, *self._call(group, held, tensors))
                for group in ([sequences] if same else [[s] for s in sequences])
                if group[0].queries > 0
            ]
        # Only now, when nothing can go wrong any more: a step that fails has written nothing.
        for group, output, lse in results:
            for i, s in enumerate(group):
                _rows(tensors["output"], s, p.packed)[...] = output[i].swapaxes(0, 1)
                if p.lse and p.packed:
                    tensors["lse"].array[:, s.query_start : s.query_start + s.queries] = lse[i]
                elif p.lse:
                    tensors["lse"].array[s.number, :, : s.queries] = lse[i]
        for s in sequences if p.cache != "none" else ():
            self._append(s, tensors)

    def _slots(self, s, tensors, first, last):
        """Where the cache has tokens first to last - 1 of a sequence: the indices on its first two axes."""
        tokens = np.arange(first, last)
        if self.problem.cache == "paged":
            size = self.problem.page_size
            return tensors["cache.block_table"].array[s.number][tokens // size], tokens % size
        if self.problem.cache == "ring":
            tokens = tokens % self.problem.capacity
        return np.full(last - first, s.number), tokens

    def _kept(self, s):
        """The first token of a sequence that is still there: a ring has lost the earlier ones."""
        return max(0, s.past - self.problem.capacity) if self.problem.cache == "ring" else 0

    def _keys(self, s, tensors, name):
        """All keys, or values, that are there for a sequence: cached ones, then new ones. [tokens, heads, channels]"""
        parts = []
        if self.problem.cache != "none":
            parts.append(tensors[f"cache.{name}"].array[self._slots(s, tensors, self._kept(s), s.past)])
        if s.keys > 0 or not parts:
            parts.append(self._new(s, tensors, name))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _new(self, s, tensors, name):
        array = tensors[name].array
        if self.problem.packed:
            return array[s.key_start : s.key_start + s.keys]
        return array[s.number, : s.keys]

    def _append(self, s, tensors):
        if s.keys > 0:
            # The last tokens only: where a step is longer than a ring, its slots are taken more than once.
            first = max(s.past, s.total - self.problem.capacity)
            for name in ("key", "value"):
                slots = self._slots(s, tensors, first, s.total)
                tensors[f"cache.{name}"].array[slots] = self._new(s, tensors, name)[first - s.past :]
        tensors["cache.lengths"].array[s.number] = s.total

    def _call(self, group, held, tensors):
        p, library, asked = self.problem, self.backend.library, self.backend.asked
        queries, total = group[0].queries, group[0].total
        first = self._kept(group[0])

        def batched(arrays, dtype=p.dtype):
            return library.wrap(np.ascontiguousarray(np.stack(list(arrays))), dtype)

        q = batched(np.swapaxes(_rows(tensors["query"], s, p.packed), 0, 1) for s in group)
        k = batched(np.swapaxes(held[s.number][0], 0, 1) for s in group)
        v = batched(np.swapaxes(held[s.number][1], 0, 1) for s in group)
        values = {}
        if "mask" in asked:
            seen = visible(p, queries, first, total)[None]
            parts = ((_part(tensors["mask"], s, first) != 0) & seen if p.mask == "boolean" else seen for s in group)
            values["mask"] = batched(parts, "bool")
        if "bias" in asked:
            values["bias"] = None
            if p.mask == "additive":
                values["bias"] = batched(_part(tensors["mask"], s, first) for s in group)
        if "alibi" in asked:
            values["alibi"] = {"none": None, "standard": "standard", "slopes": p.alibi_slopes}[p.alibi]
        values["causal"], values["window"], values["scale"] = p.causal == "bottom_right", p.window, p.scale
        values["softcap"], values["sinks"], values["return_lse"] = p.softcap, p.sinks, p.lse
        values["problem"] = p
        result = self.backend.function(q, k, v, **{name: values[name] for name in asked})
        output, lse = result, None
        if p.lse:
            if not isinstance(result, (tuple, list)) or len(result) != 2:
                raise Failed(f"with return_lse it returned {type(result).__name__}, wanted (output, lse)")
            output, lse = result
            lse = self._taken("lse", lse, "f32", (len(group), p.query_heads, queries))
        elif isinstance(result, (tuple, list)):
            raise Failed(f"it returned {len(result)} values, wanted the output alone: return_lse is False")
        return self._taken("output", output, p.dtype, (len(group), p.query_heads, queries, p.v_head_dim)), lse

    def _taken(self, name, value, dtype, shape):
        """The bits of a result, copied, after a look at its shape and dtype."""
        got = tuple(getattr(value, "shape", ()))
        if got != shape:
            what = f"shape {list(got)}" if hasattr(value, "shape") else type(value).__name__
            raise Failed(f"{name}: got {what}, wanted {list(shape)}")
        try:
            return np.array(self.backend.library.unwrap(value, dtype, name))
        except TypeError as error:
            raise Failed(describe(error).partition(": ")[2]) from None


def _rows(tensor, s, packed):
    """A sequence's rows of the query or the output, in place. [tokens, heads, channels]"""
    if packed:
        return tensor.array[s.query_start : s.query_start + s.queries]
    return tensor.array[s.number, : s.queries]


def _part(mask, s, first):
    """A sequence's part of an explicit mask: [1 or heads, queries, keys]."""
    array = mask.array[s.number if mask.shape[0] > 1 else 0]
    array = array[:, : s.queries, first : s.total]
    return np.broadcast_to(array, (array.shape[0], s.queries, s.total - first))


def visible(p, queries, first, total):
    """Which of the keys from `first` on each query sees by its position: [queries, keys] (clauses M1 to M5)."""
    index = np.arange(queries)[:, None]
    position = index if p.causal == "top_left" else total - queries + index
    key = np.arange(first, total)[None]
    left, right = p.window
    seen = np.ones((queries, total - first), bool)
    if p.causal != "none":
        seen &= key <= position
    if left is not None:
        seen &= key >= position - left
    if right is not None:
        seen &= key <= position + right
    return seen
