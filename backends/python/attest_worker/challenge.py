# SPDX-License-Identifier: Apache-2.0
"""The kind `challenge`: a submission's class KVCachedMultiHeadAttention, as a backend of the layer level.

Its own interface is kept: the cache that it returned is what it is given next, the very object. Only where the suite
has changed the cache meanwhile (a load, a truncation) it is given one made from the cache's memory."""
import hashlib
import math
import sys

import numpy as np

from attest_worker.loading import load, table_name
from attest_worker.problem import check_step
from attest_worker.protocol import (
    BadRequest, Failed, Fields, Invalid, Overflow, Unsupported, describe, printable,
)  # fmt: skip
from attest_worker.tensors import TorchLibrary

CLASS = "KVCachedMultiHeadAttention"
DROPOUT = 0.1
PROJECTIONS = ("q", "k", "v", "out")
MANY = 1 << 22  # more tokens or elements than any probe needs
LARGEST = 1 << 24  # elements of a tensor of which more than its shape is told


class ChallengeBackend:
    def __init__(self, path, options):
        options.pop("tensors", None)
        for option in options:
            raise Invalid(f"option {option}: the kind challenge knows no such option")
        try:
            self.library = TorchLibrary()
        except ImportError as error:
            raise Failed(f"{path}: wants PyTorch, which cannot be imported: {error}; ci/setup --grading") from None
        self.file = path
        self.module = load(path)
        self.layer = getattr(self.module, CLASS, None)
        if not callable(self.layer):
            raise Failed(f"{path}: has no class {CLASS}")
        python = ".".join(map(str, sys.version_info[:3]))
        self.table = {
            "name": table_name(path),
            "version": "0",
            "description": f"{CLASS} (PyTorch {self.library.version}, Python {python})",
            "device": "cpu",
            "abi_version": 0,
            "declarations": {},
        }

    def prepare(self, problem):
        require(problem)
        return ChallengePlan(self, problem)

    def close(self):
        pass


def require(p):
    """Raises Unsupported unless the challenge's interface can say the problem."""
    for wrong, what in (
        (p.level != "layer", "the core level"),
        (p.dtype != "f32", f"dtype {p.dtype}"),
        (p.query_heads != p.kv_heads or p.qk_head_dim != p.v_head_dim, "heads or widths that differ"),
        (p.d_model != p.query_heads * p.qk_head_dim, "a d_model that is not heads * width"),
        (p.cache != "contiguous" or p.kv_scale != "none", "a cache that is not contiguous and plain"),
        (p.causal == "top_left", "causal, top-left"),
        (p.bias != frozenset(PROJECTIONS), "projections without a bias"),
        (p.mask != "none" or p.window != (None, None) or p.alibi != "none", "a mask, a window or ALiBi"),
        (p.softcap or p.sinks or p.rope or p.qk_norm or p.explicit_scale, "softcap, sinks, RoPE, QK-norm or a scale"),
        (p.lse or p.packed, "the LSE or packed sequences"),
    ):
        if wrong:
            raise Unsupported(f"not in the challenge: {what}")


