#!/usr/bin/env bash
# Measures what it costs to tie {q, k, v} and {gate, up} to one level each, as vLLM demands, on SmolLM2-135M-Instruct:
#
#   TEXT=folder with wikitext2_valid.txt and wikitext2_test.txt
#   bash experiments/tying/measure.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
. experiments/setting.sh
for tie in none engine; do
  "$python" -m evopress.run -m "${common[@]}" compress=gptq compress.group_size=64 compress.symmetric=true budget=3bit \
    search=demo "space.tie=$tie" seed=0,1,2 "hydra.sweep.dir=outputs/studies/tying/$tie" \
    'hydra.sweep.subdir=${hydra:job.num}'
done
