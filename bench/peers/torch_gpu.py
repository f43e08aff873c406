#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's attention on a GPU, beside a run of `attest bench` on the same one: its flash and its cuDNN path.

    torch_gpu.py BENCH.json --out PEERS.json [--seconds S] [--paths flash,cudnn] [--device cuda]

Takes the shapes and the ceilings of BENCH.json's first backend, and writes a file of the same form, which summary.py,
`attest bench report` and `attest bench compare` read: backends torch_flash and torch_cudnn.

- A step appends the new tokens and attends, as there; as many as there are queued at a time and timed by the host's
  clock up to the end of the device's work. They are replayed as CUDA graphs, so none of Python's time is in them.
- Caches are one block a head, which suits these kernels best, whatever the shape's name says of order.
- Of the ways to say a shape (GQA by the kernel, or a group folded into the rows) the faster one is taken.
- Outputs are held against a computation in f64 before and after the timed steps; a wrong one gets no number.
- What a path does not take (pages, sequences of different lengths, an int8 cache) has no number, with the reason.
  Chunks are causal from the lower right, which only the flash path has.

Exit code 0: every path has a number or a reason, 3: a path was wrong somewhere, 2: it could not be tried.
"""
import argparse
import json
import math
import pathlib
import re
import statistics
import sys
import time

SHAPE = re.compile(
    r"b(?P<batch>\d+)_h(?P<heads>\d+)-(?P<kv_heads>\d+)_d(?P<dim>\d+)(?:_chunk(?P<chunk>\d+))?_c(?P<context>\d+)"
    r"_(?P<dtype>f32|f16|bf16)(?P<kv8>_kv8)?(?P<paged>_paged)?(?P<skewed>_skewed)?(?:_heads)?"
)
ROUNDS = 5
MOST_COPIES = 512  # each is a graph of its own
EPSILON = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}


class NotTaken(Exception):
    """A shape or a form that a path has nothing for."""


class Wrong(Exception):
    """An output that is not the attention of its inputs."""


def reason_of(error):
    return " ".join(str(error).split())[:200] or type(error).__name__


class Step:
    """One copy of a shape's tensors, and what is done to them in a step."""

    def __init__(self, torch, shape, device, seed):
        generator = torch.Generator(device).manual_seed(seed)
        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[shape["dtype"]]

        def tensor(heads, tokens):
            size = (shape["batch"], heads, tokens, shape["dim"])
            return torch.randn(size, generator=generator, device=device, dtype=dtype)

        self.query = tensor(shape["heads"], shape["queries"])
        self.key, self.value = (tensor(shape["kv_heads"], shape["context"]) for _ in range(2))
        self.new = [tensor(shape["kv_heads"], shape["queries"]) for _ in range(2)]
        self.output = None
        self.first = shape["context"] - shape["queries"]

    def play(self, attend):
        self.key[:, :, self.first :].copy_(self.new[0])
        self.value[:, :, self.first :].copy_(self.new[1])
        self.output = attend(self)  # Of a graph it lies where it lay when that was captured.


