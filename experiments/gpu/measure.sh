#!/usr/bin/env bash
# Measures the program on one GPU, with random weights of true shapes, without the hub and without a network:
#
#   bash experiments/gpu/measure.sh database [SHAPE [BLOCKS]]
#   bash experiments/gpu/measure.sh search [SHAPE [BLOCKS]]
#
# SHAPE is 1b, 8b (the default) or 70b. BLOCKS is how many blocks the model has, by default 4; 0 means all of them.
# `search` continues with the database of the first command. Then: python experiments/gpu/collect.py
set -euo pipefail
cd "$(dirname "$0")/../.."
part=${1:?database or search} shape=${2:-8b} blocks=${3:-4}
python=${PYTHON:-python3}
out=outputs/studies/gpu/$shape-$blocks
export PYTHONPATH=.:${PYTHONPATH:-}
mkdir -p "$out"
[ -e "$out/model/words.txt" ] || "$python" experiments/gpu/make_model.py "$out/model" "$shape" "$blocks"
"$python" experiments/gpu/rates.py | tee "$out/rates.json"

run() { # name, then options
  local name=$1
  shift
  "$python" -m evopress.run model=hf "model.name=random-$shape-$blocks" "model.path=$out/model" model.max_perplexity=1e9 \
    tracking=none data=text "data.source=$out/model/words.txt" data.window=2048 data.calibration_tokens=131072 \
    data.search_tokens=32768 data.validation_tokens=8192 data.test_tokens=16384 compress=gptq budget=3bit \
    "outputs=$out" "hydra.run.dir=$out/$name" "$@" | tee "$out/$name.log"
}

case $part in
database) run database 'stages=[plan,database]' ;;
search)
  run guided 'stages=[plan,database,search,tune,evaluate]' search=guided
  run evolution 'stages=[database,search,evaluate]' search=evolution search.generations=1 tune=none
  ;;
esac
