#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `attest bench` as a user meets it: exit codes, files, wrong arguments. No time is asked for.
# Usage: command_test.sh path/to/attest attest-backend-lazy.so
set -uo pipefail

attest=$(realpath "$1") lazy=$(realpath "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

# ends code "part of the output" arguments...
ends() {
  local wanted=$1 part=$2
  shift 2
  "$attest" bench "$@" >out.txt 2>err.txt
  local code=$?
  if [[ ! $code =~ ^($wanted)$ ]]; then
    printf 'FAILED: attest bench %s: exit code %s, wanted %s: %s\n' "$*" "$code" "$wanted" "$(cat err.txt)"
    failures=$((failures + 1))
  elif ! grep -qF -- "$part" out.txt err.txt; then
    printf 'FAILED: attest bench %s: "%s" is not in: %s\n' "$*" "$part" "$(cat out.txt err.txt)"
    failures=$((failures + 1))
  fi
}

cat >shapes.json <<'JSON'
{"shapes": [{"set": "decode", "query_heads": 4, "kv_heads": 2, "head_dim": 16, "context": [32, 64]},
            {"set": "prefill", "query_heads": 2, "head_dim": 8, "context": 24}]}
JSON
quick=(--shapes shapes.json --seconds 0.02 --rounds 8 --memory 0.05)

ends 2 '--backend' --shapes decode
ends 2 'wanted decode, prefill' --backend template --shapes nothing
ends 2 'no shape of decode' --backend template --filter nothing
ends 2 'no such file' --backend ./nothing.so
ends 2 'wanted two' --ab --backend template
ends 0 'MiB of KV' --list
ends 0 'written: a.json' --backend template "${quick[@]}" --out a.json
ends 0 'written: b.json' --backend template "${quick[@]}" --out b.json --seed 2
ends 0 'written: a.html' report a.json
ends '0|1|3|4' 'decode/b1_h4-2_d16_c64_f32/cold' compare a.json b.json
ends 0 'SAME' compare a.json a.json
ends '0|1|3|4' 'cannot be told from' --aa --backend template "${quick[@]}" --filter prefill
ends 2 'none of attest bench' compare a.json <(echo '{"benchmarks": [{"name": "BM"}]}')
ends 2 'nothing.json' compare a.json nothing.json
ends 1 'no number' --backend "$(dirname "$attest")/../lib/attest/attest-bench-noop.so" "${quick[@]}"
ends '0|1' 'does nothing' overhead
ends 2 'wanted a number' --list --seconds nan
ends 2 'wanted a number' compare a.json b.json --threshold nan
ends 2 '--backend: does nothing for' -b template compare a.json b.json
ends 2 '--ab: does nothing for' --ab overhead
ends 2 'is a folder' --backend template "${quick[@]}" --out .
ends 2 'nothing/x.json' --backend template "${quick[@]}" --out /proc/nothing/x.json

# What a backend may do to the process that it runs in. The shapes before it are kept, with all backends' numbers.
failed() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}
two=(--backend template --backend "$lazy,plan=2,at=3,trick=")
for trick in exit quick_exit _exit hang; do
  message='exit() was called' limit=()
  if [[ $trick == hang ]]; then message='gave up after 4 s (--timeout)' limit=(--timeout 4); fi
  message+=' while this ran: decode/b1_h4-2_d16_c64_f32, validating lazy'
  rm -f kept.json
  ends 1 "$message" "${two[@]/%trick=/trick=$trick}" "${limit[@]}" "${quick[@]}" --filter decode --out kept.json
  grep -qF 'the shapes before it are in kept.json' err.txt || failed "$trick: kept.json is not named: $(cat err.txt)"
  "$attest" bench report kept.json >report.txt 2>&1 || failed "$trick: kept.json is broken: $(cat report.txt)"
  [[ $(grep -c '^decode/' report.txt) == 1 ]] || failed "$trick: wanted one shape: $(cat report.txt)"
  grep -qE '^  template cold' report.txt || failed "$trick: the other backend is missing: $(cat report.txt)"
done
ends 1 'no results are kept' --backend "$lazy,trick=exit" "${quick[@]}"
ends 1 'while this ran: the closing of backends' --backend "$lazy,trick=hang_close" --timeout 4 "${quick[@]}" \
  --filter decode
grep -qE '^  lazy +cold' out.txt || failed "hang_close: the table is lost: $(cat out.txt)"
ends 2 'is a folder' --backend ./ "${quick[@]}"
ends 2 '--timeout' --backend template "${quick[@]}" --timeout 0

# A signal while it hangs in its turn: memory for one copy of the cache means two steps before the first turn.
one_copy=(--shapes shapes.json --seconds 0.02 --rounds 8 --memory 0.00001 --filter c32)
# Waits until err.txt has a text, a minute at most.
said() {
  for ((i = 0; i < 600; ++i)); do
    grep -qF -- "$1" err.txt && break
    sleep 0.1
  done
}
# signalled code "part of the output" signal [signal]: the second one once the part is there. Two that wait are one.
signalled() {
  local wanted=$1 part=$2 code
  shift 2
  : >err.txt  # What the one before wrote is no sign that this one hangs.
  "$attest" bench --backend "$lazy,trick=hang,at=3" "${one_copy[@]}" >out.txt 2>err.txt &
  local pid=$!
  said 'lazy: hangs'
  {  # without the shell's own word about a crash
    kill -s "$1" $pid
    for signal in "${@:2}"; do
      said "$part"
      kill -s "$signal" $pid
    done
    wait $pid
    code=$?
  } 2>/dev/null
  [[ $code == "$wanted" ]] || failed "$*: exit code $code, wanted $wanted: $(cat err.txt)"
  grep -qF "$part" err.txt || failed "$*: \"$part\" is not in: $(cat err.txt)"
}
signalled $((128 + 6)) 'SIGABRT while this ran: decode/b1_h4-2_d16_c32_f32, round 1 of 8, lazy ' ABRT
signalled $((128 + 15)) 'once more: at once' TERM TERM

# UNSUPPORTED is a refusal in the first step of a plan, and no other.
ends 5 'unsupported: this step is not to its taste' --backend "$lazy,trick=refuse" "${quick[@]}" --filter c64
ends 0 'unsupported: this step is not to its taste' --backend "$lazy,trick=refuse" --backend template "${quick[@]}" \
  --filter c64
for step in 2 3; do
  ends 1 'a step failed: UNSUPPORTED after others were done' --backend "$lazy,trick=refuse,at=$step" "${one_copy[@]}"
done

# Memory for few copies only.
ends 0 'may be warm' report a.json
grep -qF 'may be warm' a.html || failed 'the page does not mark cold steps over too few copies'
grep -q '<svg' a.html || { echo 'FAILED: the page has no chart'; failures=$((failures + 1)); }

[ "$failures" -eq 0 ] && echo 'all as wanted'
exit "$((failures > 0))"
