#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ci/device with everything that takes a GPU played by scripts: which phases run, what of them is kept, what reaches the
# record, what is refused. The bench is real, on a backend that stands for a device.
# Usage: device_command_test.sh SOURCE_DIR BINARY_DIR
set -uo pipefail

source_dir=$(realpath "$1") binary_dir=$(realpath "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

# A repository of links, so that the real one's build and results are left alone.
mkdir -p "$work/repository/build/fake/bin" "$work/repository/build/fake/lib/attest/backends" "$work/repository/bench" "$work/bin"
cd "$work/repository" || exit 1
for name in spec cases golden runner backends CMakeLists.txt; do ln -s "$source_dir/$name" "$name"; done
cp -r "$source_dir/ci" ci  # No link: it looks for the repository around itself.
cp "$source_dir/bench/summary.py" bench/
cat >bench/shapes_gpu.json <<'JSON'
{"shapes": [{"set": "decode", "query_heads": 4, "kv_heads": 2, "head_dim": 16, "context": [32, 64]}]}
JSON
# shellcheck disable=SC2016 # the scripts expand it themselves
for name in attest-worker attest-cuda-graph; do
  printf '#!/bin/sh\n%s\n' '[ ! -e "$FAULTS/graph" ] || exit 1; echo "replays are the same"' >"build/fake/bin/$name"
done
touch build/fake/lib/attest/backends/attest-backend-cuda.so
cat >build/fake/bin/attest <<SCRIPT
#!/usr/bin/env bash
arguments=()
for argument in "\$@"; do arguments+=("\${argument/#cuda/$binary_dir/tests/backends/attest-backend-detached.so}"); done
for argument in "\${!arguments[@]}"; do arguments[argument]=\${arguments[argument]/,overlap=no/}; done
case \$1 in
  certify)
    [[ ! -e \$FAULTS/certify ]] || { echo "attest: it fell over" && exit 2; }
    while (("\$#" > 1)) && [[ \$1 != --out ]]; do shift; done
    mkdir -p "\$2" && touch "\$2/certificate.md" "\$2/records.jsonl"
    echo "CERTIFIED  cuda"
    ;;
  bench)
    [[ ! -e \$FAULTS/bench || " \$* " == *' --list '* ]] || exit 5
    exec "$binary_dir/bin/attest" "\${arguments[@]}"
    ;;
  *) exec "$binary_dir/bin/attest" "\${arguments[@]}" ;;
esac
SCRIPT
cat >"$work/bin/nvidia-smi" <<'SCRIPT'
#!/bin/sh
echo "${GPU:-NVIDIA Fake 1}"
SCRIPT
cat >"$work/bin/compute-sanitizer" <<'SCRIPT'
#!/usr/bin/env bash
while [[ $1 == --* ]]; do
  if [[ $1 == --log-file ]]; then log=${2//%p/1}; fi
  shift 2
done
echo "========= ERROR SUMMARY: ${ERRORS:-0} errors" >"$log"
"$@"
SCRIPT
chmod +x build/fake/bin/* "$work"/bin/*
export PATH=$work/bin:$PATH ATTEST_PRESET=fake FAULTS=$work/faults ATTEST_SUITE=$source_dir
mkdir "$FAULTS"
quick=(-- --seconds 0.02 --rounds 6 --memory 0.05)

# ends code "part of what is said" arguments...
ends() {
  local wanted=$1 part=$2 code=0
  shift 2
  ci/device "$@" >"$work/out.txt" 2>&1 || code=$?
  if ((code != wanted)) || ! grep -qF -- "$part" "$work/out.txt"; then
    printf 'FAILED: ci/device %s: exit code %s, wanted %s and "%s": %s\n' "$*" "$code" "$wanted" "$part" "$(<"$work/out.txt")"
    failures=$((failures + 1))
  fi
}
holds() {  # what condition...
  local what=$1
  shift
  if ! "$@"; then
    printf 'FAILED: %s\n' "$what"
    failures=$((failures + 1))
  fi
}
# shellcheck disable=SC2317 # called by holds
lacks() { ! grep -q -- "$@"; }
# shellcheck disable=SC2317
absent() { [[ ! -e $1 ]]; }

ends 2 'got "certfy"' --only certfy
ends 2 'wanted some of' --only ,
ends 2 'wanted --out too' --filter b1_
ends 2 'before --' -- --filter b1_
echo mine >"$work/mine"
ends 2 'has other things' --work "$work/mine"
holds 'a file is no folder to be removed' grep -q mine "$work/mine"

runs=$work/repository/build/device-runs record=$work/repository/bench/results/nvidia-fake-1
ends 0 'no record without phase measure' --only 'doctor certify'
touch "$FAULTS/graph"
ends 1 'ERROR SUMMARY: 0 errors' --only graph,sanitizer
rm "$FAULTS/graph"
ends 0 'replays are the same' --only graph,sanitizer
ERRORS=3 ends 1 'ERROR SUMMARY: 3 errors' --only sanitizer
ends 0 'sanitizer' --only sanitizer
ends 0 'written: ' --only measure --out "$work/part" --filter c32 "${quick[@]}"
holds 'a part is written where it was asked for' test -f "$work/part/README.md"
ends 0 'no record: measured with --filter' --only doctor
holds 'a part is no record' absent "$record"
ends 0 'written: bench/results/nvidia-fake-1' --only measure "${quick[@]}"
holds 'the record has what phases before have found' grep -q 'replays are the same' "$record/README.md"
holds 'and says what was not run' grep -q 'not run: peers' "$record/README.md"
holds 'and has the certificate' test -f "$record/certificate.md"

touch "$FAULTS/certify"
ends 2 'attest certify failed' --only certify
rm "$FAULTS/certify"
ends 0 'written: ' --only doctor
holds 'of a phase that failed nothing is kept' absent "$record/certificate.md"
holds 'nor said' lacks 'CERTIFIED' "$record/README.md"
touch "$FAULTS/bench"
ends 2 'no results' --only measure "${quick[@]}"
rm "$FAULTS/bench"
ends 0 'no record without phase measure' --only certify

ends 0 'written: ' --only measure,peers "${quick[@]}"
ends 0 'written: ' --only measure "${quick[@]}"
holds 'with a measurement begins what stands beside it' grep -q '^- not run: .*peers' "$record/README.md"
GPU='NVIDIA Fake 2' ends 2 'of another build or GPU' --only certify
ends 0 'written: ' --no-sanitizer "${quick[@]}"
holds 'all phases begin anew' lacks '^- not run: ' "$record/README.md"
holds 'files of phases are there' test -f "$runs/bench.json"

exit $((failures > 0))