def forms_of(torch, shape, backend):
    """Ways to ask for the same attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    group, queries, context = shape["heads"] // shape["kv_heads"], shape["queries"], shape["context"]
    scale = shape["dim"] ** -0.5

    def call(query, key, value, **more):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value, scale=scale, **more)

    more = {}
    if queries == context:
        more["is_causal"] = True
    elif queries > 1:
        if backend == SDPBackend.CUDNN_ATTENTION:
            raise NotTaken("no mask that is causal from the lower right, but as a tensor of queries x keys")
        from torch.nn.attention.bias import causal_lower_right

        more["attn_mask"] = causal_lower_right(queries, context)
    forms = {"gqa": lambda s: call(s.query, s.key, s.value, enable_gqa=group > 1, **more)}
    if queries == 1 and group > 1:
        forms["folded"] = lambda s: call(
            s.query.view(s.query.shape[0], shape["kv_heads"], group, -1), s.key, s.value
        ).reshape(s.query.shape)
    return forms


def check(torch, shape, step):
    """The output against f64, at a few queries of every head of a few sequences."""
    group, scale = shape["heads"] // shape["kv_heads"], shape["dim"] ** -0.5
    queries, context = shape["queries"], shape["context"]
    rows = sorted({0, queries // 2, queries - 1})
    for b in sorted({0, shape["batch"] - 1}):
        key, value = (x[b].double().repeat_interleave(group, 0) for x in (step.key, step.value))
        for row in rows:
            seen = context - queries + row + 1
            logits = torch.einsum("hd,htd->ht", step.query[b, :, row].double(), key[:, :seen]) * scale
            weights = torch.softmax(logits, -1)
            wanted = torch.einsum("ht,htd->hd", weights, value[:, :seen])
            size = torch.einsum("ht,htd->hd", weights, value[:, :seen].abs())
            got = step.output[b, :, row].double()
            # Weights and result are rounded once each, and a logit is off by its rounding in f32.
            allowed = (3 * EPSILON[shape["dtype"]] + 64 * 2.0**-24) * size + 1e-7
            bad = ~((got - wanted).abs() <= allowed)
            if bad.any():
                head, channel = (int(i) for i in bad.nonzero()[0])
                raise Wrong(
                    f"output[sequence {b}, token {row}, head {head}] channel {channel}: got "
                    f"{got[head, channel].item():.6g}, wanted {wanted[head, channel].item():.6g}, allowed "
                    f"{allowed[head, channel].item():.2g}"
                )


class Device:
    """Replays steps, and waits for them."""

    def __init__(self, torch, name):
        self.torch, self.name, self.graphs = torch, name, name == "cuda"

    def wait(self):
        if self.graphs:
            self.torch.cuda.synchronize()

    def room(self):
        return self.torch.cuda.mem_get_info()[0] // 2 if self.graphs else 4 << 30

    def replay_of(self, step, attend):
        if not self.graphs:
            return lambda: step.play(attend)
        side = self.torch.cuda.Stream()  # What a library sets up at its first call is none of a graph's.
        side.wait_stream(self.torch.cuda.current_stream())
        with self.torch.cuda.stream(side):
            step.play(attend)
        self.torch.cuda.current_stream().wait_stream(side)
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            step.play(attend)
        return graph.replay


def timed(device, plays, seconds, queued):
    """Microseconds of steps over all copies in turn, in rounds; so many are queued and then waited for."""
    for play in plays:
        play()
    device.wait()
    rounds, at = [], 0
    for _ in range(ROUNDS):
        samples, end = [], time.perf_counter() + seconds / ROUNDS
        while not samples or time.perf_counter() < end:
            begun = time.perf_counter()
            for _ in range(queued):
                plays[at % len(plays)]()
                at += 1
            device.wait()
            samples.append((time.perf_counter() - begun) * 1e6 / queued)
        rounds.append(samples)
    return rounds


def measure(torch, device, shape, backend, copies, queued, seconds):
    """Rounds of microseconds over so many copies of the cache, or as many as there is room for; and their number."""
    for mark, what in (("paged", "pages"), ("skewed", "sequences of different lengths"), ("kv8", "an int8 cache")):
        if shape[mark]:
            raise NotTaken(f"scaled_dot_product_attention has no {what}")
    number = {"f32": 4, "f16": 2, "bf16": 2}[shape["dtype"]]
    cache = 2 * shape["batch"] * shape["kv_heads"] * shape["context"] * shape["dim"] * number
    copies = max(1, min(copies, MOST_COPIES, device.room() // (2 * cache)))
    first = Step(torch, shape, device.name, 1)
    best, why = None, []
    try:
        forms = forms_of(torch, shape, backend)
    except ImportError as missing:  # PyTorch's masks want more packages than its tensors do.
        raise NotTaken(reason_of(missing)) from missing
    for name, attend in forms.items():
        try:
            play = device.replay_of(first, attend)
            taken = statistics.median(sum(timed(device, [play], seconds / 20, queued), []))
        except (RuntimeError, NotImplementedError) as error:
            why.append(f"{name}: {reason_of(error)}")
            continue
        if best is None or taken < best[0]:
            best = (taken, attend, play)
    if best is None:
        raise NotTaken("; ".join(why))
    _, attend, play = best
    steps = [first] + [Step(torch, shape, device.name, 2 + i) for i in range(copies - 1)]
    plays = [play] + [device.replay_of(step, attend) for step in steps[1:]]

    def check_all():
        for step in (steps[0], steps[-1]):
            check(torch, shape, step)

    for each in plays:
        each()
    device.wait()
    check_all()
    for step in steps:
        step.output.fill_(float("nan"))
    rounds = timed(device, plays, seconds, queued)
    for each in plays:
        each()
    device.wait()
    check_all()
    return rounds, copies


def shape_of(entry_name):
    _, kind, name, _ = entry_name.rsplit("/", 3)
    found = SHAPE.fullmatch(name)
    if kind not in ("decode", "prefill") or found is None:
        raise NotTaken(f"this script does not measure {kind}/{name}")
    shape = {k: int(v) if v and v.isdigit() else v for k, v in found.groupdict().items()}
    shape["queries"] = 1 if kind == "decode" else shape["chunk"] or shape["context"]
    return shape


def entry_of(reference, name, rounds, copies):
    """The reference's entry with these times."""
    samples = sorted(sum(rounds, []))
    middle = statistics.median(samples)

    def quantile(share):
        return samples[min(len(samples) - 1, math.ceil(share * len(samples)) - 1)]

    entry = dict(reference, name=name, run_name=name, iterations=len(samples), real_time=middle, cpu_time=middle)
    # Its rounds are not those in which the ceiling was measured: the share is median over median, without an interval.
    entry["ceiling_share"] = reference.get("ceiling_us", 0) / middle
    for bound in ("ceiling_share_low", "ceiling_share_high"):
        entry.pop(bound, None)
    speed = reference["real_time"] / middle
    for counter in ("tokens_per_second", "kv_gb_per_second", "gflops"):
        if counter in reference:
            entry[counter] = reference[counter] * speed
    entry.update(min_us=samples[0], p95_us=quantile(0.95), p99_us=quantile(0.99), n=float(len(samples)))
    entry.update(copies=float(copies))
    return entry