class ChallengePlan:
    def __init__(self, backend, problem):
        self.backend, self.problem = backend, problem
        self.torch = backend.library.torch
        p = problem
        with backend.library.quiet():
            self.model = backend.layer(p.d_model, p.query_heads, max_cache_len=p.capacity, dropout=DROPOUT)
            for name in PROJECTIONS:
                self._set(f"{name}_proj", p.tensors[f"{name}_weight"], p.tensors[f"{name}_bias"])
            self.model.eval()
        self.own = None  # what the submission returned last
        self.held = None  # the cache's contents as they were then: (key, value), of the whole batch

    def _set(self, name, weight, bias):
        layer = getattr(self.model, name, None)
        if layer is None:
            raise Failed(f"{CLASS} has no layer {name}")
        for part, given in (("weight", weight), ("bias", bias)):
            parameter = getattr(layer, part, None)
            got = getattr(parameter, "shape", None)
            if got is None or tuple(got) != given.shape:
                there = type(parameter).__name__ if got is None else f"shape {list(got)}"
                raise Failed(f"{name}.{part}: got {there}, wanted {list(given.shape)}")
            parameter.copy_(self._tensor(given))

    def _tensor(self, tensor):
        return self.backend.library.wrap(tensor.array, tensor.dtype)

    def run(self, tensors, numbers):
        p = self.problem
        sequences = None
        try:
            sequences = check_step(p, tensors)
        except Overflow as overflow:
            refusal = str(overflow)
        # The submission is to refuse an overflow itself; all else that is wrong with a step it never sees.
        past = [int(n) for n in tensors["cache.lengths"].array]
        cached = past[0]
        if any(n != cached for n in past) or tensors["key"] is None:
            raise Failed("request: the challenge's sequences all have the same length, and every step has keys")
        if sequences and any(s.queries != tensors["query"].shape[1] or s.keys != tensors["key"].shape[1]
                             for s in sequences):  # fmt: skip
            raise Failed("request: the challenge's steps have no padding")
        try:
            with self.backend.library.quiet():
                result = self.model(
                    *(self._tensor(tensors[name]) for name in ("query", "key", "value")),
                    cache=self._cache(tensors, cached),
                    use_causal_mask=p.causal == "bottom_right",
                )
        except ValueError as error:
            if sequences is None:
                raise Overflow(f"{describe(error, self.backend.file)}; {refusal}") from None
            raise Invalid(describe(error, self.backend.file)) from None
        if sequences is not None:  # where it did not refuse an overflow, the status alone is the finding
            self._put_away(result, tensors, cached)

    def _cache(self, tensors, cached):
        """What goes into `forward`: the object that it returned last, if the cache still is what it was then."""
        there = [self._merged(tensors[f"cache.{name}"], cached) for name in ("key", "value")]
        if self.own is not None and all(np.array_equal(a, b) for a, b in zip(self.held, there)):
            return self.own
        if cached == 0:
            return None
        return {name: self.torch.from_numpy(array.view(np.float32)) for name, array in zip(("key", "value"), there)}

    def _merged(self, tensor, count):
        """The bits of the cache's first tokens as the challenge has them, [batch, tokens, d_model]: a copy."""
        array = np.array(tensor.array[:, :count], order="C").view(np.int32)
        return array.reshape(self.problem.batch, count, self.problem.d_model)

    def _put_away(self, result, tensors, cached):
        p = self.problem
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise Failed(f"forward: got {kind_of(result)}, wanted (output, new_cache)")
        output, cache = result
        total = cached + tensors["key"].shape[1]
        wanted = (p.batch, total, p.d_model)
        output = self._bits("output", output, tensors["output"].shape)
        try:
            parts = {name: self._bits(f'new_cache["{name}"]', cache[name], wanted) for name in ("key", "value")}
        except (KeyError, TypeError, IndexError) as error:
            raise Failed(f"new_cache: got {kind_of(cache)}, wanted a dict with key and value "
                         f"({describe(error)})") from None  # fmt: skip
        tensors["output"].array[...] = output
        for name, array in parts.items():
            tensor = tensors[f"cache.{name}"]
            tensor.array[:, :total] = array.reshape(p.batch, total, p.kv_heads, p.qk_head_dim)
        tensors["cache.lengths"].array[...] = total
        self.own = cache
        self.held = [self._merged(tensors[f"cache.{name}"], total) for name in ("key", "value")]

    def _bits(self, name, value, shape):
        got = getattr(value, "shape", None)
        if got is None or tuple(got) != tuple(shape):
            there = kind_of(value) if got is None else f"shape {list(got)}"
            raise Failed(f"{name}: got {there}, wanted shape {list(shape)}")
        try:
            return np.array(self.backend.library.unwrap(value, "f32", name))
        except TypeError as error:
            raise Failed(describe(error).partition(": ")[2]) from None

    # ---------------------------------------------------------------------------------------------------------- probes

    def probe(self, what, arguments):
        """Calls a part of the interface; what happened, call by call (spec/protocol.md, probe)."""
        if what not in PROBES:
            raise BadRequest("request.what", f'got "{what}", wanted one of {", ".join(PROBES)}')
        with self.backend.library.quiet():
            calls = list(PROBES[what](self, arguments))
        return {"calls": calls}

    def _call(self, function, *arguments, value=None, **named):
        """One call as an entry of the reply. `value` makes of what it returned what is told of it."""
        entry = {"missing": function is None, "raised": None, "error": "", "returned": None}
        if function is None:
            return entry
        try:
            returned = function(*arguments, **named)
            entry["returned"] = summary(self.torch, returned) if value is None else value(returned)
        except SystemExit:
            raise
        except BaseException as error:
            entry["raised"] = printable(type(error).__name__, 200)
            entry["error"] = printable(describe(error, self.backend.file), 500)
        return entry

    def _random(self, *shape, seed=1):
        generator = self.torch.Generator().manual_seed(seed)
        return self.torch.rand(shape, generator=generator, dtype=self.torch.float32) * 2 - 1

    def _right_cache(self, count):
        """A cache with random tokens, projected as they should be; None of length 0."""
        if count == 0:
            return None
        p, made = self.problem, {}
        for seed, name, side in ((2, "key", "k"), (3, "value", "v")):
            x = self._random(p.batch, count, p.d_model, seed=seed)
            weight, bias = (self._tensor(p.tensors[f"{side}_{part}"]).clone() for part in ("weight", "bias"))
            made[name] = x @ weight.T + bias
        return made

    def _inputs(self, tokens):
        return [self._random(self.problem.batch, tokens, self.problem.d_model, seed=seed) for seed in (4, 5, 6)]

    def _validate_inputs(self, arguments):
        shapes = arguments.take("shapes", list)
        dtype = {"f32": self.torch.float32, "f64": self.torch.float64, "i64": self.torch.int64}.get(
            arguments.take_or("dtype", str, "f32"))  # fmt: skip
        arguments.finish()
        if dtype is None:
            raise BadRequest(arguments.place("dtype"), "wanted f32, f64 or i64")
        function = getattr(self.backend.module, "validate_inputs", None)
        for i, one in enumerate(shapes):
            fields = Fields(one, f"request.arguments.shapes[{i}]")
            inputs = []
            for name in ("query", "key", "value"):
                shape = fields.take(name, (list, type(None)))
                inputs.append(None if shape is None else self._random(*_shape(shape)).to(dtype))
            fields.finish()
            yield self._call(function, *inputs)

    def _overflow(self, arguments):
        cached, tokens = _count(arguments, "cached", 0), _count(arguments, "tokens", 1)
        arguments.finish()
        yield self._call(self.model, *self._inputs(tokens), cache=self._right_cache(cached), use_causal_mask=True)

    def _eval_determinism(self, arguments):
        cached, tokens = _count(arguments, "cached", 0), _count(arguments, "tokens", 1)
        runs = _count(arguments, "runs", 2, 64)
        arguments.finish()
        bits = []

        def compared(returned):
            told = summary(self.torch, returned)
            bits.append(told)
            return {"type": "call", "shapes": _shapes(told), "same": _digests(told) == _digests(bits[0])}

        for run in range(runs):
            self.torch.manual_seed(1000 + run)
            cache = self._right_cache(cached)
            yield self._call(self.model, *self._inputs(tokens), cache=cache, use_causal_mask=True, value=compared)

    def _reset_cache(self, arguments):
        arguments.finish()
        yield self._call(getattr(self.model, "reset_cache", None))

    def _cache_info(self, arguments):
        cached = arguments.take("cached", (int, type(None)))
        named = {}
        if (use := arguments.take_or("use_cache", bool, None)) is not None:
            named["use_cache"] = use
        arguments.finish()
        if cached is not None and not 0 <= cached <= MANY:
            raise BadRequest(arguments.place("cached"), f"got {cached}, wanted 0 to {MANY} or null")
        yield self._call(getattr(self.model, "get_cache_info", None), self._right_cache(cached or 0), **named)

    def _position_ids(self, arguments):
        numbers = [_count(arguments, name, -MANY) for name in ("seq_len", "cache_len")]
        arguments.finish()
        yield self._call(getattr(self.backend.module, "compute_position_ids", None), *numbers)

    def _sample_input(self, arguments):
        numbers = [_count(arguments, name, -MANY) for name in ("batch_size", "seq_len", "d_model")]
        seeds = arguments.take("seeds", list)
        arguments.finish()
        function = getattr(self.backend.module, "create_sample_input", None)
        for seed in seeds:
            yield self._call(function, *numbers, **({} if seed is None else {"seed": seed}))


