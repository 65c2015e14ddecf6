#!/usr/bin/env bash
# Tunes a uniform profile at 3 bits for 6 144 and for 24 576 tokens:
#
#   TEXT=folder with wikitext2_valid.txt and wikitext2_test.txt
#   bash experiments/tuning/measure.sh
#
# then: python experiments/tuning/collect.py
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${TEXT:?set TEXT to the folder with wikitext2_valid.txt and wikitext2_test.txt}"
python=${PYTHON:-.venv/bin/python}
out=outputs/studies/tuning
model=$out/smollm2-off-grid
export PYTHONPATH=.
mkdir -p "$out"

[ -e "$model/model.safetensors" ] || "$python" experiments/gguf/off_grid.py "$model"

for tokens in 6144 24576; do
  "$python" -m evopress.run model=hf model.name=smollm2-off-grid "model.path=$model" model.dtype=float32 data=text \
    "data.source=$TEXT/wikitext2_valid.txt" "data.test_source=$TEXT/wikitext2_test.txt" data.window=512 \
    data.calibration_tokens=16384 data.search_tokens=65536 data.validation_tokens=4096 data.test_tokens=8192 \
    compress=gptq compress.group_size=64 'compress.bits=[3]' search=uniform budget=3bit tune=none \
    "tune.tokens=$tokens" "hydra.run.dir=$out/$tokens"
done
