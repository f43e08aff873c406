#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Grades the challenge's corpus as a class, and compares every verdict with what corpus.json says.

    runner/grade_corpus_test.py --attest build/ci/bin/attest [--jobs N] [--only NAME ...] [--out DIR] [--table FILE.csv]

The class is cases/challenge/corpus (attacks, faults, honest controls), the repaired and the broken file, a file for each
of the eleven bugs, which must lose points and be named by the diagnosis, and one for each of the five decoys, which must
not. Prints a table with a line for each submission. Exit code 1: a verdict is another one; 2: nothing was decided; 77: this machine cannot grade.
"""
import argparse
import csv
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

CHALLENGE = pathlib.Path(__file__).resolve().parent.parent / "cases" / "challenge"
GROUPS = ["visible", "hidden_1_4", "hidden_5_8", "hidden_9_10"]
# Limits that honest submissions keep by far, so that attacks on time do not take long.
LIMITS = ["--timeout", "4", "--loading-timeout", "20", "--total-timeout", "60", "--diagnosis-seconds", "10"]


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


class Expected:
    """What must come out for one submission."""

    def __init__(self, name, path, threat, **wanted):
        self.name, self.path, self.threat, self.wanted = name, path, threat, wanted


def expectations():
    corpus = CHALLENGE / "corpus"
    for entry in load(corpus / "corpus.json")["submissions"]:
        path = (corpus / entry["file"]).resolve()
        name = path.stem + ".so" if path.suffix == ".c" else path.name
        yield Expected(name, path, entry["threat"], points=entry["points"], otherwise=entry["otherwise"],
                       cases=entry["cases"], interface=entry["interface"], never_shown=entry.get("never_shown"))
    places = {place["place"]: place for place in load(CHALLENGE / "places.json")["places"]}
    for kind in ("bugs", "decoys"):
        for path in sorted((CHALLENGE / kind).glob("*.py")):
            place = places[int(path.name[:2])]
            name = f"{kind[:-1]}_{path.name}"
            if kind == "decoys":
                yield Expected(name, path, "decoy", points=70, otherwise="pass", cases={}, interface=5)
                continue
            named = [place["catalogue"]] + ([place["shows_as"]] if "shows_as" in place else [])
            yield Expected(name, path, "one bug", points=[0, 69.99], fails=place["fails"], named=named)
    yield Expected("kv_attention.py", CHALLENGE / "kv_attention.py", "eleven bugs", points=[0, 10])


def build(source, library):
    """A submission in C as the library that it is handed in as."""
    command = ["cc", "-std=c11", "-O2", "-shared", "-fPIC", "-I", CHALLENGE.parents[1] / "spec", source, "-o", library,
               "-lm", "-lpthread"]
    subprocess.run([str(word) for word in command], check=True)


def is_one_of(status, wanted):
    return status in wanted.split("|")


def problems(grade, expected, shown):
    wanted = expected.wanted
    points, limits = grade["automatic"], wanted["points"]
    low, high = limits if isinstance(limits, list) else (limits, limits)
    if not low - 0.005 <= points <= high + 0.005:
        yield f"points: got {points}, wanted {limits}"
    statuses = {"visible" if not case["hidden"] else str(case["number"]): case["status"] for case in grade["cases"]}
    if len(statuses) != 11:
        yield f"got {len(statuses)} cases, wanted 11"
    if "otherwise" in wanted:
        for case, status in statuses.items():
            want = wanted["cases"].get(case, wanted["otherwise"])
            if not is_one_of(status, want):
                yield f"case {case}: got {status}, wanted {want}"
        interface = sum(check["points"] for check in grade["checks"])
        if abs(interface - wanted["interface"]) > 0.005:
            failed = [check["name"] for check in grade["checks"] if check["counts"] and check["status"] != "pass"]
            yield f"interface: got {interface:g} points, wanted {wanted['interface']} (failed: {', '.join(failed) or 'none'})"
    for case in wanted.get("fails", []):
        if statuses.get(str(case)) == "pass":
            yield f"case {case}: passes in spite of the bug"
    if "named" in wanted:
        diagnosis = grade.get("diagnosis", {})
        first = (diagnosis.get("explanations") or [{"bugs": []}])[0]
        named = {bug for together in first["bugs"] for bug in together}
        if diagnosis.get("verdict") != "explained" or not named & set(wanted["named"]):
            yield f"diagnosis: wanted {' or '.join(wanted['named'])}, got: {diagnosis.get('line', 'none')}"
    if wanted.get("never_shown") and wanted["never_shown"] in shown:
        yield f"a student is shown \"{wanted['never_shown']}\""


def table(rows):
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--attest", required=True, type=pathlib.Path)
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--only", nargs="*", default=[], help="submissions whose name contains one of these")
    parser.add_argument("--out", type=pathlib.Path, help="keep journal, table and reports here")
    parser.add_argument("--table", type=pathlib.Path, help="write the table there as CSV")
    parser.add_argument("--fresh", action="store_true", help="fresh cases from a new secret; verdicts are only shown")
    parser.add_argument("--insecure", action="store_true", help="as of attest grade; attacks may succeed")
    arguments = parser.parse_args()

    expected = [one for one in expectations()
                if not arguments.only or any(part in one.name for part in arguments.only)]
    if not expected:
        print("grade_corpus_test: no submission has such a name", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="attest-corpus-") as scratch:
        folder = pathlib.Path(scratch) / "class"
        folder.mkdir()
        for one in expected:
            if one.path.suffix == ".c":
                build(one.path, folder / one.name)
            else:
                shutil.copyfile(one.path, folder / one.name)
        out = arguments.out.resolve() if arguments.out else pathlib.Path(scratch) / "out"
        command = [arguments.attest.resolve(), "grade", "--batch", folder, "--out", out, "--jobs", arguments.jobs, *LIMITS]
        if arguments.insecure:
            command.append("--insecure")
        if not arguments.fresh:
            secret = pathlib.Path(scratch) / "secret"
            secret.write_bytes(b"the corpus of attest, not secret")
            command += ["--secret", secret, "--tests", CHALLENGE / "test_cases_hidden.json",
                        "--visible", CHALLENGE / "test_cases.json"]
        # Never in the source tree; and with --insecure submissions may write where they are.
        notes = [pathlib.Path(place) / "attest-corpus-note" for place in ("/tmp", "/var/tmp", "/dev/shm")]
        notes = [note for note in notes if not note.exists()]
        run = subprocess.run([str(word) for word in command], stderr=subprocess.PIPE, text=True, check=False, cwd=scratch)
        for note in notes:
            note.unlink(missing_ok=True)
        print(run.stderr, file=sys.stderr, end="")
        if run.returncode == 2:
            return 77 if "sandbox:" in run.stderr or "PyTorch" in run.stderr else 2
        journal = (out / "journal.jsonl").read_text(encoding="utf-8").splitlines()[1:]
        grades = {grade["submission"]: grade for grade in map(json.loads, journal)}
        students = {one.name: (out / "for_students" / f"{one.name}.txt") for one in expected}
        shown = {name: path.read_text(encoding="utf-8") if path.exists() else "" for name, path in students.items()}

    wrong = 0
    rows = [["submission", "threat", "points", *GROUPS, "interface", "verdict", "seconds", "loading", "processes", "diagnosis", ""]]
    for one in expected:
        grade = grades.get(one.name)
        if grade is None:
            wrong += 1
            rows.append([one.name, one.threat] + [""] * 11 + ["NOT GRADED"])
            continue
        found = list(problems(grade, one, shown[one.name])) if not arguments.fresh else []
        wrong += bool(found)
        diagnosis = grade.get("diagnosis", {})
        bugs = " or ".join("+".join(together) for together in diagnosis["explanations"][0]["bugs"]) \
            if diagnosis.get("verdict") == "explained" else diagnosis.get("verdict", "")
        rows.append([one.name, one.threat, f"{grade['automatic']:g}",
                     *(f"{group['points']:g}" for group in grade["groups"]),
                     f"{sum(check['points'] for check in grade['checks']):g}", grade["status"],
                     f"{grade['seconds']:.1f}", f"{grade['opening']:.1f}", grade["workers"], bugs,
                     "WRONG: " + "; ".join(found) if found else ""])
    print()
    table([[str(cell)[:40] if index == 1 else cell for index, cell in enumerate(row)] for row in rows])
    if arguments.table:
        with arguments.table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    print(f"\n{len(expected)} submissions, {wrong} with another verdict than expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
