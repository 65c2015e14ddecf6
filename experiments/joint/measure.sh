#!/usr/bin/env bash
# Runs searches over widths alone, drops alone, and both together at the same bytes, on SmolLM2-135M-Instruct and
# WikiText-2. Skips finished runs:
#
#   TEXT=folder with wikitext2_valid.txt and wikitext2_test.txt
#   SEEDS="0 1 2" TASKS="3-bit 2.5-bit 2.25-bit" bash experiments/joint/measure.sh widths joint drops evolution
#
# then: python experiments/joint/collect.py
set -euo pipefail
cd "$(dirname "$0")/../.."
. experiments/setting.sh
common+=(compress=gptq compress.group_size=64 budget=size)

run() { # bytes, name, seed, then options
  local folder="outputs/studies/joint/$task/$2-$3"
  [ -f "$folder/results.json" ] ||
    "$python" -m evopress.run "${common[@]}" "budget.target=$1" "hydra.run.dir=$folder" "seed=$3" "${@:4}"
}

for seed in ${SEEDS:-0 1 2}; do
  for task in ${TASKS:-3-bit 2.5-bit 2.25-bit}; do
    case "$task" in # what evenly spread widths take
    3-bit) bytes=100446336B ;;
    2.5-bit) bytes=93707136B ;;
    2.25-bit) bytes=90337536B ;;
    esac
    for method in "$@"; do
      case "$method" in
      widths) run "$bytes" widths-guided "$seed" search=guided search.rounds=4 search.generations=8 search.refinements=0 space=any ;; # about as many tokens
      joint) run "$bytes" joint-guided "$seed" search=guided search.rounds=4 search.generations=6 search.refinements=0 space=joint ;;
      evolution)
        run "$bytes" widths-evolution "$seed" "${algorithm1[@]}" space=any
        run "$bytes" joint-evolution "$seed" "${algorithm1[@]}" space=joint
        ;;
      drops) # every layer at 3 bits, and as many sub-blocks dropped as the bytes demand
        run "$bytes" drops-guided "$seed" search=guided search.rounds=4 search.generations=0 search.refinements=0 space=joint compress.bits=[3]
        ;;
      *) echo "unknown method: $method" >&2; exit 2 ;;
      esac
    done
  done
done
