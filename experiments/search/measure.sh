#!/usr/bin/env bash
# Searches of about equal cost on one database per task, on SmolLM2-135M and WikiText-2. Runs that are done are skipped:
#
#   TEXT=folder with wikitext2_valid.txt and wikitext2_test.txt
#   SEEDS="0 1 2" bash experiments/search/measure.sh "3 bit" "2.5 bit" "60 % sparsity" "25 % depth"
#
# then, for each task: python experiments/search/measure.py --task "3 bit" --at 60000 300000 -- outputs/studies/search/3-bit/*
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${TEXT:?set TEXT to the folder with wikitext2_valid.txt and wikitext2_test.txt}"
python=${PYTHON:-.venv/bin/python}
common=(model=smollm2 data=text "data.source=$TEXT/wikitext2_valid.txt" "data.test_source=$TEXT/wikitext2_test.txt"
  data.window=512 data.calibration_tokens=16384 data.search_tokens=131072 data.validation_tokens=8192
  data.test_tokens=8192)
algorithm1=(search=evolution search.offspring=16 'search.stages=[{survivors:4,tokens:512},{survivors:1,tokens:2048}]'
  search.generations=16 search.initial_candidates=16 search.initial_tokens=512)
wide=(search.rounds=3 search.table_tokens=4096 search.line_tokens=8192 search.generations=0)

run() { # task, name, seed, then options
  local folder="outputs/studies/search/${1// /-}/$2-$3"
  folder=${folder//%/percent}
  [ -f "$folder/results.json" ] || "$python" -m evopress.run "${common[@]}" "hydra.run.dir=$folder" "seed=$3" "${@:4}"
}

for seed in ${SEEDS:-0 1 2}; do
  for task in "$@"; do
    guided=guided
    case "$task" in
    "3 bit") setting=(compress=gptq compress.group_size=64 budget=3bit) ;;
    "2.5 bit") setting=(compress=gptq compress.group_size=64 budget=3bit budget.target=2.5) ;;
    "60 % sparsity") setting=(compress=sparsegpt compress.num_levels=4 budget=sparsity60) ;;
    "25 % depth") setting=(compress=drop budget=drop25) guided=swaps ;;
    *) echo "unknown task: $task" >&2; exit 2 ;;
    esac
    run "$task" "$guided" "$seed" "${setting[@]}" "search=$guided"
    run "$task" evolution "$seed" "${setting[@]}" "${algorithm1[@]}"
    run "$task" random "$seed" "${setting[@]}" search=random search.candidates=96 search.tokens=1024
    [[ "$task" != *bit ]] || run "$task" guided-wide "$seed" "${setting[@]}" search=guided "${wide[@]}"
    [ "$seed" = 0 ] || continue
    run "$task" dp 0 "${setting[@]}" search=dp search.errors=measured search.tokens=512
  done
done
