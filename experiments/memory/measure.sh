#!/usr/bin/env bash
# Runs a model of 4 GB in a process that may use 2 GB (as root, with memory cgroups; ten minutes on two cores):
#
#   bash experiments/memory/measure.sh [bytes]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
out=outputs/studies/memory
limit=${1:-2000000000}
export PYTHONPATH=.
[ -e "$out/model/model.safetensors.index.json" ] || "$python" experiments/memory/make_model.py "$out/model"

"$python" - "$out"/model/*.safetensors <<'EOF'
# Pages of these files that are in memory already would not count towards the limit, so they are dropped.
import os, sys
for path in sys.argv[1:]:
    with open(path) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
EOF

settings=(model=hf model.name=random-2b "model.path=$out/model" model.dtype=bfloat16 model.max_perplexity=1e9
  tune=none data=pydoc data.window=256 data.calibration_tokens=2048 data.search_tokens=2048 data.validation_tokens=256
  data.test_tokens=512 compress=gptq 'compress.bits=[2,4]' budget=3bit search=evolution search.generations=2
  search.offspring=4 'search.stages=[{survivors: 1, tokens: 256}]' search.initial_candidates=2
  search.initial_tokens=256 evaluator.cache_gb=0.2 evaluator.states_gb=0.05 evaluator.batch_tokens=256)

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  group=/sys/fs/cgroup/evopress limit_file=memory.max peak_file=memory.peak
else
  group=/sys/fs/cgroup/memory/evopress limit_file=memory.limit_in_bytes peak_file=memory.max_usage_in_bytes
fi
mkdir "$group"
echo "$limit" >"$group/$limit_file"
trap 'rmdir "$group"' EXIT
(
  echo $BASHPID >"$group/cgroup.procs"
  "$python" -m evopress.run 'stages=[plan,database,search,evaluate]' "hydra.run.dir=$out/run" "outputs=$out" "${settings[@]}"
)
echo "weights $(du -cb "$out"/model/*.safetensors | tail -n 1 | cut -f 1) bytes, limit $limit, peak with the files' pages $(cat "$group/$peak_file")"
