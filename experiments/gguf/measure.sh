#!/usr/bin/env bash
# Searches GGUF files of the sizes of llama.cpp's Q4_0 and Q5_0 of the same model, and compares all in llama.cpp:
#
#   TEXT=folder with wikitext2_valid.txt and wikitext2_test.txt
#   bash experiments/gguf/measure.sh        (after: make engines)
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${TEXT:?set TEXT to the folder with wikitext2_valid.txt and wikitext2_test.txt}"
python=${PYTHON:-.venv/bin/python}
llama=.engines/llama/bin/python
out=outputs/studies/gguf
model=$out/smollm2-off-grid
export PYTHONPATH=.
mkdir -p "$out"

[ -e "$model/model.safetensors" ] || "$python" experiments/gguf/off_grid.py "$model"
[ -e "$out/dense/model.gguf" ] || "$python" experiments/gguf/dense.py "$model" "$out/dense"

run() { # name, budget in bytes, then options
  local folder="$out/$1" size=$2
  shift 2
  "$python" -m evopress.run model=hf model.name=smollm2-off-grid "model.path=$model" tune=none data=text \
    "data.source=$TEXT/wikitext2_valid.txt" "data.test_source=$TEXT/wikitext2_test.txt" data.window=512 \
    data.calibration_tokens=8192 data.search_tokens=65536 data.validation_tokens=2048 data.test_tokens=4096 \
    compress=gguf budget=size "budget.target=$size" search=demo export.formats=[gguf] export.pre_tokenizer=smollm \
    "hydra.run.dir=$folder" "$@"
}

for type in Q4_0 Q5_0; do
  [ -e "$out/$type.gguf" ] || "$llama" experiments/gguf/in_llama.py quantize "$out/dense/model.gguf" $type "$out/$type.gguf"
  size=$(stat -c %s "$out/$type.gguf")
  [ -e "$out/$type/results.json" ] || run $type "$size"
  "$llama" experiments/gguf/in_llama.py compare "$TEXT/wikitext2_test.txt" 16 "$out/dense/model.gguf" \
    "$out/$type.gguf" "$out/$type/checkpoints/gguf/model.gguf" >"$out/$type.json"
done