PROBES = {
    "validate_inputs": ChallengePlan._validate_inputs,
    "overflow": ChallengePlan._overflow,
    "eval_determinism": ChallengePlan._eval_determinism,
    "reset_cache": ChallengePlan._reset_cache,
    "cache_info": ChallengePlan._cache_info,
    "position_ids": ChallengePlan._position_ids,
    "sample_input": ChallengePlan._sample_input,
}


def _count(arguments, name, low, high=MANY):
    value = arguments.take(name, int)
    if not low <= value <= high:
        raise BadRequest(arguments.place(name), f"got {value}, wanted {low} to {high}")
    return value


def _shape(shape):
    if not all(isinstance(n, int) and 0 <= n <= MANY for n in shape) or math.prod(shape) > MANY:
        raise BadRequest("request.arguments.shapes", f"got {shape}, wanted extents, {MANY} elements at most")
    return shape


def kind_of(value):
    """What something is, for a message."""
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values"
    if isinstance(value, dict):
        return f"a dict with {', '.join(map(printable, value)) or 'nothing'}"[:200]
    return "None" if value is None else type(value).__name__


def summary(torch, value, depth=0):
    """A value as JSON (spec/protocol.md, probe)."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 62 else printable(value, 200)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str):
        return printable(value, 200)
    if isinstance(value, torch.Tensor) and value.numel() > LARGEST:
        return {"type": "tensor", "dtype": str(value.dtype).replace("torch.", ""), "shape": list(value.shape)}
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten()
        bits = flat.view(torch.uint8) if flat.numel() and not flat.is_complex() and flat.dtype != torch.bool else flat
        return {
            "type": "tensor",
            "dtype": str(value.dtype).replace("torch.", ""),
            "shape": list(value.shape),
            "values": [summary(torch, one, depth + 1) for one in flat[:64].tolist()],
            "sum": hashlib.blake2b(bits.numpy().tobytes(), digest_size=16).hexdigest(),
        }
    if depth < 4 and isinstance(value, dict):
        items = list(value.items())[:32]
        return {"type": "dict", "items": {printable(k, 200): summary(torch, v, depth + 1) for k, v in items}}
    if depth < 4 and isinstance(value, (tuple, list)):
        return {"type": "tuple" if isinstance(value, tuple) else "list",
                "items": [summary(torch, one, depth + 1) for one in value[:32]]}  # fmt: skip
    return {"type": printable(type(value).__name__, 200)}


def _walk(told, field):
    """The values of a field of all tensors in a summary, in order."""
    if not isinstance(told, dict):
        return []
    if told.get("type") == "tensor":
        return [told.get(field)]
    items = told.get("items", [])
    return [found for one in (items.values() if isinstance(items, dict) else items) for found in _walk(one, field)]


def _digests(told):
    return _walk(told, "sum")


def _shapes(told):
    return _walk(told, "shape")
