#!/usr/bin/env bash
# Runs every search on one database and one evaluator, on SmolLM2-135M-Instruct and WikiText-2:
#
#   TEXT=folder with wikitext2_valid.txt and wikitext2_test.txt
#   bash experiments/compare/measure.sh bits|sparsity|depth
#
# then: python experiments/compare/collect.py
set -euo pipefail
cd "$(dirname "$0")/../.."
. experiments/setting.sh
common+=(data.test_tokens=4096)
evolution=(search=evolution search.offspring=8 'search.stages=[{survivors:2,tokens:512},{survivors:1,tokens:1024}]'
  search.initial_candidates=8 search.initial_tokens=512)

run() { # name, then options of one study
  local sweep="outputs/studies/$1"
  shift
  "$python" -m evopress.run -m "${common[@]}" "hydra.sweep.dir=$sweep" "hydra.sweep.subdir=\${hydra:job.num}" "$@"
}

case "$1" in
bits)
  gptq=(compress=gptq compress.group_size=64 budget=3bit)
  run bits/uniform "${gptq[@]}" search=uniform
  run bits/dp-layer "${gptq[@]}" search=dp
  run bits/dp-measured "${gptq[@]}" search=dp search.errors=measured search.tokens=256
  run bits/random "${gptq[@]}" search=random search.candidates=48 search.tokens=1024 seed=0,1,2
  run bits/evolution "${gptq[@]}" "${evolution[@]}" search.generations=8 seed=0,1,2
  run bits/guided "${gptq[@]}" search=demo seed=0,1,2
  ;;
sparsity)
  sparse=(compress=sparsegpt compress.num_levels=4 budget=sparsity50)
  run sparsity/uniform "${sparse[@]}" search=uniform
  run sparsity/owl "${sparse[@]}" search=owl 'search.multiples=[5]' search.tokens=4096 seed=0,1,2
  run sparsity/evolution "${sparse[@]}" "${evolution[@]}" search.generations=8 seed=0,1,2
  run sparsity/guided "${sparse[@]}" search=demo seed=0,1,2
  ;;
depth)
  for scorer in shortgpt cosine_window weight_subcloning shortened_llama kl_scores; do
    run "depth/$scorer" compress=drop budget=drop25 search=$scorer search.tokens=1024
  done
  run depth/guided compress=drop budget=drop25 search=demo seed=0,1,2
  run depth/evolution-half compress=drop budget=drop25 "${evolution[@]}" search.generations=10 seed=0,1,2
  run depth/evolution-block compress=drop compress.granularity=block budget=drop25 "${evolution[@]}" \
    search.generations=10 seed=0,1,2
  ;;
*) echo "give bits, sparsity or depth" >&2; exit 2 ;;
esac
