#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch_gpu.py where there is no GPU: what it writes joins a run of `attest bench`, it refuses what SDPA does not take,
# and finds a wrong output. Of graphs and of cuDNN nothing is seen here. No time is asked for.
# Usage: torch_gpu_test.sh path/to/attest attest-backend-torch.so python3
set -uo pipefail

attest=$(realpath "$1") torch=$(realpath "$2") python=$(realpath -s "$3")
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0
failed() {
  echo "FAILED: $1"
  failures=$((failures + 1))
}

# ends code "part of stderr" arguments...
ends() {
  local wanted=$1 part=$2 code=0
  shift 2
  "$python" "$here/torch_gpu.py" "$@" 2>err.txt || code=$?
  if ((code != wanted)) || ! grep -qF -- "$part" err.txt; then
    failed "torch_gpu.py $*: exit code $code, wanted $wanted and \"$part\": $(cat err.txt)"
  fi
}

heads='"query_heads": 4, "kv_heads": 2, "head_dim": 16'
cat >shapes.json <<JSON
{"shapes": [{"set": "decode", $heads, "context": 40, "batch": 3},
            {"set": "decode", $heads, "context": 40, "dtype": "bf16"},
            {"set": "decode", $heads, "context": 40, "batch": 3, "lengths": "skewed"},
            {"set": "mixed", $heads, "context": 40, "batch": 3, "chunk": 7},
            {"set": "prefill", $heads, "context": 70, "dtype": "f16"}]}
JSON
"$attest" bench --backend "$torch" --shapes shapes.json --seconds 0.02 --rounds 6 --memory 0.02 --out bench.json \
  >bench.txt 2>&1 || failed "attest bench: $(cat bench.txt)"

ends 0 'torch_flash/prefill/b1_h4-2_d16_c70_f16/cold: ' bench.json --out peers.json --device cpu --seconds 0.05
for shape in decode/b3_h4-2_d16_c40_f32 decode/b1_h4-2_d16_c40_bf16 prefill/b1_h4-2_d16_c70_f16; do
  grep -qE "^torch_flash/$shape/cold: [0-9.]+ us, " err.txt || failed "no number for $shape: $(cat err.txt)"
done
for reason in 'd16_c40_f32_skewed/hot: unsupported: scaled_dot_product_attention has no sequences of different lengths' \
  'unsupported: this script does not measure mixed/' 'torch_cudnn/decode/b3_h4-2_d16_c40_f32/cold: unsupported: '; do
  grep -qF -- "$reason" err.txt || failed "\"$reason\" is not in: $(cat err.txt)"
done
"$python" "$here/../summary.py" --out together bench.json peers.json || failed 'summary.py'
grep -q '"ceilings": {' together/results.json || failed 'summary.py lost the ceilings'
"$python" - <<'PYTHON'
import json

bench = json.load(open("bench.json", encoding="utf-8"))
name, times = next(iter(bench["attest"]["ceilings"].items()))
times[0] = 0
json.dump(bench, open("broken.json", "w", encoding="utf-8"))
entry = next(e for e in bench["benchmarks"] if e["name"] == name)
times[0], entry["ceiling_share_low"], entry["ceiling_share_high"], entry["ceiling_share"] = 1, 0.2, 0.9, 0.5
json.dump(bench, open("loose.json", "w", encoding="utf-8"))
PYTHON
if "$python" "$here/../summary.py" --out broken broken.json 2>err.txt; then failed 'summary.py took a ceiling of 0'; fi
grep -qF 'wanted an array of numbers above 0' err.txt || failed "no reason: $(cat err.txt)"
"$python" "$here/../summary.py" --out loose loose.json || failed 'summary.py'
grep -qF ' · ~50 %' loose/README.md || failed "a loose share is not marked: $(cat loose/README.md)"
grep -q '^## How many times as long as torch$' together/README.md || failed "no ratios: $(cat together/README.md)"
"$attest" bench report together/results.json --out page.html >report.txt 2>&1 || failed "report: $(cat report.txt)"

ends 2 "got 'math', wanted flash or cudnn" bench.json --out x.json --paths math --device cpu
ends 2 'none.json' none.json --out x.json --device cpu
echo '{"benchmarks": []}' >empty.json
ends 2 'benchmarks: missing or empty' empty.json --out x.json --device cpu

"$python" - "$here" <<'PYTHON' || failed 'a wrong output is not found'
import sys

sys.path.insert(0, sys.argv[1])
import torch
import torch_gpu

for shape in ("decode/b2_h4-2_d16_c40_f32", "prefill/b1_h4-2_d16_c40_bf16"):
    shape = torch_gpu.shape_of(f"torch_flash/{shape}/cold")
    forms = torch_gpu.forms_of(torch, shape, torch.nn.attention.SDPBackend.FLASH_ATTENTION)
    for form in forms.values():
        step = torch_gpu.Step(torch, shape, "cpu", 1)
        step.play(form)
        torch_gpu.check(torch, shape, step)
        for spoilt in (step.output * 1.05, step.output.flip(1), step.output * float("nan")):
            step.output.copy_(spoilt)
            try:
                torch_gpu.check(torch, shape, step)
            except torch_gpu.Wrong:
                step.play(form)
                continue
            sys.exit(f"{shape}: not found")
PYTHON

[ "$failures" -eq 0 ] && echo 'all as wanted'
exit "$((failures > 0))"
