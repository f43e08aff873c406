#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes one set of results of several runs of `attest bench`, for a repository: what ci/bench does at its end.

    summary.py --out bench/results/NAME [--note "a line"]... run.json...

Writes results.json, in which each round has its median only (all that `attest bench compare` uses), and README.md, in
which each backend's median stands beside the others' and beside the ceiling. Exit code 2: a file is broken, and the
line on stderr says which.
"""
import argparse
import json
import math
import pathlib
import statistics
import sys

FACTS = [  # of the context, and what a reader calls them
    ("date", "begun"),
    ("cpu", "CPU"),
    ("cores_used", "cores"),
    ("multiply_add", "multiply-add of the ceiling"),
    ("huge_pages", "huge pages"),
    ("attest_version", "attest"),
]


def wanted(holds, what):
    if not holds:
        raise ValueError(what)


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def checked_entry(entry, place):
    wanted(isinstance(entry, dict), f"{place}: wanted an object")
    name = entry.get("name")
    wanted(isinstance(name, str), f"{place}.name: got {name!r}, wanted a string")
    parts = name.rsplit("/", 3)
    wanted(len(parts) == 4 and all(parts), f"{place}.name: got {name!r}, wanted backend/set/shape/temperature")
    failed = entry.get("error_occurred", False)
    wanted(isinstance(failed, bool), f"{place}.error_occurred: got {failed!r}, wanted true or false")
    if failed:
        reason = entry.get("error_message")
        wanted(isinstance(reason, str) and reason, f"{place}.error_message: got {reason!r}, wanted a reason")
        return
    wanted(entry.get("time_unit") == "us", f"{place}.time_unit: got {entry.get('time_unit')!r}, wanted 'us'")
    for field in ("real_time", "ceiling_us", "ceiling_share"):
        value = entry.get(field)
        wanted(is_number(value) and value >= 0, f"{place}.{field}: got {value!r}, wanted a number of 0 or more")
    for field in ("copies", "copies_wanted", "ceiling_share_low", "ceiling_share_high"):
        value = entry.get(field, 0)
        wanted(is_number(value) and value >= 0, f"{place}.{field}: got {value!r}, wanted a number of 0 or more")


def checked_times(times, place):
    good = isinstance(times, list) and times and all(is_number(value) and value > 0 for value in times)
    wanted(good, f"{place}: wanted an array of numbers above 0 that is not empty")


def checked_rounds(rounds, place):
    wanted(isinstance(rounds, list) and rounds, f"{place}: wanted an array that is not empty")
    for index, samples in enumerate(rounds):
        checked_times(samples, f"{place}[{index}]")


def checked(run):
    """The same, or a ValueError that names the field."""
    wanted(isinstance(run, dict), "wanted an object: no results of attest bench")
    for field, kind in (("context", dict), ("benchmarks", list), ("attest", dict)):
        wanted(isinstance(run.get(field), kind), f"{field}: missing or of another type: no results of attest bench")
    own = run["attest"]
    wanted(own.get("format") == 1 and own.get("unit") == "us", "attest: wanted format 1 and unit us")
    wanted(isinstance(own.get("rounds"), dict), "attest.rounds: wanted an object")
    wanted(isinstance(own.get("ceilings", {}), dict), "attest.ceilings: wanted an object")
    wanted(run["benchmarks"], "benchmarks: got none, wanted one at least")
    names = set()
    for index, entry in enumerate(run["benchmarks"]):
        place = f"benchmarks[{index}]"
        checked_entry(entry, place)
        name = entry["name"]
        wanted(name not in names, f"{place}.name: got {name!r} a second time")
        names.add(name)
        if name in own["rounds"] or not entry.get("error_occurred"):
            checked_rounds(own["rounds"].get(name), f"attest.rounds[{name!r}]")
        if name in own.get("ceilings", {}):
            checked_times(own["ceilings"][name], f"attest.ceilings[{name!r}]")
    return run


def constant(text):  # of those that Python reads beyond JSON
    raise ValueError(f"got {text}, wanted a number")


def read(path):
    try:
        return checked(json.loads(path.read_text(encoding="utf-8"), parse_constant=constant))
    except (OSError, ValueError, RecursionError) as broken:
        reason = broken.strerror if isinstance(broken, OSError) and broken.strerror else broken
        raise ValueError(f"{path}: {reason}") from broken


def rounded(microseconds):
    return round(microseconds, 3) or microseconds  # no time is 0


def merged(runs):
    """One run's JSON: the first run's context, every run's entries."""
    own = {"format": 1, "unit": "us", "rounds": {}, "ceilings": {}}
    whole = {"context": runs[0]["context"], "benchmarks": [], "attest": own}
    for run in runs:
        whole["context"].update({k: v for k, v in run["context"].items() if k.startswith(("backend ", "ceilings of ", "no ceiling of "))})
        for entry in run["benchmarks"]:
            if any(entry["name"] == other["name"] for other in whole["benchmarks"]):
                continue  # sets overlap
            whole["benchmarks"].append(entry)
            rounds = run["attest"]["rounds"].get(entry["name"])
            if rounds is not None:
                medians = [statistics.median(samples) for samples in rounds]
                own["rounds"][entry["name"]] = [[rounded(middle)] for middle in medians]
            ceilings = run["attest"].get("ceilings", {}).get(entry["name"])
            if ceilings is not None:
                own["ceilings"][entry["name"]] = [rounded(time) for time in ceilings]
    def shape_of(entry):
        return tuple(entry["name"].rsplit("/", 3)[1:3])

    places = {}  # A shape's entries stand together, whichever run they are of.
    for entry in whole["benchmarks"]:
        places.setdefault(shape_of(entry), len(places))
    whole["benchmarks"].sort(key=lambda entry: places[shape_of(entry)])
    whole["context"]["steal_ticks_after"] = runs[-1]["context"].get("steal_ticks_after", "unknown")
    return whole


