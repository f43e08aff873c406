# SPDX-License-Identifier: Apache-2.0
"""PyTorch's attention as a peer: scaled_dot_product_attention, in whichever form is fastest for the shape at hand.

Which form that is depends on dtype, layout and length, by factors and not by percents, so the first step of a length
measures all that apply (FORMS) and the others use the winner; --backend torch,form=NAME names one. Below SMALL the
form hardly matters, and the documented one makes every run the same. Forms whose outputs are too coarse for the suite
are left out, because they would cost PyTorch its number.

- The caches are used where they lie, as [B, H, S, D] views; nothing is copied but the appended tokens.
- inference_mode; as many threads as cores; slicing and reshaping are done once a length, outside of the timed step.
- Sequences of different lengths take one call each: a padded batch would compute the padding too.
"""
import time

import steps
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

OPTIONS = ("form",)
SMALL = 1 << 16  # numbers in the visible keys
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def view(given):
    memory, dtype, shape, strides = given
    if len(memory) == 0:
        return torch.empty(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(memory, dtype=DTYPES[dtype]).as_strided(shape, strides)


class Call:
    """What a form gets: query [B, Hq, Sq, Dk], key and value [B, Hk, S, D]."""

    def __init__(self, query, key, value, scale, causal):
        self.query, self.key, self.value, self.scale = query, key, value, scale
        self.group = query.shape[1] // key.shape[1]
        queries, total = query.shape[2], key.shape[2]
        # A single query sees every key. is_causal aligns the first query with the first key.
        self.causal = bool(causal) and queries > 1 and queries == total
        self.mask = None
        if causal and queries > 1 and not self.causal:
            sees = torch.ones(queries, total, dtype=torch.bool).tril(total - queries)
            self.mask = torch.zeros(queries, total, dtype=query.dtype).masked_fill_(~sees, float("-inf"))

    def attend(self, query, key, value, gqa):
        return scaled_dot_product_attention(query, key, value, attn_mask=self.mask, is_causal=self.causal,
                                            scale=self.scale, enable_gqa=gqa)


def plain(call):
    """As the documentation says."""
    return lambda: call.attend(call.query, call.key, call.value, call.group > 1)


def folded(call):
    """One query a sequence: those of a group are the rows of one KV head, and no key is read twice."""
    if call.query.shape[2] != 1 or call.group == 1:
        return None
    query = call.query[:, :, 0].unflatten(1, (-1, call.group))
    return lambda: call.attend(query, call.key, call.value, False).flatten(1, 2).unsqueeze(2)


def grouped(call):
    """One sequence: its KV heads as the batch, a group as the heads, whose keys are one view."""
    if call.query.shape[0] != 1 or call.group == 1 or call.query.shape[2] == 1:
        return None
    query = call.query[0].unflatten(0, (-1, call.group))
    key, value = (x[0].unsqueeze(1).expand(-1, call.group, -1, -1) for x in (call.key, call.value))
    return lambda: call.attend(query, key, value, False).flatten(0, 1).unsqueeze(0)


def math(call):
    """SDPA's own composition of two products and a softmax."""
    inner = folded(call) or plain(call)

    def attend():
        with sdpa_kernel(SDPBackend.MATH):
            return inner()

    return attend


def products(call):
    """The same composition by hand, over folded groups."""
    if call.query.shape[2] != 1 or call.query.dtype == torch.float16:
        return None
    query = call.query[:, :, 0].unflatten(1, (-1, call.group))
    key = call.key.transpose(-1, -2)

    def attend():
        weights = torch.softmax(torch.matmul(query * call.scale, key), -1)
        return torch.matmul(weights, call.value).flatten(1, 2).unsqueeze(2)

    return attend


FORMS = {form.__name__: form for form in (plain, folded, grouped, math, products)}


class Plan:
    def __init__(self, problem, form):
        self.problem, self.form = problem, form
        self.fastest = {}  # name of a form by lengths and layout

    def choose(self, call):
        key = (call.query.shape, call.key.shape, call.key.stride())
        if call.key.numel() < SMALL:
            self.fastest[key] = plain.__name__
        if self.form is None and key not in self.fastest:
            times = {}
            for name, form in FORMS.items():
                attend = form(call)
                if attend is None:
                    continue
                began = time.perf_counter()
                attend()
                first = time.perf_counter() - began
                times[name] = first
                for _ in range(min(10, int(0.2 / first))):
                    began = time.perf_counter()
                    attend()
                    times[name] = min(times[name], time.perf_counter() - began)
            self.fastest[key] = min(times, key=times.get)
        return FORMS[self.form or self.fastest[key]](call)

    def bind(self, step):
        with torch.inference_mode():
            views = steps.Views(self.problem, step, view)
            calls, pairs = [], []
            if not self.problem.packed and steps.same_everywhere(step):
                query, output, pairs, key, value = views.whole()
                calls.append((query, output, key, value))
            else:
                for b in range(self.problem.batch):
                    pairs += views.appended(b)
                    rows = (views.queries(b), views.outputs(b), *views.keys(b))
                    calls.append(tuple(x.unsqueeze(0) for x in rows))
            blind = []  # outputs of queries that see no key
            calls = [self.call(*call, blind) for call in calls if call[0].shape[1] > 0]
            calls = [call for call in calls if call is not None]
        if self.form is not None and any(FORMS[self.form](call) is None for _, call in calls):
            raise NotImplementedError(f"option form: {self.form} does not apply to this step")

        def run():
            with torch.inference_mode():
                for to, what in pairs:
                    to.copy_(what)
                for output in blind:
                    output.zero_()
                for i, (output, attend) in enumerate(calls):
                    if isinstance(attend, Call):  # the first time: now the keys are there
                        attend = self.choose(attend)
                        calls[i] = output, attend
                    output.copy_(attend())

        return run

    def call(self, query, output, key, value, blind):
        """(where to, what to do), or None if there is nothing to do; all are [B, tokens, H, D]."""
        queries, total = query.shape[1], key.shape[1]
        sightless = max(0, queries - total) if self.problem.causal or total == 0 else 0
        if sightless > 0:
            blind.append(output[:, :sightless])
            query, output = query[:, sightless:], output[:, sightless:]
        if sightless == queries:
            return None
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return output.transpose(1, 2), Call(query, key, value, self.problem.scale, self.problem.causal)


class Context:
    def __init__(self, form):
        self.form = form

    def plan(self, problem):
        return Plan(problem, self.form)


def open(threads, options):
    form = options.get("form")
    if form is not None and form not in FORMS:
        raise ValueError(f'option form: got "{form}", wanted one of {", ".join(FORMS)}')
    torch.set_num_threads(threads)
    return Context(form)
