#!/usr/bin/env bash
# Uniform profiles of GPTQ levels with and without order, range search and refitted scales, at 2, 3 and 4 bits:
#
#   TEXT=folder with wikitext2_valid.txt and wikitext2_test.txt
#   bash experiments/levels/measure.sh
#
# then: python experiments/levels/collect.py
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${TEXT:?set TEXT to the folder with wikitext2_valid.txt and wikitext2_test.txt}"
python=${PYTHON:-.venv/bin/python}
out=outputs/studies/levels
model=$out/smollm2-off-grid
export PYTHONPATH=.
mkdir -p "$out"

[ -e "$model/model.safetensors" ] || "$python" experiments/gguf/off_grid.py "$model"

run() { # name, then options; single uses a database of one width
  local name=$1 widths propagated
  shift
  for bits in 3 2 4; do
    if [ "$name" = single ]; then widths=[$bits] propagated=$bits; else widths=[2,3,4] propagated=3; fi
    [ -e "$out/$name-$bits/results.json" ] || "$python" -m evopress.run model=hf model.name=smollm2-off-grid \
      "model.path=$model" model.dtype=float32 tune=none data=text "data.source=$TEXT/wikitext2_valid.txt" \
      "data.test_source=$TEXT/wikitext2_test.txt" data.window=512 data.calibration_tokens=16384 \
      data.search_tokens=8192 data.validation_tokens=2048 data.test_tokens=8192 compress=gptq \
      compress.group_size=64 "compress.bits=$widths" "compress.propagate_bits=$propagated" search=uniform "budget.target=$bits" \
      "hydra.run.dir=$out/$name-$bits" "$@"
  done
}

run single
run all
run paper compress.act_order=false compress.range=minmax compress.refit_scales=false compress.weigh_tokens=false
run refit compress.weigh_tokens=false
run range compress.refit_scales=false compress.weigh_tokens=false
run order compress.range=minmax compress.refit_scales=false compress.weigh_tokens=false
run all-1 data.calibration_seed=1
run all-2 data.calibration_seed=2
