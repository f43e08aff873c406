# SPDX-License-Identifier: Apache-2.0
"""What a case asks (`Problem`), and whether a step is a legal one (`check_step`), as spec/attention.md has it.

A refused step must change nothing, so all that can be wrong with one is found here, before anything is computed."""
import math
from types import SimpleNamespace

from attest_worker.protocol import BadRequest, Fields, Invalid, Overflow
from attest_worker.tensors import read_tensors

PROBLEM_TENSORS = (
    "q_weight", "k_weight", "v_weight", "out_weight", "q_bias", "k_bias", "v_bias", "out_bias",
    "sinks", "alibi_slopes", "q_norm_weight", "k_norm_weight",
)  # fmt: skip
CACHE_TENSORS = ("key", "value", "lengths", "block_table", "key_scale", "value_scale")
STEP_TENSORS = (
    "query", "key", "value", "query_lengths", "key_lengths", "query_start", "key_start", "positions", "mask",
    "output", "lse", *(f"cache.{name}" for name in CACHE_TENSORS),
)  # fmt: skip
INT32_MAX = 2**31 - 1


class Problem(SimpleNamespace):
    """The fields of a case's problem (spec/schema/case.schema.json), each of them there: `scale` is a number always
    (`explicit_scale` says whether the case gave it), `window` is (left, right) with None for no bound, `softcap`,
    `rope`, `qk_norm` are None where there are none, `bias` is the set of projections that have one. `tensors` are those
    of the problem by name."""


def read_problem(json_object, place):
    fields = Fields(json_object, place)
    number = (int, float)
    p = Problem()
    p.level = fields.take_or("level", str, "core")
    p.dtype = fields.take_or("dtype", str, "f32")
    p.batch = fields.take_or("batch", int, 1)
    p.query_heads = fields.take_or("query_heads", int, 1)
    p.kv_heads = fields.take_or("kv_heads", int, p.query_heads)
    width = fields.take_or("head_dim", int, None)
    p.qk_head_dim = fields.take_or("qk_head_dim", int, width)
    p.v_head_dim = fields.take_or("v_head_dim", int, width)
    if p.qk_head_dim is None or p.v_head_dim is None:
        raise BadRequest(fields.place("head_dim"), "is missing")
    p.d_model = fields.take_or("d_model", int, p.query_heads * p.qk_head_dim if p.level == "layer" else 0)
    given = fields.take_or("scale", number, None)
    p.explicit_scale = given is not None
    p.scale = 1 / math.sqrt(p.qk_head_dim) if given is None else float(given)
    p.causal = fields.take_or("causal", str, "none")
    window = Fields(fields.take_or("window", dict, {}), fields.place("window"))
    p.window = (window.take_or("left", int, None), window.take_or("right", int, None))
    window.finish()
    p.softcap = float(fields.take_or("softcap", number, 0)) or None
    p.alibi = fields.take_or("alibi", str, "none")
    p.sinks = fields.take_or("sinks", bool, False)
    p.mask = fields.take_or("mask", str, "none")
    p.rope = fields.take_or("rope", dict, None)
    p.qk_norm = fields.take_or("qk_norm", dict, None)
    p.cache = fields.take_or("cache", str, "none")
    p.capacity = fields.take_or("capacity", int, 0)
    p.page_size = fields.take_or("page_size", int, 0)
    p.cache_dtype = fields.take_or("cache_dtype", str, p.dtype)
    p.kv_scale = fields.take_or("kv_scale", str, "none")
    p.packed = fields.take_or("packed", bool, False)
    bias = fields.take_or("bias", (bool, list), False) if "bias" in json_object else False
    p.bias = frozenset(("q", "k", "v", "out") if bias is True else bias or ())
    p.lse = fields.take_or("lse", bool, False)
    fields.finish()
    if p.level not in ("core", "layer") or p.dtype not in ("f32", "f16", "bf16"):
        raise BadRequest(place, f"got level {p.level} and dtype {p.dtype}")
    if min(p.batch, p.query_heads, p.kv_heads, p.qk_head_dim, p.v_head_dim) < 1 or p.query_heads % p.kv_heads != 0:
        raise BadRequest(place, "its heads, widths and batch are those of no problem")
    return p


def read_prepare(request, mapping):
    """The problem of a request with its tensors, checked."""
    p = read_problem(request.take("problem", dict), request.place("problem"))
    p.tensors = read_tensors(request.take("tensors", dict), request.place("tensors"), mapping, PROBLEM_TENSORS)
    request.finish()
    check_problem(p)
    return p


# -------------------------------------------------------------------------------------------------------------- checks


