#!/usr/bin/env bash
# Runs six budgets at once, on SmolLM2-135M-Instruct at 2.5 to 4.5 bits. Skips finished runs:
#
#   TEXT=folder with wikitext2_valid.txt and wikitext2_test.txt
#   SEEDS="0 1 2" bash experiments/search/front.sh && python experiments/search/front.py
#
# Separate searches for the same budgets: SEARCHES=guided bash experiments/search/measure.sh "2.5 bit" "2.75 bit" ...
set -euo pipefail
cd "$(dirname "$0")/../.."
. experiments/setting.sh
common+=(compress=gptq compress.group_size=64 budget=3bit search=guided_long) # called guided when it was the default

for seed in ${SEEDS:-0 1 2}; do
  folder="outputs/studies/front/$seed"
  [ -f "$folder/front.csv" ] || "$python" -m evopress.run "${common[@]}" "hydra.run.dir=$folder" "seed=$seed" \
    "targets=[2.5,2.75,3,3.5,4,4.5]"
done
