#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A peer in Python beside others in `attest bench`: right ones get numbers, in every form of a step; a wrong one, and a
# problem that it does not do, get none. No time is asked for.
# Usage: peers_test.sh path/to/attest attest-backend-numpy.so attest-peer-wrong.so [attest-backend-OTHER.so...]
set -uo pipefail

attest=$(realpath "$1") numpy=$(realpath "$2") wrong=$(realpath "$3")
others=()
for other in "${@:4}"; do others+=("$(realpath "$other")"); done
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
  if ((code != wanted)); then
    printf 'FAILED: attest bench %s: exit code %s, wanted %s: %s\n' "$*" "$code" "$wanted" "$(cat out.txt err.txt)"
    failures=$((failures + 1))
  elif ! grep -qF -- "$part" out.txt err.txt; then
    printf 'FAILED: attest bench %s: "%s" is not in: %s\n' "$*" "$part" "$(cat out.txt err.txt)"
    failures=$((failures + 1))
  fi
}

heads='"query_heads": 4, "kv_heads": 2, "head_dim": 16'
cat >right.json <<JSON
{"shapes": [{"set": "decode", $heads, "context": [1, 40]},
            {"set": "decode", $heads, "context": 40, "dtype": "f16", "order": "heads"},
            {"set": "decode", $heads, "context": 40, "batch": 3, "lengths": "skewed"},
            {"set": "decode", $heads, "context": 40, "batch": 3, "order": "heads"},
            {"set": "mixed", $heads, "context": 40, "batch": 3, "chunk": 7},
            {"set": "prefill", $heads, "context": 300, "chunk": 270},
            {"set": "prefill", $heads, "context": 70, "dtype": "f16"},
            {"set": "prefill", $heads, "context": 24, "dtype": "f16"}]}
JSON
cat >refused.json <<JSON
{"shapes": [{"set": "decode", $heads, "context": 40, "dtype": "bf16"},
            {"set": "decode", $heads, "context": 40, "cache": "paged"}]}
JSON
quick=(--seconds 0.02 --rounds 6 --memory 0.02)

ends 0 'numpy' --backend "$numpy" --shapes right.json "${quick[@]}"
if grep -F 'no number' out.txt; then
  echo 'FAILED: the shapes above have no number'
  failures=$((failures + 1))
fi
ends 5 'unsupported: NumPy has no bf16' --backend "$numpy" --shapes refused.json "${quick[@]}"
ends 5 'unsupported: not implemented: a paged cache' --backend "$numpy" --shapes refused.json "${quick[@]}"
ends 1 'no number: wrong before the timed loop' --backend "$wrong" --shapes right.json "${quick[@]}"
ends 1 'no number: wrong before the timed loop' --backend "$numpy" --backend "$wrong" --shapes right.json "${quick[@]}"
ends 0 'wrong' --backend "$wrong,factor=1" --shapes right.json "${quick[@]}"
ends 2 'could not convert' --backend "$wrong,factor=much" --shapes right.json "${quick[@]}"
ends 2 'has no such option' --backend "$numpy,factor=1" --shapes right.json "${quick[@]}"
ends 0 'numpy' --backend "$numpy,threads=1" --shapes right.json "${quick[@]}"
# What a problem does not say is refused in the first step; later it is a failure.
refusal='no order in memory is good enough'
ends 5 "no number: unsupported: $refusal" --backend "$wrong,refuses=1" --shapes right.json "${quick[@]}"
ends 0 "no number: unsupported: $refusal" --backend "$numpy" --backend "$wrong,refuses=1" --shapes right.json \
  "${quick[@]}"
ends 1 "no number: a step failed: UNSUPPORTED after others were done: $refusal" --backend "$wrong,factor=1,refuses=2" \
  --shapes right.json "${quick[@]}"

# What a library cannot take it refuses, in a shape's first step; everything else gets a number.
sed 's/"dtype": "f16"}]}/"dtype": "bf16"}]}/' right.json >bf16.json
declare -A refuses=([onnxruntime]='GroupQueryAttention wants [1, 2, 48, 16] as its order in memory'
  [ggml]='with fewer than 64 queries ggml sums values of f16 in f16')
declare -A takes=([onnxruntime]='right.json --filter decode' [ggml]='bf16.json')
for other in "${others[@]}"; do
  name=$(basename "$other" .so)
  name=${name#attest-backend-}
  read -ra shapes <<<"${takes[$name]}"
  ends 0 "${refuses[$name]}" --backend "$other" "${quick[@]}" --shapes "${shapes[@]}"
  if ! grep -E '_heads$' -A 2 out.txt | grep -F ' cold' | grep -qvF 'no number'; then
    echo "FAILED: $name: no number where heads come first"
    failures=$((failures + 1))
  fi
  if [[ $name == ggml ]] && ! grep -E 'c70_f16$' -A 2 out.txt | grep -F ' cold' | grep -qvF 'no number'; then
    echo 'FAILED: ggml: no number for f16 in tiles'
    failures=$((failures + 1))
  fi
  if grep -F 'no number' out.txt | grep -vF 'no number: unsupported: '; then failures=$((failures + 1)); fi
done

[ "$failures" -eq 0 ] && echo 'all as wanted'
exit "$((failures > 0))"