def _check(name, tensor, dtype, shape):
    """Raises Invalid unless the tensor is there with this dtype and shape, in which None is any extent."""
    if tensor is None:
        raise Invalid(f"{name}: got none, wanted a tensor of shape {_text(shape)}")
    got = tensor.shape
    if len(got) == len(shape):
        shape = [max(g, 0) if w is None else w for w, g in zip(shape, got)]
    if list(got) != list(shape):
        raise Invalid(f"{name}: got shape {_text(got)}, wanted {_text(shape)}")
    if tensor.dtype != dtype:
        raise Invalid(f"{name}: got dtype {tensor.dtype}, wanted {dtype}")


def _absent(name, tensor, why):
    if tensor is not None:
        raise Invalid(f"{name}: got a tensor, wanted none: {why}")


def _text(shape):
    return "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"


def check_problem(p):
    """Raises Invalid unless the problem's tensors are those that it needs."""
    t = p.tensors
    if p.level == "layer":
        for name, heads, dim in (
            ("q", p.query_heads, p.qk_head_dim),
            ("k", p.kv_heads, p.qk_head_dim),
            ("v", p.kv_heads, p.v_head_dim),
        ):
            _check(f"{name}_weight", t[f"{name}_weight"], p.dtype, [heads * dim, p.d_model])
            if t[f"{name}_bias"] is not None:
                _check(f"{name}_bias", t[f"{name}_bias"], p.dtype, [heads * dim])
        _check("out_weight", t["out_weight"], p.dtype, [p.d_model, p.query_heads * p.v_head_dim])
        if t["out_bias"] is not None:
            _check("out_bias", t["out_bias"], p.dtype, [p.d_model])
    else:
        for name in PROBLEM_TENSORS[:8]:
            _absent(name, t[name], "the problem is of the core level")
    if t["sinks"] is not None:
        _check("sinks", t["sinks"], "f32", [p.query_heads])
    for name in ("q_norm_weight", "k_norm_weight"):
        if t[name] is not None:
            _check(name, t[name], p.dtype, [p.qk_head_dim])
    if p.alibi == "slopes":
        _check("alibi_slopes", t["alibi_slopes"], "f32", [p.query_heads])
    else:
        _absent("alibi_slopes", t["alibi_slopes"], "the problem gives no slopes")


class Sequence:
    """One sequence of a step: its number, its query and key tokens, its tokens in the cache before, and where its
    tokens begin on packed axes (0 on padded ones)."""

    def __init__(self, number):
        self.number = number
        self.queries = self.keys = self.past = 0
        self.query_start = self.key_start = 0

    @property
    def total(self):
        return self.past + self.keys


