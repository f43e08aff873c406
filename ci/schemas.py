#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the suite's JSON data against spec/schema.

    ci/schemas.py                    the cases, the catalogue of bugs, the profiles, the goldens' manifest
    ci/schemas.py FILE.jsonl ...     and the records of runs, line by line
    ci/schemas.py FILE.json ...      and grades (`attest grade --format json`)

Prints one line for each problem, `file: place: what is wrong`, then what was checked.
Exit code 1: a problem, or nothing to check; 2: it cannot check at all.
"""
import json
import os
import pathlib
import sys

try:
    import jsonschema
except ImportError:
    # The first python3 on the PATH need not be the system's, for which ci/setup installs the module.
    system = "/usr/bin/python3"
    if os.path.exists(system) and not os.path.samefile(sys.executable, system):
        os.execv(system, [system, *sys.argv])
    print("ci/schemas.py: python3-jsonschema is missing: run ci/setup", file=sys.stderr)
    sys.exit(2)

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Each schema and the files that it describes, of which there must be one at least.
DATA = [
    ("case.schema.json", "cases/*/*.json"),
    ("bugs.schema.json", "cases/bugs.json"),
    ("profiles.schema.json", "cases/profiles.json"),
    ("manifest.schema.json", "golden/manifest.json"),
]
WITHOUT_SCHEMA = {"profiles.schema.json"}  # such data need only be well-formed and not empty
RECORDS = "record.schema.json"
GRADE = "grade.schema.json"


def no_duplicates(pairs):
    fields = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f'the field "{name}" occurs twice')
        fields[name] = value
    return fields


def no_constant(name):
    raise ValueError(f"{name} is not JSON")


def parse(text):
    """JSON as RFC 8259 has it: Python's reader alone takes NaN, and the last of two equal names."""
    return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)


class Schemas:
    """The validators of spec/schema, which may refer to one another by file name or $id."""

    def __init__(self, folder):
        self.folder = folder
        self.documents = {}
        for path in sorted(folder.glob("*.schema.json")):
            try:
                self.documents[path.name] = parse(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as broken:
                raise ValueError(f"{path.name}: {broken}") from broken
        self.validators = {}

    def validator(self, name):
        if name not in self.validators:
            schema = self.documents[name]
            cls = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
            cls.check_schema(schema)
            self.validators[name] = cls(schema, **self._references(cls, schema))
        return self.validators[name]

    def _references(self, cls, schema):
        names = {}
        for name, document in self.documents.items():
            names[name] = names[document.get("$id", name)] = document
        try:
            from referencing import Registry, jsonschema as dialects  # jsonschema 4.18 and newer
        except ImportError:
            return {"resolver": jsonschema.RefResolver(schema.get("$id", ""), schema, store=names)}
        dialect = dialects.DRAFT202012
        return {"registry": Registry().with_resources(
            (name, dialect.create_resource(document)) for name, document in names.items())}


def place(path):
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or "top level"


def short(message, limit=240):
    message = " ".join(message.split())
    return message if len(message) <= limit else f"{message[:limit * 2 // 3]} ... {message[-limit // 3:]}"


def problems(validator, value):
    for error in sorted(validator.iter_errors(value), key=lambda e: [str(part) for part in e.absolute_path]):
        # Of an anyOf or oneOf that nothing fits, the branch that fits best says what is wrong.
        error = jsonschema.exceptions.best_match([error])
        yield place(error.absolute_path), short(error.message)


class Check:
    def __init__(self):
        self.files = 0
        self.problems = 0

    def report(self, file, where, what):
        self.problems += 1
        try:
            file = file.resolve().relative_to(ROOT)
        except ValueError:
            pass
        print(f"{file}: {where}: {what}")

    def text(self, file):
        self.files += 1
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as unreadable:
            self.report(file, "top level", getattr(unreadable, "strerror", None) or str(unreadable))
            return None

    def document(self, file, validator):
        text = self.text(file)
        if text is None:
            return
        try:
            value = parse(text)
        except json.JSONDecodeError as broken:
            self.report(file, f"line {broken.lineno}, column {broken.colno}", broken.msg)
            return
        except ValueError as broken:
            self.report(file, "top level", broken)
            return
        if validator is None:
            if not isinstance(value, (dict, list)) or not value:
                self.report(file, "top level", "wanted an object or an array that is not empty")
            return
        for where, what in problems(validator, value):
            self.report(file, where, what)

    def lines(self, file, validator):
        text = self.text(file)
        if text is None or validator is None:
            return
        lines = text.split("\n")
        if lines.pop():
            self.report(file, f"line {len(lines) + 1}", "does not end with a newline: the file is cut off")
        if not lines:
            self.report(file, "top level", "has no records")
        for number, line in enumerate(lines, 1):
            try:
                value = parse(line)
            except json.JSONDecodeError as broken:
                self.report(file, f"line {number}, column {broken.colno}", broken.msg)
                continue
            except ValueError as broken:
                self.report(file, f"line {number}", broken)
                continue
            for where, what in problems(validator, value):
                self.report(file, f"line {number}, {where}", what)


def main(arguments):
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return 0
    try:
        schemas = Schemas(ROOT / "spec" / "schema")
    except ValueError as broken:
        print(f"spec/schema/{broken}")
        return 2
    check = Check()

    validators = {}
    for name in sorted({RECORDS, GRADE, *schemas.documents, *(name for name, _ in DATA)}):
        validators[name] = None
        try:
            validators[name] = schemas.validator(name)
        except KeyError:
            if name not in WITHOUT_SCHEMA:
                check.report(schemas.folder / name, "top level", "no such file")
        except jsonschema.SchemaError as broken:
            check.report(schemas.folder / name, place(broken.absolute_path), short(broken.message))

    for name, pattern in DATA:
        # cases/challenge has the format of the challenge's organisers; its own tests read it.
        files = sorted(file for file in ROOT.glob(pattern) if file.parent.name != "challenge")
        if not files:
            check.report(ROOT / pattern, "top level", "no such file")
        for file in files:
            check.document(file, validators[name])
    for argument in arguments:
        if argument.endswith(".json"):
            check.document(pathlib.Path(argument), validators[GRADE])
        else:
            check.lines(pathlib.Path(argument), validators[RECORDS])
    print(f"schemas: {check.files} files, {check.problems} problem{'' if check.problems == 1 else 's'}")
    return 1 if check.problems or not check.files else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