def failed_entry(reference, name, why):
    kept = ("family_index", "per_family_instance_index", "run_type", "repetitions", "repetition_index", "threads")
    entry = {field: reference[field] for field in (*kept, "batch", "context") if field in reference}
    entry.update(name=name, run_name=name, error_occurred=True, error_message=why)
    entry.update(iterations=0, real_time=0.0, cpu_time=0.0, time_unit="us")
    return entry


def run(arguments):
    """The file's content, and whether a path was wrong."""
    bench = json.loads(arguments.bench.read_text(encoding="utf-8"))
    if not isinstance(bench, dict) or not isinstance(bench.get("benchmarks"), list) or not bench["benchmarks"]:
        raise ValueError("benchmarks: missing or empty: no results of attest bench")
    first = bench["benchmarks"][0]["name"].rsplit("/", 3)[0]
    references = [e for e in bench["benchmarks"] if e["name"].rsplit("/", 3)[0] == first]

    import torch
    from torch.nn.attention import SDPBackend

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU here")
    paths = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    device, context = Device(torch, arguments.device), dict(bench["context"])
    for fact in [f for f in context if f.startswith("backend ")]:
        del context[fact]
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    entries, rounds_of, wrong = [], {}, False
    for path in arguments.paths.split(","):
        label = f"torch_{path}"
        library = f", cuDNN {cudnn}" if path == "cudnn" else ""
        context[f"backend {label}"] = f"torch {torch.__version__}{library}: scaled_dot_product_attention, replayed as a graph"
        for reference in references:
            name = "/".join([label, *reference["name"].rsplit("/", 3)[1:]])
            begun = time.perf_counter()
            try:
                if reference.get("error_occurred"):
                    raise NotTaken(f"{first} has no number, and so no ceiling")
                wanted = int(reference.get("copies", 1)) if name.endswith("/cold") else 1
                queued = int(reference.get("queued", 1))
                with torch.inference_mode():
                    rounds, copies = measure(
                        torch, device, shape_of(name), paths[path], wanted, queued, arguments.seconds
                    )
                entries.append(entry_of(reference, name, rounds, copies))
                rounds_of[name] = [[round(sample, 3) for sample in samples] for samples in rounds]
                said = f"{entries[-1]['real_time']:.1f} us, {reference['real_time'] / entries[-1]['real_time']:.2f} of {first}'s speed"
            except NotTaken as none:
                entries.append(failed_entry(reference, name, f"unsupported: {none}"))
                said = f"unsupported: {none}"
            except Wrong as finding:
                wrong = True
                entries.append(failed_entry(reference, name, f"wrong: {finding}"))
                said = f"WRONG: {finding}"
            except RuntimeError as error:  # no memory, say
                entries.append(failed_entry(reference, name, f"failed: {reason_of(error)}"))
                said = f"failed: {reason_of(error)}"
            if device.graphs:
                torch.cuda.empty_cache()
            print(f"{name}: {said} ({time.perf_counter() - begun:.1f} s)", file=sys.stderr)
    return {"context": context, "benchmarks": entries, "attest": {"format": 1, "unit": "us", "rounds": rounds_of}}, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=pathlib.Path, help="a file of attest bench --out, made on this machine")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the file to write")
    parser.add_argument("--seconds", type=float, default=1, help="of timed steps for each shape and path (1)")
    parser.add_argument("--paths", default="flash,cudnn", help="flash, cudnn, or both (flash,cudnn)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this script")
    arguments = parser.parse_args()
    try:
        if not arguments.seconds > 0:
            raise ValueError(f"--seconds: got {arguments.seconds}, wanted more than 0")
        for path in arguments.paths.split(","):
            if path not in ("flash", "cudnn"):
                raise ValueError(f"--paths: got {path!r}, wanted flash or cudnn")
        made, wrong = run(arguments)
        arguments.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    except Exception as broken:  # Whatever it is: one line and an exit code, for a script that goes on.
        print(f"torch_gpu.py: {arguments.bench}: {type(broken).__name__}: {reason_of(broken)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(3 if wrong else 0)


if __name__ == "__main__":
    main()
