#!/usr/bin/env bash
# Runs searches on one database per task, on SmolLM2-135M-Instruct and WikiText-2. Skips finished runs:
#
#   TEXT=folder with wikitext2_valid.txt and wikitext2_test.txt
#   SEEDS="0 1 2" SEARCHES="guided short evolution" bash experiments/search/measure.sh "3 bit" "2.5 bit" "60 % sparsity" "25 % depth"
#
# then, for each task: python experiments/search/measure.py --task "3 bit" --at 60000 300000 -- outputs/studies/search/3-bit/*
set -euo pipefail
cd "$(dirname "$0")/../.."
. experiments/setting.sh
common+=('stages=[database,search]')

setting_of() { # task
  case "$1" in
  "3 bit") echo compress=gptq compress.group_size=64 budget=3bit ;;
  "3 bit, batches of "*) # the batch size changes the last digits of Hessians, and so the database
    echo compress=gptq compress.group_size=64 budget=3bit "evaluator.batch_tokens=${1##* }" "outputs=outputs/batches${1##* }"
    ;;
  *" bit") echo compress=gptq compress.group_size=64 budget=3bit "budget.target=${1% bit}" ;;
  "60 % sparsity") echo compress=sparsegpt compress.num_levels=4 budget=sparsity60 ;;
  "25 % depth") echo compress=drop budget=drop25 ;;
  *) echo "unknown task: $1" >&2; return 2 ;;
  esac
}

options_of() { # search, task
  case "$1 $2" in
  "guided "*) echo search=guided_long ;; # called guided when it was the default
  "generations "*) echo search=guided search.rounds=4 search.generations=6 search.refinements=0 ;;
  "short 25 % depth") echo search=guided search.rounds=1 search.generations=0 search.table_tokens=1024 search.refinements=0 ;;
  "short "*)
    echo search=guided search.rounds=1 search.generations=0 search.table_tokens=768 search.line_tokens=512 search.refinements=0
    ;;
  "evolution "*) echo "${algorithm1[@]}" ;;
  "long "*) echo "${algorithm1[@]}" search.generations=64 ;;
  "super_fast "*) echo search=super_fast search.generations=8 search.initial_candidates=16 search.initial_tokens=512 ;;
  "random "*) echo search=random search.candidates=64 search.tokens=1024 ;;
  "dp "*) echo search=dp search.errors=measured search.tokens=128 ;;
  "greedy 25 % depth") echo search=greedy search.tokens=256 ;;
  "greedy "*) echo search=greedy search.tokens=128 search.per_step=105 ;;
  *) echo "unknown search: $1" >&2; return 2 ;;
  esac
}

for task in "$@"; do
  setting=$(setting_of "$task")
  for seed in ${SEEDS:-0 1 2}; do
    for search in ${SEARCHES:-guided short evolution super_fast random}; do
      options=$(options_of "$search" "$task")
      folder="outputs/studies/search/$(tr -s ' %,' '-' <<<"$task")/$search-$seed"
      # shellcheck disable=SC2086 # words are options
      [ -f "$folder/profile.json" ] || "$python" -m evopress.run "${common[@]}" "hydra.run.dir=$folder" "seed=$seed" \
        $setting $options
    done
  done
done
