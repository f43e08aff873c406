#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Renders source.py.in into the challenge's Python files.

    render.py            writes kv_attention.py, solution.py, bugs/*.py and decoys/*.py
    render.py --check    writes nothing; names the files that are not as the source says (exit code 1)

The source is Python with marked alternatives, a mark being a line that begins with "#@ ":

    #@ only challenge|solution|bug|decoy   what follows, up to the next `only` or `everywhere`, is for that kind of file
    #@ everywhere
    #@ place N                             place N of places.json: two alternatives
    #@ right
    #@ wrong                               or `decoy`: correct, but looks wrong
    #@ end

kv_attention.py has the second alternative of all places, solution.py the first, the others the second of one place.
"""
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
SECOND = {"bug": "wrong", "decoy": "decoy"}


class SourceError(Exception):
    pass


def places():
    return {place["place"]: place for place in json.loads((HERE / "places.json").read_text("utf-8"))["places"]}


def render(source, kind, second, table):
    """The file of this kind that has the second alternative of the places in `second`."""
    lines, chosen, place, keep, pending = [], set(), None, True, False
    for number, line in enumerate(source.split("\n"), 1):
        where = f"source.py.in:{number}"
        if not line.startswith("#@ "):
            if keep:
                if pending and line:
                    # Fixed files keep the numbers, so that they can be laid beside the challenge's.
                    lines.append(f"{line[:len(line) - len(line.lstrip())]}# Place {place}.")
                    pending = False
                lines.append(line)
            continue
        word, *rest = line[3:].split()
        if word == "only" and place is None:
            keep = rest == [kind]
        elif word == "everywhere" and place is None:
            keep = True
        elif word == "place" and place is None and keep:
            place = int(rest[0])
            if place not in table or place in chosen:
                raise SourceError(f"{where}: place {place} is not in places.json, or there twice")
            chosen.add(place)
            keep = False
        elif word in ("right", "wrong", "decoy") and place is not None:
            if word != "right" and word != SECOND[table[place]["kind"]]:
                raise SourceError(f"{where}: got {word}, but place {place} is a {table[place]['kind']}")
            keep = (word == "right") == (place not in second)
            pending = keep
        elif word == "end" and place is not None:
            place, keep, pending = None, True, False
        else:
            raise SourceError(f"{where}: {line} does not belong here")
    if place is not None or chosen != set(table):
        raise SourceError(f"source.py.in: missing: {sorted(set(table) - chosen) or f'the end of place {place}'}")
    text = "\n".join(lines)
    if len(second) == 1:
        (one,) = second
        for field in ("number", "name", "catalogue", "about"):
            text = text.replace(f"@{field}@", str(one if field == "number" else table[one].get(field, "")))
    return text


def rendered():
    """Every file's path and text."""
    table = places()
    source = (HERE / "source.py.in").read_text("utf-8")
    files = {
        "kv_attention.py": render(source, "challenge", set(table), table),
        "solution.py": render(source, "solution", set(), table),
    }
    for number, place in table.items():
        name = f"{place['kind']}s/{number:02}_{place['name']}.py"
        files[name] = render(source, place["kind"], {number}, table)
    return files


def differences():
    """Names of files that are missing, too many, or not as the source says."""
    files = rendered()
    there = {path.relative_to(HERE).as_posix() for folder in ("bugs", "decoys") for path in (HERE / folder).glob("*.py")}
    wrong = [name for name, text in files.items()
             if not (HERE / name).is_file() or (HERE / name).read_text("utf-8") != text]
    return sorted({*wrong, *(there - set(files))})


def main(arguments):
    if arguments not in ([], ["--check"]):
        print(__doc__.strip())
        return 0 if {"-h", "--help"} & set(arguments) else 2
    try:
        changed = differences()
    except (SourceError, OSError, ValueError, KeyError) as broken:
        print(f"render.py: {broken}", file=sys.stderr)
        return 2
    if arguments:
        for name in changed:
            print(f"{name}: is not as source.py.in says; run cases/challenge/render.py")
        return 1 if changed else 0
    files = rendered()
    for name in changed:
        path = HERE / name
        if name in files:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files[name], "utf-8")
        else:
            path.unlink()
        print(f"{name}: {'written' if name in files else 'removed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
