#!/usr/bin/env bash
# Everything that needs a GPU, on a machine without network:
#
#     benchmarks/on_gpu.sh [STAGE ...]
#
# All stages by default; a failed one does not keep the later ones from running, and the exit code is
# 1 if any failed. JSON and plots go to $OUT (default: benchmarks/results/gpu), each stage's output
# to $OUT/log. GRADEXT_WHEEL names a wheel to install instead of building one; GRADEXT_COMMIT the
# commit of a checkout that came without its history.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-$PWD/benchmarks/results/gpu}
mkdir -p "$OUT/log"
export GRADEXT_REQUIRE_CUDA=1 PYTHONUNBUFFERED=1 PYTHONPATH=

build() {
  FORCE_CUDA=1 python3 -m pip install --no-build-isolation --no-deps --force-reinstall --ignore-requires-python \
    "${GRADEXT_WHEEL:-.}" && python3 -m gradext doctor
}

# The ignored run on the CPU and want packages that such a machine may lack.
tests() {
  python3 -m pytest -o addopts=-ra -n 4 -m cuda tests \
    --ignore-glob '*_op_db.py' --ignore tests/benchmarks/test_bench_command.py
}

# The variant of the fingerprint for this processor, which may be one that CI's has not.
variants() {
  python3 -c "import gradext; print(gradext._C.fingerprint_variants())"
  python3 -m pytest -o addopts=-ra -n 4 -m 'not cuda' tests/fingerprint
}

# Without what takes gigabytes or a compiler (under the sanitizer it would take hours) or counts
# kernels (torch's profiler sees none there).
sanitized() {
  compute-sanitizer --tool "$1" --error-exitcode 1 python3 -m pytest -o addopts=-q -m cuda \
    -k 'not beyond_32_bits and not one_large and not compiled and not one_kernel and not one_launch' "${@:2}"
}
memcheck() { sanitized memcheck tests/fingerprint tests/state/test_null_launch.py tests/probe; }
racecheck() { sanitized racecheck tests/fingerprint; }

fingerprint() { python3 benchmarks/fingerprint.py --device cuda --check --out "$OUT"; }
layers() { python3 benchmarks/layers.py --device cuda --check --out "$OUT"; }
state() { python3 benchmarks/state.py --device cuda --out "$OUT"; }
lesson() { python3 -m gradext lesson --device cuda --json > "$OUT/lesson.json"; }
recorder() { python3 benchmarks/recorder.py --quick --device cuda --out "$OUT"; }
modes() {
  python3 benchmarks/modes.py --device cuda --out "$OUT" &&
    python3 benchmarks/plot_modes.py "$OUT/modes.json"
}

stages=(build tests variants fingerprint layers memcheck racecheck lesson state recorder modes)
[ $# = 0 ] || stages=("$@")
failed=()
for stage in "${stages[@]}"; do
  printf '\n== %s\n' "$stage"
  begun=$SECONDS
  "$stage" 2>&1 | tee "$OUT/log/$stage.txt" || failed+=("$stage")
  printf '== %s: %s s\n' "$stage" $((SECONDS - begun))
  [ "$stage" != build ] || [ ${#failed[@]} = 0 ] || break
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
