#!/usr/bin/env bash
# Measures how well weights are rounded to number formats, on SmolLM2-135M-Instruct and pydoc:
#
#   bash experiments/number_formats/measure.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
common=(model=smollm2 data=pydoc data.window=512 data.calibration_tokens=16384 data.test_tokens=8192 tune=none
  'eval.prompts=[]' compress=float)
folder=outputs/studies/number_formats
for rounding in nearest gptq; do
  for four_over_six in false true; do
    "$python" -m evopress.run "${common[@]}" 'compress.levels=[nvfp4]' "compress.rounding=$rounding" \
      "compress.four_over_six=$four_over_six" budget.target=5 search=uniform \
      "hydra.run.dir=$folder/$rounding-$four_over_six"
  done
done
"$python" -m evopress.run "${common[@]}" 'compress.levels=[bf16,fp8,nvfp4]' budget.target=5.5 space.tie=engine \
  search=demo "hydra.run.dir=$folder/mix"
"$python" -m experiments.number_formats.layer_errors "$folder/layer_errors.json"
