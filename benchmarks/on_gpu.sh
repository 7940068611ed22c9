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

# op_db runs on the CPU and wants a package that such a machine may lack.
python3 -m pytest -o addopts=-ra -m cuda --ignore tests/state/test_op_db.py tests
compute-sanitizer --tool memcheck --error-exitcode 1 \
  python3 -m pytest -o addopts=-q -m cuda tests/state/test_null_launch.py

python3 -m gradext lesson --device cuda --json > "$OUT/lesson-cuda.json"
python3 benchmarks/state.py --out "$OUT"
python3 benchmarks/recorder.py --quick --out "$OUT"