def digits(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cell(text):
    return " ".join(str(text).split()).replace("|", "\\|")


def temperature_of(cells, temperature):
    """With the copies of the cache that cold steps went over, where these are too few to be surely cold."""
    few = {
        (entry["copies"], entry["copies_wanted"])
        for entry in cells
        if entry.get("copies", 0) < entry.get("copies_wanted", 0)
    }
    if temperature != "cold" or not few:
        return temperature
    return f"{temperature}* " + ", ".join(f"{copies:.0f} of {wanted:.0f}" for copies, wanted in sorted(few))


def is_loose(entry):
    """Whether the interval of the share of the ceiling is wider than 10 points."""
    low, high = entry.get("ceiling_share_low"), entry.get("ceiling_share_high")
    return is_number(low) and is_number(high) and high - low > 0.1


def tables(whole):
    """Markdown: a table for each set, a row for each shape and temperature."""
    backends, sets, reasons = [], {}, {}
    for entry in whole["benchmarks"]:
        backend, kind, shape, temperature = entry["name"].rsplit("/", 3)
        if backend not in backends:
            backends.append(backend)
        sets.setdefault(kind, {}).setdefault((shape, temperature), {})[backend] = entry
    lines, warm, loose, beyond = [], False, False, False
    for kind, rows in sets.items():
        lines += [f"## {kind}", "", "|shape| |ceiling, µs|" + "|".join(map(cell, backends)) + "|",
                  "|-|-|-:|" + "-:|" * len(backends)]
        for (shape, temperature), cells in rows.items():
            good = {b: e for b, e in cells.items() if not e.get("error_occurred")}
            fastest = min(good, key=lambda b: good[b]["real_time"], default=None)
            ceiling = digits(good[fastest]["ceiling_us"]) if good and good[fastest]["ceiling_us"] > 0 else ""
            marked = temperature_of(good.values(), temperature)
            warm = warm or marked != temperature
            line = f"|{cell(shape)}|{marked}|{ceiling}|"
            for backend in backends:
                entry = cells.get(backend)
                if entry is None:
                    text = ""
                elif entry.get("error_occurred"):
                    reason = " ".join(f"{backend}: {entry['error_message']}".split())
                    text = f"[{reasons.setdefault(reason, len(reasons) + 1)}]"
                else:
                    # As the bench's own table: more means that something else used the machine meanwhile.
                    share = "?" if entry["ceiling_share"] > 1.2 else f"{100 * entry['ceiling_share']:.0f} %"
                    if not entry["ceiling_us"] > 0:
                        share = "no ceiling"
                    elif share == "?":
                        beyond = True
                    elif is_loose(entry):
                        share, loose = f"~{share}", True
                    text = f"{digits(entry['real_time'])} · {share}"
                    if backend == fastest and len(backends) > 1:
                        text = f"**{text}**"
                line += cell(text) + "|"
            lines.append(line)
        lines.append("")
    if warm:
        lines += [
            "\\* So many copies of the cache only, of those that make it cold (five times the last cache): may be warm.",
            "",
        ]
    if loose:
        lines += ["~ The share differs from round to round: its interval is wider than 10 points.", ""]
    if beyond:
        lines += ["? More than 120 %: the ceiling is not right (spec/bench.md says how that comes about).", ""]
    if reasons:
        lines += ["No number:", ""]
        lines += [f"{number}. {reason}" for reason, number in reasons.items()] + [""]
    return lines


def ratios(whole):
    """Markdown: how many times as long as the first backend's step the others' take; nothing if there are no others."""
    first, others, rows = None, [], {}
    for entry in whole["benchmarks"]:
        backend, kind, shape, temperature = entry["name"].rsplit("/", 3)
        first = first or backend
        if backend not in (first, *others):
            others.append(backend)
        if not entry.get("error_occurred") and entry["real_time"] > 0:
            rows.setdefault((f"{kind}/{shape}", temperature), {})[backend] = entry["real_time"]
    rows = {row: times for row, times in rows.items() if first in times and len(times) > 1}
    if not rows:
        return []
    lines = [f"## How many times as long as {cell(first)}", "", "|shape| |" + "|".join(map(cell, others)) + "|",
             "|-|-|" + "-:|" * len(others)]
    for (shape, temperature), times in rows.items():
        texts = [f"{times[other] / times[first]:.3g}" if other in times else "" for other in others]
        lines.append(f"|{cell(shape)}|{temperature}|" + "|".join(texts) + "|")
    return [*lines, ""]


def page(name, whole, notes, certified, script):
    context = whole["context"]
    facts = dict(FACTS)
    if all(entry.get("ceiling_is_device") for entry in whole["benchmarks"] if not entry.get("error_occurred")):
        del facts["multiply_add"]  # The host's is nobody's ceiling.
    lines = [
        f"# Bench: {name}",
        "",
        "Medians in µs a step, and the ceiling's share (spec/bench.md): 100 % is what the machine can do. Bold: the fastest "
        f"of its row. Generated by `{script}`; [results.json](results.json) has all figures, and "
        "[report.html](report.html) draws them.",
        "",
        "|||",
        "|-|-|",
    ]
    lines += [f"|{title}|{cell(context[fact])}|" for fact, title in facts.items() if fact in context]
    ceilings = [fact for fact in sorted(context) if fact.startswith(("ceilings of ", "no ceiling of "))]
    lines += [f"|{cell(fact)}|{cell(context[fact])}|" for fact in ceilings]
    backends = [fact for fact in sorted(context) if fact.startswith("backend ")]
    lines += [f"|{cell(fact.removeprefix('backend '))}|{cell(context[fact])}|" for fact in backends]
    if not certified:
        lines += ["", "These binaries were not certified: the figures are an experiment's."]
    lines += ["", *tables(whole), *ratios(whole)]
    if notes:
        lines += ["## The same binaries, certified" + (" in the same run" if script == "ci/bench" else ""), ""] + [f"- {note}" for note in notes]
    return "\n".join(lines).rstrip() + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder; its name is the machine's")
    parser.add_argument("--note", action="append", default=[], help="a line about the binaries (repeat)")
    parser.add_argument("--not-certified", action="store_true", help="say so in README.md")
    parser.add_argument("--script", default="ci/bench", help="that generates README.md, as it says there")
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="files of attest bench --out")
    arguments = parser.parse_args()
    try:
        whole = merged([read(path) for path in arguments.runs])
        text = page(arguments.out.resolve().name, whole, arguments.note, not arguments.not_certified, arguments.script)
        arguments.out.mkdir(parents=True, exist_ok=True)
        results = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
        (arguments.out / "results.json").write_text(results, encoding="utf-8")
        (arguments.out / "README.md").write_text(text, encoding="utf-8")
    except (OSError, ValueError) as broken:
        print(f"summary.py: {broken}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
