#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `attest bench` as a user meets it: exit codes, files, wrong arguments. No time is asked for.
# Usage: command_test.sh path/to/attest
set -uo pipefail

attest=$(realpath "$1")
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
  elif ! cat out.txt err.txt | grep -qF -- "$part"; then
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
grep -q '<svg' a.html || { echo 'FAILED: the page has no chart'; failures=$((failures + 1)); }

[ "$failures" -eq 0 ] && echo 'all as wanted'
exit "$((failures > 0))"
