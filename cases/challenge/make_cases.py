#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes test_cases.json, the visible case, and test_cases_hidden.json, the organisers' ten, in the challenge's format.

    make_cases.py            writes both
    make_cases.py --check    writes nothing; exit code 1 if a file is not what this script makes

The hidden file has no value: its placeholders are filled where it is graded, from a secret (`attest grade --secret`),
so it gives nothing away but shapes.
"""
import json
import pathlib
import random
import sys

HERE = pathlib.Path(__file__).resolve().parent
VISIBLE = "_PLACEHOLDER_USE_VISIBLE_TEST_"
GENERATED = "_TO_BE_GENERATED_"
FROM_FIRST = "_FROM_TEST_1_OUTPUT_"

# id, name, weight, d_model, heads, max_cache_len, seed, batch, tokens, tokens in the cache, causal, what it is there for
TABLE = [
    (1, "Basic attention without cache", 10, 16, 2, 128, 42, 1, 4, 0, True,
     "Four tokens, nothing before them: scale, mask, softmax, heads."),
    (2, "Attention with cached context", 15, 16, 2, 128, 43, 1, 1, 4, True,
     "One more token behind the cache that case 1 returned."),
    (3, "Multi-batch attention", 10, 32, 4, 128, 100, 4, 8, 0, True,
     "Four sequences at once."),
    (4, "No causal mask", 10, 16, 2, 128, 50, 1, 6, 0, False,
     "Every token sees every other."),
    (5, "Single head attention", 5, 32, 1, 128, 200, 2, 5, 0, True,
     "One head as wide as the model."),
    (6, "Many heads attention", 10, 64, 8, 256, 300, 1, 10, 0, True,
     "Eight heads."),
    (7, "Long sequence (64 tokens)", 10, 32, 4, 256, 400, 1, 64, 0, True,
     "A longer prompt."),
    (8, "Incremental generation (5 steps)", 15, 16, 2, 128, 500, 1, 5, 10, True,
     "Five tokens behind ten in the cache."),
    (9, "Large batch stress test", 5, 64, 4, 256, 600, 16, 12, 0, True,
     "Sixteen sequences of twelve tokens."),
    (10, "Single token generation", 10, 32, 4, 128, 700, 1, 1, 20, True,
     "One token behind twenty in the cache."),
]


def tensor(shape, values):
    return {"shape": shape, "values": values}


def numbers(shape, source):
    if not shape:
        return round(source.gauss(0, 1), 4)
    return [numbers(shape[1:], source) for _ in range(shape[0])]


def case(row, visible):
    number, name, weight, d_model, heads, max_cache, seed, batch, tokens, cached, causal, about = row
    source = random.Random(seed)
    shape = [batch, tokens, d_model]

    def values():
        if visible:
            return numbers(shape, source)
        return VISIBLE if number == 1 else GENERATED

    inputs = {field: tensor(shape, values()) for field in ("query", "key", "value")}
    inputs["cache"] = None
    if cached:
        before = FROM_FIRST if number == 2 else GENERATED
        inputs["cache"] = {field: tensor([batch, cached, d_model], before) for field in ("key", "value")}
    inputs["use_causal_mask"] = causal
    result = {
        "id": number,
        "name": name,
        "description": about,
        "weight": weight,
        "config": {"d_model": d_model, "num_heads": heads, "max_cache_len": max_cache, "dropout": 0.1},
        "seed": seed,
        "inputs": inputs,
    }
    if not visible:
        after = [batch, cached + tokens, d_model]
        result["expected"] = {
            "output": tensor(shape, GENERATED),
            "cache": {field: tensor(after, GENERATED) for field in ("key", "value")},
        }
    return result


def files():
    visible = {
        "description": "KV-cached multi-head attention: the visible case",
        "note": "What is expected is not given here. The model's weights come from the grader, and differ each time.",
        "test_case": case(TABLE[0], True),
    }
    hidden = {
        "description": "KV-cached multi-head attention: the hidden cases, for organisers",
        "note": "Placeholders are filled when a submission is graded, from a secret. Fresh shapes: attest pack make.",
        "test_cases": [case(row, False) for row in TABLE],
        "scoring": {"total_weight": 100, "test_1_4_weight": 45, "test_5_8_weight": 40, "test_9_10_weight": 15},
    }
    return {"test_cases.json": text(visible), "test_cases_hidden.json": text(hidden)}


def text(value, indent=""):
    """JSON with one line for each innermost array, so that a tensor can be read."""
    deeper = indent + "  "
    if isinstance(value, dict):
        inner = [f"{deeper}{json.dumps(name)}: {text(item, deeper)}" for name, item in value.items()]
        return "{\n" + ",\n".join(inner) + "\n" + indent + "}" + ("" if indent else "\n")
    if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
        return "[\n" + ",\n".join(deeper + text(item, deeper) for item in value) + "\n" + indent + "]"
    return json.dumps(value)


def differences():
    return [name for name, content in files().items()
            if not (HERE / name).is_file() or (HERE / name).read_text("utf-8") != content]


def main(arguments):
    if arguments not in ([], ["--check"]):
        print(__doc__.strip())
        return 0 if {"-h", "--help"} & set(arguments) else 2
    changed = differences()
    for name in changed:
        if arguments:
            print(f"{name}: is not what make_cases.py makes")
        else:
            (HERE / name).write_text(files()[name], "utf-8")
            print(f"{name}: written")
    return 1 if changed and arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
