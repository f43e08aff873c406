#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The command as a user meets it: wrong arguments, broken input, damaged goldens. Each bad input must be one line on
# stderr that names the place, with exit code 2. Usage: command_test.sh path/to/attest
set -uo pipefail

attest=$(realpath "$1")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

fail() {
  printf 'FAILED: %s\n' "$1"
  failures=$((failures + 1))
}

# refused "part of the line" arguments...: exit code 2, one line on stderr that has the part.
refused() {
  local part=$1
  shift
  "$attest" "$@" >out.txt 2>err.txt
  local code=$?
  [ "$code" -eq 2 ] || fail "attest $* : exit code $code, wanted 2"
  [ "$(wc -l <err.txt)" -eq 1 ] || fail "attest $* : $(wc -l <err.txt) lines on stderr, wanted 1: $(cat err.txt)"
  grep -qF -- "$part" err.txt || fail "attest $* : '$part' is not in: $(cat err.txt)"
}

# accepted code "part of the output" arguments...
accepted() {
  local wanted=$1 part=$2
  shift 2
  "$attest" "$@" >out.txt 2>&1
  local code=$?
  [ "$code" -eq "$wanted" ] || fail "attest $* : exit code $code, wanted $wanted: $(tail -n 3 out.txt)"
  grep -qF -- "$part" out.txt || fail "attest $* : '$part' is not in its output: $(tail -n 3 out.txt)"
}

# A suite of our own to damage: the real one, copied.
fresh_suite() {
  rm -rf suite
  mkdir -p suite/spec suite/golden
  cp -r "$root/cases" suite/cases
  cp -r "$root/golden/data" "$root/golden/manifest.json" suite/golden/
  cp "$root/spec/attention.md" suite/spec/
}

one_case=with_cache/$("$attest" cases list --filter 'with_cache/*' 2>/dev/null | head -n 1 | sed 's,^with_cache/\([^ ]*\) .*,\1,')

# Help teaches, and every subcommand has it.
accepted 0 "Exit codes" --help
accepted 0 "attest" --version
for command in certify diagnose "cases list" "cases show" "golden make" "golden check" report doctor; do
  # shellcheck disable=SC2086  # two words on purpose
  accepted 0 "Options" $command --help
done

# Wrong arguments.
refused "subcommand" 
refused '"bogus"' bogus
refused '"bogus"' cases bogus
refused "--nonsense" certify --backend template --nonsense
refused "--nonsense" certify --nonsense
refused "--timeout" certify --backend template --timeout nan
refused "--timeout" certify --backend template --timeout inf
refused "--backend" certify
refused "--python" certify --backend template --python mine.py:attention
refused "wanted FILE.py:FUNCTION" certify --python mine.py
refused "mine.py: no such file" certify --python mine.py:attention
touch empty.py
ATTEST_PYTHON=/nonexistent/python refused "ATTEST_PYTHON" certify --python empty.py:attention
ATTEST_PYTHON=/bin/false refused "ci/setup --grading" certify --python empty.py:attention
refused "no such case" certify --backend template --filter "no such case"
refused "wanted one of: core" certify --backend template --profile nonsense
refused "is no case" certify --backend template --case no_cache/nonsense
refused "wanted name=value" certify --backend template --option nonsense
refused "apart: --backend template --option threads=2 --option rows=AVX2" certify --backend template,threads=2,rows=AVX2
refused "option" certify --backend template --option nonsense=1 --case "$one_case"
refused "--jobs" certify --backend template --jobs 0
refused "is no suite" --suite /nonexistent cases list

# Backends that cannot be loaded.
refused '"nonsense"' certify --backend nonsense
refused "/nonexistent/mine.so" certify --backend /nonexistent/mine.so
printf 'no library' >broken.so
refused "broken.so" certify --backend ./broken.so
hostile=$(dirname "$attest")/../tests/backends
if [ -e "$hostile/attest-backend-broken-version.so" ]; then
  refused "ABI version" certify --backend "$hostile/attest-backend-broken-version.so"
  refused "attest_get_backend" certify --backend "$hostile/attest-backend-broken-symbol.so"

  # A backend whose device is not here: no case is run, none passes, none fails.
  away=(--backend "$hostile/attest-backend-hostile.so" --option fault=no_device)
  accepted 1 "no profile is claimed: no device: it was left at home" certify "${away[@]}" --out away
  grep -q '"pass"' away/records.jsonl && fail "a case passed without a device"
  accepted 1 "0 of 1 cases pass" certify "${away[@]}" --case "$one_case" --out away
  refused "no device: it was left at home" diagnose "${away[@]}"
