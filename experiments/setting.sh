# Sourced by studies on SmolLM2-135M-Instruct and WikiText-2, from the top folder: interpreter and common settings.
# shellcheck shell=bash disable=SC2034 # the scripts that source it use them
: "${TEXT:?set TEXT to the folder with wikitext2_valid.txt and wikitext2_test.txt}"
python=${PYTHON:-.venv/bin/python}
common=(model=smollm2 data=text "data.source=$TEXT/wikitext2_valid.txt" "data.test_source=$TEXT/wikitext2_test.txt"
  data.window=512 data.calibration_tokens=16384 data.search_tokens=131072 data.validation_tokens=8192
  data.test_tokens=8192 tune=none)
algorithm1=(search=evolution search.offspring=16 'search.stages=[{survivors:4,tokens:512},{survivors:1,tokens:2048}]'
  search.generations=16 search.initial_candidates=16 search.initial_tokens=512) # the paper's shape on fewer tokens
