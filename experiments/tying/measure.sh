#!/usr/bin/env bash
# What it costs to tie {q, k, v} and {gate, up} to one level each, as vLLM demands, on SmolLM2-135M and WikiText-2:
#
#   TEXT=folder with wikitext2_valid.txt and wikitext2_test.txt
#   bash experiments/tying/measure.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${TEXT:?set TEXT to the folder with wikitext2_valid.txt and wikitext2_test.txt}"
python=${PYTHON:-.venv/bin/python}
for tie in none engine; do
  "$python" -m evopress.run -m model=smollm2 compress=gptq compress.group_size=64 compress.symmetric=true budget=3bit \
    search=demo "space.tie=$tie" seed=0,1,2 data=text "data.source=$TEXT/wikitext2_valid.txt" \
    "data.test_source=$TEXT/wikitext2_test.txt" data.window=512 data.calibration_tokens=16384 \
    data.search_tokens=131072 data.validation_tokens=8192 data.test_tokens=8192 \
    "hydra.sweep.dir=outputs/studies/tying/$tie" 'hydra.sweep.subdir=${hydra:job.num}'
done
