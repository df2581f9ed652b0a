#!/usr/bin/env bash
# Proves and measures nasfast on a machine with a CUDA card, in at most 8 minutes and without a network. It needs
# python3 with torch (CUDA 13), numpy, scipy and pytest, nvcc and a C++ compiler, and writes nothing outside of the
# repository but to $OUT: JSON, and gpu_check.md with tables. Usage: OUT=folder bench/gpu_check.sh
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-bench/results}
mkdir -p "$out"
export PYTHONPATH=$PWD WITH_CUDA=1 MAX_JOBS=${MAX_JOBS:-$(nproc)}
most_s=475 # of everything
rows=() failed=0 limit=0

row() { # name, verdict, seconds
  rows+=("$(printf '%-34s %-9s %4s s' "$1" "$2" "$3")")
}

# Sets `limit` to the seconds that something gets which wants so many, and fails where none are left.
grant() { # name, most seconds
  limit=$((most_s - SECONDS))
  if [ "$limit" -gt "$2" ]; then limit=$2; fi
  if [ "$limit" -gt 0 ]; then return 0; fi
  failed=1 # what was not proved has not passed
  row "$1" "no time" 0
  return 1
}

stage() { # name, most seconds, command
  local name=$1 began=$SECONDS verdict=passed
  grant "$name" "$2" || return
  shift 2
  printf '\n== %s\n' "$name"
  timeout "$limit" "$@" || { verdict=FAILED; failed=1; }
  row "$name" "$verdict" $((SECONDS - began))
}

# A tool that the platform refuses has found nothing: that is "not run", with what it said.
sanitize() { # tool
  local name="compute-sanitizer $1" began=$SECONDS log="$out/sanitizer_$1.log" verdict
  local command
  command=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  printf '\n== %s\n' "$name"
  if ! [ -x "$command" ]; then
    echo "there is no compute-sanitizer"
    row "$name" "not run" 0
    return
  fi
  grant "$name" 30 || return
  # Without torch's cache every tensor is an allocation of its own, whose end is known.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "$limit" "$command" --tool "$1" python3 bench/small_case.py > "$log" 2>&1
  local code=$?
  if [ $code = 0 ] && grep -qE 'SUMMARY: 0 (errors|hazards)' "$log"; then
    verdict=passed
  elif grep -q 'SUMMARY: ' "$log"; then
    verdict=FAILED
  elif grep -qiE 'not supported|not permitted|permission|unable to|cannot attach' "$log"; then
    verdict="not run"
  else
    verdict=FAILED # the case itself, or the time limit
  fi
  tail -n 5 "$log"
  if [ "$verdict" = FAILED ]; then failed=1; fi
  row "$name" "$verdict" $((SECONDS - began))
}

if ! python3 -c 'import torch; assert torch.cuda.is_available(), "torch sees no CUDA device"'; then
  echo "gpu_check: nothing was run"
  exit 1
fi
nvidia-smi -L 2> /dev/null
card=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$card}

stage "build" 130 python3 setup.py build_ext --inplace
if [ $failed = 0 ]; then
  # Our own settings of pytest and its conftest want plugins that need not be here.
  stage "tests" 100 python3 -m pytest -q -c /dev/null --rootdir=. --noconftest -p no:cacheprovider \
    -W ignore::pytest.PytestUnknownMarkWarning -m cuda tests/test_cuda.py tests/test_cuda_training.py \
    tests/test_cuda_paths.py tests/test_cuda_nn.py
  for tool in memcheck racecheck initcheck; do sanitize "$tool"; done
  for precision in bf16 tf32 fp32; do
    stage "kernels $precision" 45 python3 bench/card_kernels.py --precision $precision \
      --json "$out/card_kernels_$precision.json"
  done
  stage "NAS-Bench-201 bf16" 70 python3 bench/space_nb201.py --device cuda --precision bf16 --repeats 5 --compiled 2 \
    --json "$out/space_nb201_cuda_bf16.json"
  stage "fine-tuning" 50 python3 bench/card_finetune.py --device cuda --precision bf16 \
    --json "$out/card_finetune_bf16.json"
  stage "NAS-Bench-1Shot1 space 3" 25 python3 bench/card_1shot1.py --device cuda --precision bf16 \
    --json "$out/card_1shot1_bf16.json"
  for precision in bf16 fp32; do
    stage "mixed operation $precision" 25 python3 bench/mixed_edge.py --device cuda --precision $precision \
      --json "$out/mixed_edge_cuda_$precision.json"
  done
  for precision in tf32 fp32; do
    stage "NAS-Bench-201 $precision" 35 python3 bench/space_nb201.py --device cuda --precision $precision --repeats 3 \
      --compiled 0 --json "$out/space_nb201_cuda_$precision.json"
  done
fi

{
  printf '```\n'
  printf '%s\n' "${rows[@]}"
  printf '```\n\n'
  python3 bench/card_report.py "$out"
} > "$out/gpu_check.md"
printf '\n'
printf '%s\n' "${rows[@]}"
exit $failed
