#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a submission to the challenge against a file of cases, by `attest grade`.

    python validator.py --file kv_attention.py
    python validator.py --file kv_attention.py --verbose
    python validator.py --file kv_attention.py --test-file test_cases_hidden.json

The model's weights are new in each run, and so is whatever the file's placeholders stand for. Of a hidden case it says
its category and whether it passed, no more. `attest` is the one in $ATTEST, or of this source tree's build, or on the
PATH. The submission runs in attest's sandbox; where this machine has none, --insecure lets you run code that you trust.

Exit code: 0 every case and check passed, 1 some failed, 2 nothing could be tried.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
LINE = "=" * 60


class CannotTry(Exception):
    pass


def find_attest():
    given = os.environ.get("ATTEST")
    if given:
        if not os.access(given, os.X_OK):
            raise CannotTry(f"$ATTEST: got {given}, which is no program")
        return given
    # In the source tree the newest build; in an installation share/attest/cases/challenge lies beside bin.
    built = [path for path in HERE.parent.parent.glob("build/*/bin/attest") if os.access(path, os.X_OK)]
    if built:
        return str(max(built, key=lambda path: path.stat().st_mtime))
    installed = HERE.parents[3] / "bin" / "attest"
    found = str(installed) if os.access(installed, os.X_OK) else shutil.which("attest")
    if not found:
        raise CannotTry("attest is not built: run ci/attest --version, or name the program in $ATTEST")
    return found


def read_cases(path):
    """The file's cases, and whether they are hidden ones."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CannotTry(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if isinstance(content, dict) and isinstance(content.get("test_case"), dict):
        return [content["test_case"]], False
    if isinstance(content, dict) and isinstance(content.get("test_cases"), list):
        return content["test_cases"], True
    raise CannotTry(f'{path}: got no "test_case" and no "test_cases"')


def grade(file, tests, hidden, insecure):
    command = [find_attest(), "grade", str(file), "--format", "json", "--no-diagnosis"]
    command += ["--tests", str(tests)] if hidden else ["--visible", str(tests), "--visible-only"]
    if insecure:
        command.append("--insecure")
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        result = json.loads(ran.stdout) if ran.returncode in (0, 1) else None
    except (OSError, ValueError) as error:
        raise CannotTry(f"{command[0]}: {error}") from None
    if not isinstance(result, dict):
        raise CannotTry(ran.stderr.strip() or f"{command[0]}: exit code {ran.returncode}")
    return result


def shapes(case):
    """Those of a result that is right."""
    batch, tokens, d_model = case["inputs"]["query"]["shape"]
    before = case["inputs"].get("cache")
    cache = [batch, tokens + (before["key"]["shape"][1] if before else 0), d_model]
    return {"output_shape": [batch, tokens, d_model], "cache_key_shape": cache, "cache_value_shape": cache}


def first_reason(graded):
    return next((part["reason"] for part in graded["parts"] if part["reason"]), graded["status"])


def report(result, cases, hidden, verbose):
    """Prints a line for each case; whether all passed."""
    graded = [one for one in result["cases"] if one["hidden"] == hidden]
    passed = 0
    for one in graded:
        good = one["status"] == "pass"
        passed += good
        name = one["category"] if hidden else one["name"]
        said = "Passed" if good else "Failed" if hidden else f"Failed: {first_reason(one)}"
        print(f"{'✓' if good else '✗'} Test #{one['number']} '{name}' - {said}")
        if verbose and good and not hidden:
            print(f"  Results: {shapes(next(case for case in cases if case['id'] == one['number']))}")
    checks = [check for check in result["checks"] if check["counts"]]
    bad = [check for check in checks if check["status"] != "pass"]
    for check in bad:
        print(f"✗ Interface: {check['about']} - Failed: {check['reason']}")
    if verbose:
        for check in checks:
            if check not in bad:
                print(f"✓ Interface: {check['about']} - Passed")
    print(LINE)
    print(f"Results: {passed}/{len(graded)} tests passed")
    if checks:
        print(f"Interface: {len(checks) - len(bad)}/{len(checks)} checks passed")
    return bool(graded) and passed == len(graded) and not bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=pathlib.Path, default=pathlib.Path("kv_attention.py"), help="the submission")
    parser.add_argument("--verbose", action="store_true", help="shapes of visible results, and what was checked")
    parser.add_argument("--test-file", type=pathlib.Path, default=HERE / "test_cases.json", help="the cases")
    parser.add_argument("--insecure", action="store_true", help="run it even if this machine cannot confine it")
    arguments = parser.parse_args()

    print(LINE)
    print("KV-Cached Multi-Head Attention - Validator")
    print(LINE)
    try:
        if not arguments.file.is_file():
            raise CannotTry(f"{arguments.file}: there is no such file")
        cases, hidden = read_cases(arguments.test_file)
        result = grade(arguments.file, arguments.test_file, hidden, arguments.insecure)
        missing = [layer["name"] for layer in result["layers"] if not layer["active"]]
        if missing:
            print(f"! Not confined by: {', '.join(missing)}")
        if result["refused"]:
            print(f"✗ Failed to load module from {arguments.file}: {result['refused']}")
            return 1
        print(f"✓ Successfully loaded module from {arguments.file}")
        print(f"✓ Loaded {len(cases)} test case(s) from {arguments.test_file}")
        print()
        print(f"Running {len(cases)} test case(s)...")
        return 0 if report(result, cases, hidden, arguments.verbose) else 1
    except CannotTry as reason:
        print(f"✗ {reason}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
