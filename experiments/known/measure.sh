#!/usr/bin/env bash
# Measures uniform profiles and single drops of SmolLM2-135M-Instruct, whose figures are known from other implementations:
#
#   TEXT=folder with wikitext2_valid.txt and wikitext2_test.txt
#   bash experiments/known/measure.sh
#
# then: python experiments/known/collect.py bfloat16
set -euo pipefail
cd "$(dirname "$0")/../.."
. experiments/setting.sh

run() { # name, then options
  local folder="outputs/studies/known/$1"
  shift
  "$python" -m evopress.run "${common[@]}" "hydra.run.dir=$folder" "$@"
}

for drop in attention12 mlp12 block20; do
  run "$drop" compress=drop budget=drop25 budget.target=0 search=profile "search.path=experiments/known/$drop.txt"
done
run magnitude compress=magnitude compress.num_levels=1 budget=sparsity50 search=uniform
run sparsegpt compress=sparsegpt compress.num_levels=4 compress.weigh_tokens=false budget=sparsity50 search=uniform
plain=(compress.act_order=false compress.range=minmax compress.refit_scales=false compress.weigh_tokens=false) # as the known figures' GPTQ
for bits in 3 4 5 6; do
  run "gptq-$bits" compress=gptq compress.group_size=64 "${plain[@]}" "budget.target=$bits" search=uniform
done
