#!/usr/bin/env bash
# On a machine with a GPU, nvcc, torch and Triton, and no registry: builds bdc, tests its GPU kernels, measures them.
#   benchmarks/gpu.sh OUTDIR [--dry-run]
# Writes build.log, tests.log, gpu.json and table.txt to OUTDIR and prints the table last; under 9 minutes. Exit code: that of
# the first step that failed, the later ones being run all the same where they can.
# PYTHONPATH may name a folder with vLLM's kernels (benchmarks/peers/vllm_kernels.py); without it they are left out.
# --dry-run: no build; the measurement alone, with tiny sizes on the CPU. PYTHON names the interpreter (python3).
set -uo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ] || { [ $# -eq 2 ] && [ "$2" != --dry-run ]; }; then
    echo "usage: $0 OUTDIR [--dry-run]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1
code=0

if [ "${2:-}" = --dry-run ]; then
    PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "$python" benchmarks/gpu_op.py --dry-run --json "$out/gpu.json" | tee "$out/table.txt"
    exit $?
fi

# What the build needs is said before it fails half-way.
missing=$("$python" -c '
import importlib.util, shutil
names = ["torch", "triton", "numpy", "scikit_build_core", "pybind11", "pytest", "hypothesis"]
print(*[name for name in names if importlib.util.find_spec(name) is None])
tools = {"nvcc": ["nvcc"], "cmake": ["cmake"], "ninja": ["ninja", "make"], "c++": ["c++"]}
print(*[name for name, choices in tools.items() if not any(shutil.which(choice) for choice in choices)])
') || exit 3
if [ -n "$(echo $missing)" ]; then
    echo "missing: $(echo $missing) (Python packages can be carried as wheels: see the device's page)" >&2
    exit 3
fi
"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"' || exit 3

echo "building (log: build.log)"
if ! CMAKE_ARGS="-DBDC_CUDA=on" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) timeout 150 \
    "$python" -m pip install --no-build-isolation --no-deps --force-reinstall . >"$out/build.log" 2>&1; then
    tail -30 "$out/build.log"
    echo "the build failed" >&2
    exit 4
fi

# -P: the package that was installed, not the folder; plugins that are not needed here stay out of the way.
echo "testing (log: tests.log)"
# Triton compiles for each shape anew, so the tests run beside one another where pytest can do that.
cache=$(mktemp -d)
workers=$("$python" -c 'import importlib.util; print("-n 12" if importlib.util.find_spec("xdist") else "")')
(cd "$cache" && timeout 170 "$python" -P -m pytest -q --maxfail=40 -o cache_dir="$cache" $workers --rootdir "$OLDPWD" -c "$OLDPWD/pyproject.toml" \
    "$OLDPWD/tests/ops/test_gpu.py" "$OLDPWD/tests/ops/test_cuda_kernels.py" "$OLDPWD/tests/ops/test_triton_kernels.py" \
    "$OLDPWD/tests/ops/test_cuda_compiles.py" "$OLDPWD/tests/ops/test_forward.py" "$OLDPWD/tests/ops/test_library.py" \
    "$OLDPWD/tests/ops/test_slices.py" "$OLDPWD/tests/ops/test_linear.py" "$OLDPWD/tests/ops/test_arguments.py" \
    -k "not cpp") >"$out/tests.log" 2>&1
code=$?
tail -15 "$out/tests.log"
[ $code -eq 0 ] || echo "the tests failed or ran out of time (code $code): measured all the same" >&2

timeout 210 "$python" benchmarks/gpu_op.py --seconds 170 --json "$out/gpu.json" 2>"$out/stderr.log" | tee "$out/table.txt"
measured=$?
[ $measured -eq 0 ] || tail -5 "$out/stderr.log"
[ $code -ne 0 ] && exit $code
exit $measured