def check_step(p, t):
    """The sequences of a step. Raises Invalid or Overflow, and writes nothing."""
    _check_step_tensors(p, t)
    sequences = [Sequence(b) for b in range(p.batch)]
    limit = INT32_MAX if p.cache == "ring" else p.capacity
    if p.packed:
        for side, counts, tensor in (("query", "queries", t["query"]), ("key", "keys", t["key"])):
            if t[f"{side}_start"] is not None:
                tokens = 0 if tensor is None else tensor.shape[0]
                _read_starts(f"{side}_start", t[f"{side}_start"], sequences, side, counts, tokens)
    else:
        for side, counts, tensor in (("query", "queries", t["query"]), ("key", "keys", t["key"])):
            most = 0 if tensor is None else tensor.shape[1]
            _read_counts(f"{side}_lengths", t[f"{side}_lengths"], sequences, counts, most, most)
    if p.cache != "none":
        _read_counts("cache.lengths", t["cache.lengths"], sequences, "past", 0, limit)
    for s in sequences:
        if p.cache != "none" and s.total > limit:
            raise Overflow(
                f"cache.lengths[{s.number}]: {s.past} cached + {s.keys} new tokens = {s.total}, capacity is {limit}"
            )
        if t["positions"] is not None and s.keys > s.queries:
            raise Invalid(
                f"positions: got {s.queries} of sequence {s.number}, wanted one for each of its {s.keys} keys"
            )
    if t["mask"] is not None:
        longest = max(s.total for s in sequences)
        _check("mask", t["mask"], t["mask"].dtype, [*t["mask"].shape[:3], longest])
    if p.cache == "paged":
        table, pages = t["cache.block_table"].array, t["cache.key"].shape[0]
        for s in sequences:
            for index in range((s.total + p.page_size - 1) // p.page_size):
                _range(f"cache.block_table[{s.number}, {index}]", int(table[s.number, index]), 0, pages - 1)
    return sequences


def _check_step_tensors(p, t):
    def tokens(name, count, heads, dim):
        shape = [count] if p.packed else [p.batch, count]
        _check(name, t[name], p.dtype, shape + ([p.d_model] if p.level == "layer" else [heads, dim]))

    def on_axis(name):
        return 0 if t[name] is None else t[name].shape[0 if p.packed else 1]

    tokens("query", None, p.query_heads, p.qk_head_dim)
    if t["key"] is not None or p.cache == "none":
        tokens("key", None, p.kv_heads, p.qk_head_dim)
        tokens("value", on_axis("key"), p.kv_heads, p.v_head_dim)
    else:
        _absent("value", t["value"], "there is no key")
    for side in ("query", "key"):
        if p.packed:
            _absent(f"{side}_lengths", t[f"{side}_lengths"], "the problem is packed")
            if side == "query" or t["key"] is not None or t["key_start"] is not None:
                _check(f"{side}_start", t[f"{side}_start"], "i32", [p.batch + 1])
        else:
            _absent(f"{side}_start", t[f"{side}_start"], "the problem is not packed")
            if t[f"{side}_lengths"] is not None:
                _check(f"{side}_lengths", t[f"{side}_lengths"], "i32", [p.batch])
    if t["positions"] is not None:
        if p.rope is None:
            _absent("positions", t["positions"], "the problem has no RoPE")
        _check("positions", t["positions"], "i32", [on_axis("query")] if p.packed else [p.batch, on_axis("query")])
    if p.mask == "none":
        _absent("mask", t["mask"], "the problem has no mask")
    else:
        whole = [p.batch, p.query_heads, on_axis("query")]
        if t["mask"] is not None and len(t["mask"].shape) == 4:
            whole = [1 if got == 1 else wanted for got, wanted in zip(t["mask"].shape, whole)]
        _check("mask", t["mask"], "u8" if p.mask == "boolean" else p.dtype, [*whole, None])
    there = [name for name in CACHE_TENSORS if t[f"cache.{name}"] is not None]
    if p.cache == "none":
        if there:
            raise Invalid("cache: got a cache, wanted none: the problem has no cache")
    elif not there:
        raise Invalid("cache: got none, wanted one: the problem has a cache")
    else:
        _check_cache(p, t)
    tokens("output", on_axis("query"), p.query_heads, p.v_head_dim)
    if p.lse:
        queries = on_axis("query")
        _check("lse", t["lse"], "f32", [p.query_heads, queries] if p.packed else [p.batch, p.query_heads, queries])
    else:
        _absent("lse", t["lse"], "the problem wants none")


def _check_cache(p, t):
    paged = p.cache == "paged"
    inner = p.page_size if paged else p.capacity
    _check("cache.key", t["cache.key"], p.cache_dtype, [None if paged else p.batch, inner, p.kv_heads, p.qk_head_dim])
    outer = t["cache.key"].shape[0]
    _check("cache.value", t["cache.value"], p.cache_dtype, [outer, inner, p.kv_heads, p.v_head_dim])
    _check("cache.lengths", t["cache.lengths"], "i32", [p.batch])
    if paged:
        _check("cache.block_table", t["cache.block_table"], "i32", [p.batch, -(-p.capacity // p.page_size)])
    else:
        _absent("cache.block_table", t["cache.block_table"], "the cache is not paged")
    shapes = {"tensor": [1], "head": [p.kv_heads], "token": [outer, inner, p.kv_heads]}
    for name in ("cache.key_scale", "cache.value_scale"):
        if p.kv_scale == "none":
            _absent(name, t[name], "the cache is not quantised")
        else:
            _check(name, t[name], "f32", shapes[p.kv_scale])


def _range(name, got, low, high):
    if not low <= got <= high:
        raise Invalid(f"{name}: got {got}, wanted {low}..{high}")


def _read_counts(name, tensor, sequences, counts, fallback, most):
    for s in sequences:
        value = fallback if tensor is None else int(tensor.array[s.number])
        _range(f"{name}[{s.number}]", value, 0, most)
        setattr(s, counts, value)


def _read_starts(name, tensor, sequences, side, counts, tokens):
    starts = [int(value) for value in tensor.array]
    _range(f"{name}[0]", starts[0], 0, 0)
    for s, start, end in zip(sequences, starts, starts[1:]):
        _range(f"{name}[{s.number + 1}]", end, start, tokens)
        setattr(s, f"{side}_start", start)
        setattr(s, counts, end - start)
    if starts[-1] != tokens:
        raise Invalid(f"{name}[{len(starts) - 1}]: got {starts[-1]}, wanted {tokens}: the number of tokens")