fi

# A damaged suite: every place is named, and no results are written.
case_file=suite/cases/with_cache/append.json
fresh_suite
sed -i '0,/"recipe"/s//"recipy"/' "$case_file"
refused "append.json.cases[0].inputs" --suite suite certify --backend template
fresh_suite
sed -i '0,/"seed"/s//"sead"/' "$case_file"
refused 'unknown field "sead"' --suite suite certify --backend template
fresh_suite
truncate -s 100 "$case_file"
refused "append.json: parse error at line" --suite suite certify --backend template
fresh_suite
rm "suite/golden/data/$one_case.safetensors"
refused "$one_case.safetensors" --suite suite certify --backend template
fresh_suite
printf 'x' | dd of="suite/golden/data/$one_case.safetensors" bs=1 seek=2000 conv=notrunc status=none
refused "is corrupted" --suite suite certify --backend template
fresh_suite
sed -i '0,/"seed": [0-9]*/s//"seed": 987654/' "$case_file"
refused "belongs to another version" --suite suite certify --backend template
fresh_suite
sed -i '0,/"seed": \([0-9]*\)/s//"seed": \1, "seed": \1/' "$case_file"
refused 'append.json: the key "seed" is there twice' --suite suite certify --backend template
fresh_suite
printf '{"schema": "attest/goldens/1", "oracle": "none", "cases": 3}' >suite/golden/manifest.json
refused "manifest.json.cases: got 3" --suite suite cases show "$one_case"
fresh_suite
printf '{"schema": "attest/bugs/1", "bugs": {}}' >suite/cases/bugs.json
refused "bugs.json.bugs: got {}" --suite suite cases list
fresh_suite
rm suite/cases/stress/*.json
refused "that case is not in the suite" --suite suite certify --backend template
fresh_suite
rm suite/golden/manifest.json
refused "manifest.json" --suite suite certify --backend template
[ ! -e results ] || fail "a refused run has written results"

# A check says what of the goldens it has looked at.
all=$("$attest" cases list | grep -c '^[a-z0-9_]*/')
accepted 0 "$all of $all goldens match their case and their hash; nothing was computed again" golden check --quick
accepted 0 "1 of $all goldens match their case and their hash" golden check --quick --case "$one_case"
accepted 0 "1 of $all goldens were computed again and are the same, byte for byte" golden check --case "$one_case"
grep -q '^1 goldens, ' out.txt || fail "golden check: totals of more than $one_case: $(cat out.txt)"
# A wrong golden with a hash that fits: only who computes it again can tell.
fresh_suite
golden=suite/golden/data/$one_case.safetensors
before=$(sha256sum <"$golden")
values=$((8 + $(od -An -tu8 -N8 "$golden")))
printf 'x' | dd of="$golden" bs=1 seek=$values conv=notrunc status=none
after=$(sha256sum <"$golden")
sed -i "s/${before%% *}/${after%% *}/" suite/golden/manifest.json
accepted 0 "1 of $all goldens match" --suite suite golden check --quick --case "$one_case"
accepted 1 "1 of $all goldens were computed again; wrong: 1" --suite suite golden check --case "$one_case"

# A subset certifies nothing, and its reports can be made again from the records.
accepted 0 "subset" certify --backend template --case "$one_case" --out subset
for file in records.jsonl junit.xml report.html certificate.md; do
  [ -s "subset/$file" ] || fail "subset/$file was not written"
done
accepted 0 "subset" report subset/records.jsonl --out again
cmp -s subset/report.html again/report.html || fail "the report made again differs"

