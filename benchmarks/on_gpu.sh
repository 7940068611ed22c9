#!/usr/bin/env bash
# Everything that needs a GPU, on a machine without network: build, CUDA tests with skipping forbidden,
# compute-sanitizer, the lesson, the benchmarks. JSON goes to $OUT (default: benchmarks/results/gpu).
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-$PWD/benchmarks/results/gpu}
mkdir -p "$OUT"
export GRADEXT_REQUIRE_CUDA=1 PYTHONUNBUFFERED=1

FORCE_CUDA=1 python3 -m pip install --no-build-isolation --no-deps .
python3 -m gradext doctor | tee "$OUT/doctor.txt"

# Those two run on the CPU and want packages that such a machine may lack.
python3 -m pytest -o addopts=-ra -m cuda --ignore tests/state/test_op_db.py \
  --ignore tests/fingerprint/test_fingerprint_properties.py tests
compute-sanitizer --tool memcheck --error-exitcode 1 \
  python3 -m pytest -o addopts=-q -m cuda tests/state/test_null_launch.py
compute-sanitizer --tool memcheck --error-exitcode 1 \
  python3 -m pytest -o addopts=-q -m cuda -k 'not beyond_32_bits and not compiled' tests/probe
# Without what takes gigabytes: under the sanitizer it would take hours.
for tool in memcheck racecheck; do
  compute-sanitizer --tool "$tool" --error-exitcode 1 \
    python3 -m pytest -o addopts=-q -m cuda -k 'not beyond_32_bits and not one_large' tests/fingerprint
done

python3 -m gradext lesson --device cuda --json > "$OUT/lesson-cuda.json"
python3 benchmarks/state.py --device cuda --out "$OUT"
python3 benchmarks/recorder.py --quick --device cuda --out "$OUT"
python3 benchmarks/fingerprint.py --device cuda --out "$OUT"
python3 benchmarks/modes.py --device cuda --out "$OUT"
python3 benchmarks/plot_modes.py "$OUT/modes.json"
python3 benchmarks/layers.py --out "$OUT"
python3 benchmarks/layers.py --device cuda --check --out "$OUT"
