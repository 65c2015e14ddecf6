#!/usr/bin/env bash
# Compares budgets of memory with what llama.cpp takes, and looks at what a long context does to a search. Skips what is
# done. Needs no text, because it uses the one that comes with the package:
#
#   bash experiments/memory_budget/measure.sh files drops vllm        (after: make engines)
#
# then: python experiments/memory_budget/collect.py
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
engines=${ENGINES:-.engines}
out=outputs/studies/memory_budget
model=$out/smollm2-off-grid
export PYTHONPATH=.
mkdir -p "$out"

[ -e "$model/model.safetensors" ] || "$python" experiments/gguf/off_grid.py "$model"

run() { # name, context, target, then options
  local folder="$out/$1"
  [ -e "$folder/results.json" ] || "$python" -m evopress.run model=hf model.name=smollm2-off-grid "model.path=$model" \
    data=pydoc data.search_tokens=16384 data.validation_tokens=2048 tune=none budget=memory \
    "budget.context=$2" "budget.target=$3" eval.prompts=[] "hydra.run.dir=$folder" "outputs=$out" "${@:4}"
}

in_llama() { # name, context, type of the cache
  [ -s "$out/$1/llama.json" ] || "$engines/llama/bin/python" experiments/memory_budget/in_llama.py \
    "$out/$1/checkpoints/gguf/model.gguf" "$2" "$3" | tail -1 >"$out/$1/llama.json"
}

files() { # a file for a target, and one for the next larger target, at three contexts; then with a smaller cache
  for case in 512:f16:200MB:90MB 512:f16:220MB:90MB 2048:f16:235MB:90MB 2048:f16:255MB:90MB 2048:q8_0:215MB:90MB \
    2048:q8_0:235MB:90MB 8192:f16:382MB:95MB 8192:f16:402MB:95MB; do
    IFS=: read -r context kv target reserve <<<"$case"
    run "$context-$kv-$target" "$context" "$target" "budget.kv=$kv" "budget.reserve=$reserve" model.dtype=float32 \
      data.window=512 data.calibration_tokens=2048 data.test_tokens=2048 compress=gguf 'compress.types=[Q8_0,Q5_0,Q4_0]' \
      compress.weigh_tokens=false search=uniform export.formats=[gguf] export.pre_tokenizer=smollm
    in_llama "$context-$kv-$target" "$context" "$kv"
  done
}

drops() { # the same bits per weight if nothing is dropped, with a small and with a large cache
  for case in 512:1:105.5MB 2048:2:188.1MB; do
    IFS=: read -r context batch target <<<"$case"
    run "joint-$context-x$batch" "$context" "$target" "budget.batch=$batch" budget.reserve=0 data.window=2048 \
      data.calibration_tokens=8192 data.test_tokens=8192 compress=gptq compress.bits=[2,3,4] compress.group_size=64 \
      compress.weigh_tokens=false space=joint search=demo search.rounds=1 search.generations=0 search.excerpt=512 \
      search.line_tokens=2048
  done
}

vllm() { # the cache that is predicted for 2048 tokens, and one block of 128 tokens more
  for blocks in 0 1; do
    [ -s "$out/vllm-$blocks.json" ] || "$engines/vllm/bin/python" experiments/memory_budget/in_vllm.py "$model" 2048 \
      $((30 * 2 * 3 * 64 * 2 * (2048 + 128 * blocks))) | tail -1 >"$out/vllm-$blocks.json"
  done
}

for part in "$@"; do "$part"; done