# Two runs into one folder would mix their records; an answer that nobody can read is none.
exec {lock}>>subset/records.jsonl
flock "$lock"
cp subset/records.jsonl before.jsonl
refused "subset: is in use by another run" certify --backend template --case "$one_case" --out subset
cmp -s before.jsonl subset/records.jsonl || fail "a run that was refused has changed the other's records"
exec {lock}>&-
for arguments in "certify --backend template --case $one_case --out full" "cases list" --help; do
  # shellcheck disable=SC2086  # words on purpose
  "$attest" $arguments >/dev/full 2>err.txt
  [ $? -eq 2 ] || fail "attest $arguments >/dev/full : the exit code is not 2"
  grep -q "standard output cannot be written" err.txt || fail "attest $arguments >/dev/full : $(cat err.txt)"
done
mkdir unwritable
ln -s /dev/full unwritable/records.jsonl
refused "unwritable/records.jsonl: cannot be written: No space" certify --backend template --case "$one_case" \
  --out unwritable

head -c 200 subset/records.jsonl >cut.jsonl
refused "cut.jsonl" report cut.jsonl
refused "cannot be read" report /nonexistent.jsonl

# A failing backend: exit code 1, the place, and the command to repeat it.
if [ -e "$hostile/attest-backend-hostile.so" ]; then
  accepted 1 "--option fault=wrong" certify --backend "$hostile/attest-backend-hostile.so" --option fault=wrong \
    --case "$one_case" --out wrong
  accepted 1 "allowed" report wrong/records.jsonl
  # The command in the report runs when it is pasted elsewhere.
  (cd "$(dirname "$hostile")/backends" && "$attest" certify --backend ./attest-backend-hostile.so --timeout 9 \
    --option fault=wrong --case "$one_case" --out "$work/wrong") >out.txt 2>&1
  again=$(sed -n 's/^  again   //p' out.txt)
  [[ $again == "$attest "*"certify --backend /"*" --timeout 9 --case $one_case" ]] || fail "run it again: $again"
  (cd / && eval "$again --out '$work/wrong'") >out.txt 2>&1
  [ $? -eq 1 ] || fail "run it again: $again: $(tail -n 3 out.txt)"
  ATTEST_PROGRAM="/a b/attest" accepted 1 "again   '/a b/attest' --suite $root certify" --suite "$root" certify \
    --backend "$hostile/attest-backend-hostile.so" --option fault=wrong --case "$one_case" --out wrong

  # A backend that hangs costs a few timeouts, not one a case; and what was run is written down.
  accepted 1 "stopped after 2 timeouts, with 2 of" certify --backend "$hostile/attest-backend-hostile.so" \
    --option fault=hang --filter 'with_cache/*' --timeout 0.2 --max-timeouts 2 --jobs 1 --out hung
  grep -q "NOT CERTIFIED .* incomplete: 2 of" out.txt || fail "too many timeouts: $(tail -n 1 out.txt)"
  [ "$(wc -l <hung/records.jsonl)" -eq 3 ] || fail "hung/records.jsonl should have a run and two cases"
fi

# Packs.
printf 'not a secret that anyone would use' >secret.bin
printf 'short' >short.bin
refused "--secret is required" pack make --out pack
refused "short.bin: has 5 bytes, wanted a secret of 16 or more" pack make --secret short.bin --out pack
refused "missing.bin" pack make --secret missing.bin --out pack
refused "wanted \"test_case\", as the file of the visible case has it" pack make --secret secret.bin --out pack \
  --visible "$root/cases/challenge/test_cases_hidden.json"
refused "is no pack: pack.json is not there" pack show .
[ ! -e pack ] || fail "a pack that was refused has left a folder"
accepted 0 "canonical cache" pack make --secret secret.bin --out pack
accepted 0 "challenge/hidden_10_own" pack show pack
refused "pack: is there already" pack make --secret secret.bin --out pack
printf 'x' >>pack/data/hidden_01_whole.safetensors
refused "hidden_01_whole.safetensors: has changed" pack show pack

# Nothing is printed in colour into a file.
if grep -q $'\033' out.txt; then fail "control codes in a file"; fi

if [ "$failures" -eq 0 ]; then printf 'command line: everything as it should be\n'; fi
exit $((failures > 0))
