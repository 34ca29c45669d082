#!/usr/bin/env bash
# For a person with an NVIDIA GPU: builds nnops for it, runs its CUDA tests, lets compute-sanitizer
# look at them and measures beside torch and cuDNN. Everything goes to one folder to send back.
#
#   TORCH=torch tools/gpu_check.sh [folder]
#
# TORCH is what pip installs as torch: a build for CUDA (on Linux the plain package is one). nvcc and
# compute-sanitizer must be on the PATH; both come with the CUDA toolkit.
set -uo pipefail
cd "$(dirname "$0")/.."

results="$(realpath -m "${1:-gpu_check_results}")"
mkdir -p "$results"
export TORCH="${TORCH:-torch}"
export NNOPS_CUDA=on
export NNOPS_CUDA_ARCHS="${NNOPS_CUDA_ARCHS:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader |
  head -n 1 | tr -d .)}"
python="${VENV:-.venv}/bin/python"
status=0

# step NAME COMMAND...: its output goes to the folder, its verdict to the summary.
step() {
  local name="$1"
  shift
  echo "== $name: $*"
  "$@" > "$results/$name.log" 2>&1
  local code=$?
  tail -n 3 "$results/$name.log"
  echo "$name: exit code $code" | tee -a "$results/summary.txt"
  [ "$code" -eq 0 ] || status=1
}

: > "$results/summary.txt"
step machine nvidia-smi
step build make build TORCH="$TORCH"
step info "$python" -m nnops info
step tests "$python" -m pytest -m cuda -v

# Every operator in float32 and some tensor cores: the tools slow kernels down by factors of 10 to 100.
for tool in memcheck racecheck initcheck synccheck; do
  step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all \
    "$python" -m pytest -m cuda tests/test_cuda.py tests/test_cuda_tensor_cores.py \
    -k "((test_forward or test_gradients) and float32) or (few-channels and float16) or (medium and tf32)"
done

step benchmark "$python" tools/gpu_benchmark.py --out "$results/benchmark.jsonl" \
  --report "$results/benchmark.md" --plot "$results/benchmark.png"

echo "The results are in $results: summary.txt first."
exit "$status"
