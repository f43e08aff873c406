#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`attest grade` as a grader meets it: wrong arguments, each format, a class that is killed on the way.

    runner/grade_command_test.py ATTEST [TEMPLATE.so]      prints what failed; exit code 1 if something did, 77 if
                                                           this machine cannot grade
"""
import csv
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHALLENGE = ROOT / "cases" / "challenge"
ATTEST = pathlib.Path(sys.argv[1]).resolve()
failures = 0


def check(condition, what):
    global failures
    if not condition:
        failures += 1
        print(f"FAILED: {what}")


def attest(*arguments):
    return subprocess.run([str(word) for word in (ATTEST, *arguments)], capture_output=True, text=True, check=False)


def nothing_left():
    """Of all runs so far, in their temporary folder; what was killed has a minute to go."""
    deadline = time.monotonic() + 60
    while os.listdir(os.environ["TMPDIR"]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not os.listdir(os.environ["TMPDIR"])


def refused(part, *arguments):
    run = attest("grade", *arguments)
    check(run.returncode == 2, f"{arguments}: exit code {run.returncode}, wanted 2")
    lines = run.stderr.splitlines()
    check(lines and part in lines[-1], f"{arguments}: '{part}' is not in: {run.stderr}")
    check(len(lines) == 1 and not run.stdout, f"{arguments}: wanted one line, got: {run.stderr}{run.stdout}")


def wrong_arguments(scratch, pack):
    check("Exit codes" in attest("grade", "--help").stdout, "--help has no exit codes")
    solution = CHALLENGE / "solution.py"
    refused("FILE or --batch")
    refused("exclude each other", solution, "--batch", scratch)
    refused("go together", "--batch", scratch)
    refused("no such file", scratch / "missing.py", "--pack", pack)
    refused("exclude each other", solution, "--pack", pack, "--secret", pack / "pack.json")
    refused("missing", solution, "--pack", scratch / "missing")
    refused("--format", solution, "--pack", pack, "--format", "yaml")
    refused("for a single submission", "--batch", scratch, "--out", scratch / "o", "--format", "json")
    (scratch / "short").write_bytes(b"short")
    refused("short", solution, "--secret", scratch / "short")
    (scratch / "manual.json").write_text('{"review": 31}')
    refused("manual.json.review", solution, "--pack", pack, "--manual", scratch / "manual.json")
    (scratch / "empty").mkdir()
    refused("no submission", "--batch", scratch / "empty", "--out", scratch / "o", "--pack", pack)
    (scratch / "unknown.json").write_text('{"submissions": {"nobody": {"review": 3}}}')
    (scratch / "one").mkdir()
    shutil.copy(solution, scratch / "one" / "a.py")
    refused("nobody", "--batch", scratch / "one", "--out", scratch / "o", "--pack", pack, "--manual",
            scratch / "unknown.json")
    (scratch / "notes.json").write_text('{"submissions": {"notes.txt": {"review": 3}}}')
    (scratch / "one" / "notes.txt").write_text("no submission")
    run = attest("grade", "--batch", scratch / "one", "--out", scratch / "o", "--pack", pack, "--manual",
                 scratch / "notes.json")
    check(run.returncode == 2 and "points for \"notes.txt\", which is no submission" in run.stderr,
          f"points for what is ignored: {run.stdout}{run.stderr}")
    check(not (scratch / "o").exists(), "a refused batch leaves a folder")


def formats(scratch, pack, template):
    solution = CHALLENGE / "solution.py"
    wrong = CHALLENGE / "bugs" / "06_causal_strict.py"
    (scratch / "manual.json").write_text('{"review": 25, "bonus": 4.5, "comment": "clear", "grader": "me"}')
    run = attest("grade", solution, "--pack", pack)
    check(run.returncode == 0 and "70 / 70" in run.stdout, f"solution.py: {run.stdout}{run.stderr}")

    run = attest("grade", wrong, "--pack", pack, "--format", "json", "--manual", scratch / "manual.json", "-o",
                 scratch / "grade.json")
    check(run.returncode == 1 and not run.stdout, f"json: exit code {run.returncode}: {run.stdout}{run.stderr}")
    grade = json.loads((scratch / "grade.json").read_text())
    check(grade["diagnosis"]["explanations"][0]["bugs"] == [["causal-strict"]], f"diagnosis: {grade['diagnosis']['line']}")
    check(abs(grade["total"] - grade["automatic"] - 29.5) < 1e-6, "the total is not automatic points, review and bonus")
    schemas = subprocess.run([str(ROOT / "ci" / "schemas.py"), str(scratch / "grade.json")], capture_output=True, text=True,
                             check=False)
    check(schemas.returncode in (0, 2), f"the grade does not fit its schema: {schemas.stdout}")

    run = attest("grade", wrong, "--pack", pack, "--format", "gradescope")
    report = json.loads(run.stdout)
    check(abs(sum(test["max_score"] for test in report["tests"]) - 70) < 0.01, "gradescope: not 70 points")
    hidden = [test for test in report["tests"] if test["name"].startswith("Hidden")]
    check(len(hidden) == 10, f"gradescope: {len(hidden)} hidden cases")
    check(all("got" not in test["output"] and "step" not in test["output"] for test in hidden), "gradescope tells")

    run = attest("grade", wrong, "--pack", pack, "--format", "junit", "--verbose")
    suites = xml.etree.ElementTree.fromstring(run.stdout)
    check(int(suites.get("failures")) > 0 and len(suites) == 4, "junit: wanted four suites and failures")

    if template:
        run = attest("grade", template, "--pack", pack)
        check(run.returncode == 0 and "70 / 70" in run.stdout, f"the template: {run.stdout}{run.stderr}")


def classes(scratch, pack):
    """Killed twice, each grade is there once and is the one of a run that was not."""
    folder = scratch / "class"
    for student, source in {"anna": "solution.py", "bert": "bugs/01_scale_by_d.py", "dora": "kv_attention.py",
                            "carl": "decoys/14_slow_loop.py", "emil": "corpus/fault_syntax_error.py"}.items():
        (folder / student).mkdir(parents=True)
        shutil.copy(CHALLENGE / source, folder / student / "kv_attention.py")
    (folder / "nobody").mkdir()
    (folder / "link.py").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.py")
    command = [str(word) for word in (ATTEST, "grade", "--batch", folder, "--out", scratch / "out", "--pack", pack, "-j", 2)]
    journal = scratch / "out" / "journal.jsonl"
    for wanted in (3, 6):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while run.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") > wanted:
                break
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
        with (scratch / "out" / "lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # its processes end with it, and with them their hold
        with journal.open("ab") as file:
            file.write(b'{"half a line')
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    check(run.returncode == 0, f"the batch: exit code {run.returncode}: {run.stdout}{run.stderr}")
    check("(before)" in run.stdout, f"nothing was resumed: {run.stdout}")
    grades = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    names = sorted(grade["submission"] for grade in grades)
    check(names == ["anna", "bert", "carl", "dora", "emil", "link.py", "nobody", "pipe.py"], f"the journal has {names}")
    layers = {grade["submission"]: [layer["name"] for layer in grade["layers"] if layer["active"]] for grade in grades}
    check(len(layers["anna"]) == 7 and layers["emil"] == layers["anna"], f"layers of what was run: {layers}")
    check(layers["nobody"] == [], f"layers of what was not run: {layers['nobody']}")
    rows = {row["submission"]: row for row in csv.DictReader((scratch / "out" / "grades.csv").open(newline=""))}
    check(len(rows) == 8, f"the table has {len(rows)} lines")
    for student, points in {"anna": "70", "carl": "70", "emil": "0", "nobody": "0", "link.py": "0", "pipe.py": "0"}.items():
        check(rows.get(student, {}).get("automatic") == points, f"{student}: {rows.get(student)}, wanted {points} points")
    check("symbolic link" in rows["link.py"]["refused"], "link.py is not told apart")
    check("passwd" not in (scratch / "out" / "for_students" / "link.py.txt").read_text(), "a link's target is shown")
    for where in ("for_students", "for_graders"):
        check(len(list((scratch / "out" / where).iterdir())) == 8, f"{where} has not 8 reports")
    before = journal.read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    check(again.stdout.count("(before)") == 8 and journal.read_bytes() == before, "a finished batch is graded again")
    other = attest("grade", *command[2:], "--weights")
    check(other.returncode == 2 and "other terms" in other.stderr, f"other terms: {other.stderr}")
    for part in ("Python 3.", "PyTorch ", "sandbox of bubblewrap+seccomp+"):
        check(part in other.stderr, f"'{part}' is not among the terms: {other.stderr}")
    first, *rest = before.decode().splitlines(keepends=True)
    journal.write_text(first.replace("PyTorch ", "PyTorch 0.") + "".join(rest))
    moved = subprocess.run(command, capture_output=True, text=True, check=False)
    check(moved.returncode == 2 and "other terms" in moved.stderr and "PyTorch 0." in moved.stderr,
          f"another PyTorch: {moved.stdout}{moved.stderr}")


def killed(pack):
    """By Ctrl-C, which all of a terminal's processes hear, and by a signal that nobody can."""
    for number, kill in {signal.SIGINT: os.killpg, signal.SIGKILL: os.kill}.items():
        with subprocess.Popen([str(word) for word in (ATTEST, "grade", CHALLENGE / "solution.py", "--pack", pack)],
                              stdout=subprocess.DEVNULL, start_new_session=True,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as run:
            staged = pathlib.Path(os.environ["TMPDIR"]).glob
            deadline = time.monotonic() + 120
            while run.poll() is None and time.monotonic() < deadline and not list(staged("*/kv_attention.py")):
                time.sleep(0.001)
            check(list(staged("*/kv_attention.py")), f"{number.name}: there was no copy of the submission")
            kill(run.pid, number)
        check(run.returncode == -number, f"{number.name}: exit code {run.returncode}")
        check(nothing_left(), f"{number.name}: the temporary folder stays behind")


def odd_entries(scratch, pack):
    """No entry of a class stops it or vanishes; what is for graders is theirs. Nothing here comes to be run."""
    folder = scratch / "odd"
    out = folder / "out"
    for student in ("nobody", "a\nb", "a\\nb", "out", "out/for_graders"):
        (folder / student).mkdir(parents=True)
    for path in (out, out / "for_graders"):
        path.chmod(0o755)
    (folder / "z.py").symlink_to("z.py")
    (folder / "dora").symlink_to(scratch, target_is_directory=True)
    for name in ("anna.ipynb", "notes.PY", ".hidden"):
        (folder / name).write_text("")
    for when in ("first", "second"):
        run = attest("grade", "--batch", folder, "--out", out, "--pack", pack)
        check(run.returncode == 0, f"odd entries, {when}: exit code {run.returncode}: {run.stdout}{run.stderr}")
        rows = {row["submission"]: row for row in csv.DictReader((out / "grades.csv").open(newline=""))}
        hashed = [name for name in rows if name.startswith("a\\nb-")]
        check(len(hashed) == 1 and sorted(set(rows) - set(hashed)) == ["a\\nb", "dora", "nobody", "z.py"],
              f"odd entries, {when}: the table has {sorted(rows)}")
        check(all(row["automatic"] == "0" and row["refused"] for row in rows.values()), f"odd entries: {rows}")
        for link in ("dora", "z.py"):
            row = rows.get(link, {})
            check("symbolic link" in row.get("refused", ""), f"{link} is not told apart: {row}")
        for name in ("anna.ipynb", "notes.PY"):
            check(run.stdout.count(name) == 1 and run.stderr.count(name) == 1, f"{name}: {run.stdout}{run.stderr}")
        check("out: ignored" in run.stdout and ".hidden" not in run.stdout + run.stderr, f"odd entries: {run.stdout}")
        modes = [oct((out / name).stat().st_mode & 0o777) for name in ("for_graders", "grades.csv")]
        check(modes == ["0o700", "0o600"], f"for graders, {when}: {modes}")
    run = attest("grade", "--batch", folder, "--out", folder, "--pack", pack)
    check(run.returncode == 2 and "another folder" in run.stderr, f"--out is the class: {run.stdout}{run.stderr}")
    check(not (folder / "for_graders").exists(), "a refused batch leaves what looks like a student's folder")


def main():
    template = pathlib.Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory(prefix="attest-grade-") as folder:
        scratch = pathlib.Path(folder)
        (scratch / "tmp").mkdir()
        os.environ["TMPDIR"] = str(scratch / "tmp")
        (scratch / "secret").write_bytes(os.urandom(32))
        pack = scratch / "pack"
        made = attest("pack", "make", "--secret", scratch / "secret", "--out", pack)
        check(made.returncode == 0, f"pack make: {made.stderr}")
        if failures:
            return 1
        first = attest("grade", CHALLENGE / "solution.py", "--pack", pack)
        if first.returncode == 2 and ("sandbox:" in first.stderr or "PyTorch" in first.stderr):
            print(f"grade_command_test: skipped, this machine cannot grade: {first.stderr}")
            return 77
        wrong_arguments(scratch, pack)
        formats(scratch, pack, template)
        odd_entries(scratch, pack)
        killed(pack)
        classes(scratch, pack)
        check(nothing_left(), "a temporary folder stays behind")
    print("grade_command_test: " + (f"{failures} failures" if failures else "passed"))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
