# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the scripts of ci/ share; sourced by them, after `set -euo pipefail`. Offers
#   $root $jobs                  the repository, and how many things to do at once
#   $peers_prefix ${peers[@]}    the virtual environment of the bench's peers, and their backends
#   say, die                     one line for a person (on stderr: stdout belongs to the command that is run)
#   phase NAME COMMAND…, times   time a command; all times so far on one line
#   build PRESET [TARGET…]       configure and build build/PRESET, silent when there is nothing to do
#   python_with MODULE           a Python 3 that has the module

root=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)
jobs=${ATTEST_JOBS:-$(nproc)}
peers_prefix=$root/build/peers
peers=(torch onnxruntime ggml numpy)

say() { printf '%s\n' "$*" >&2; }

# A script that cannot do its work exits with 2: 1 is left to "it ran, and something failed".
die() {
  say "$@"
  exit 2
}

usage() {  # prints the comment at the head of the script that sourced this file
  awk 'NR > 1 && !/^#/ { exit } NR > 1 && !/SPDX-/ { sub(/^# ?/, ""); print }' "$0"
  exit 0
}

# ---------------------------------------------------------------------------------------------------------- time

phase_times=()

phase() {
  # Not `status`: what runs here would set this one instead of its script's.
  local name=$1 start=${EPOCHREALTIME/[.,]/} phase_status=0
  shift
  "$@" || phase_status=$?
  local tenths=$(((${EPOCHREALTIME/[.,]/} - start + 50000) / 100000))
  phase_times+=("$name $((tenths / 10)).$((tenths % 10)) s")
  return "$phase_status"
}

times() {
  local line
  printf -v line '%s, ' "${phase_times[@]}"
  say "time: ${line%, }"
}

# --------------------------------------------------------------------------------------------------------- build

# What the configuration depends on besides the CMake files, which ninja watches itself.
configuration() {
  printf '%s\n' "$root"
  cat -- "$root"/CMake*Presets.json
  if [[ -d $root/build/onednn3 ]]; then echo "oneDNN 3"; fi
  cat -- "$peers_prefix/packages" 2>/dev/null || true
}

configure() {
  local preset=$1 dir=$root/build/$1 fresh=()
  if ! command -v cmake >/dev/null || ! command -v ninja >/dev/null; then
    die "build: cmake or ninja is missing: run ci/setup"
  fi
  say "configure: $preset"
  # A cache made for another place (a copied or moved tree) would be refused.
  if [[ -f $dir/CMakeCache.txt ]] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$dir/CMakeCache.txt"; then
    fresh=(--fresh)
  fi
  if ! (cd -- "$root" && cmake "${fresh[@]}" --preset "$preset") >"$dir/configure.log" 2>&1; then
    if grep -q 'CMake Error' "$dir/configure.log"; then
      grep -A 12 'CMake Error' "$dir/configure.log" | head -n 40 >&2
    else
      tail -n 40 -- "$dir/configure.log" >&2
    fi
    say "configure: failed; the whole log: $dir/configure.log"
    "$root/ci/setup" --check >&2 || say "configure: packages are missing: run ci/setup"
    exit 2
  fi
  sed -n 's/^-- attest: /configure: /p' "$dir/configure.log" >&2  # what the project's own CMake has to say
  grep -A 5 '^CMake Warning' "$dir/configure.log" >&2 || true
  configuration >"$dir/.configuration"
}

# Reads ninja's output: all of it into the log, warnings on the screen, and progress where there is any.
show_progress() {
  local log=$1 line next=0 columns=${COLUMNS:-80} drawn=
  : >"$log"
  while IFS= read -r line; do
    printf '%s\n' "$line" >>"$log"
    if [[ $line == \[*/*\]* ]]; then
      if [[ -t 2 ]]; then
        printf '\r\033[K%s' "${line:0:columns-1}" >&2
        drawn=1
      elif ((SECONDS >= next)); then  # not a terminal: a line now and then shows that it is alive
        say "build: ${line%%]*}]"
        next=$((SECONDS + 20))
      fi
    elif [[ $line == *warning:* ]]; then
      if [[ -n $drawn ]]; then printf '\r\033[K' >&2; fi
      say "$line"
    fi
  done
  if [[ -n $drawn ]]; then printf '\r\033[K' >&2; fi
}

compile() {
  local dir=$root/build/$1 first only=()
  shift
  if (($# > 0)); then only=(--target "$@"); fi
  NINJA_STATUS='[%f/%t] ' cmake --build "$dir" -j "$jobs" "${only[@]}" 2>&1 | show_progress "$dir/build.log" && return
  first=$(grep -nEm 1 '^FAILED:|^CMake Error|^ninja: error' "$dir/build.log" | cut -d: -f1) || first=
  if [[ -n $first ]]; then
    sed -n "$first,$((first + 60))p" -- "$dir/build.log" | cut -c -400 >&2
  else
    tail -n 40 -- "$dir/build.log" >&2
  fi
  die "build: failed; the whole log: $dir/build.log"
}

build() {
  local preset=$1 dir=$root/build/$1 lock=
  if ! grep -qsE "\"name\": *\"$preset\"" "$root"/CMake*Presets.json; then
    die "build: no preset \"$preset\"; cmake --list-presets names them"
  fi
  mkdir -p -- "$dir"
  # Two scripts at once must not build in one tree.
  if command -v flock >/dev/null; then
    exec {lock}>"$dir/.lock"
    flock "$lock"
  fi
  if [[ ! -f $dir/build.ninja ]] || ! cmp -s -- "$dir/.configuration" <(configuration); then
    phase configure configure "$preset"
  fi
  phase build compile "$@"
  if [[ -n $lock ]]; then exec {lock}>&-; fi
}

# -------------------------------------------------------------------------------------------------------- Python

# The first python3 on the PATH need not be the system's, for which ci/setup installs modules.
python_with() {
  local python
  for python in python3 /usr/bin/python3; do
    if "$python" -c "import $1" >/dev/null 2>&1; then
      printf '%s\n' "$python"
      return
    fi
  done
  return 1
}
