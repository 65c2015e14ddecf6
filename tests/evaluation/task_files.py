"""Small tasks of lm-eval in a folder: their YAML files and their questions."""

import json
from pathlib import Path

QUESTIONS = [
    {"question": f"the {word} is", "choices": ["in the house", "of a kind"], "label": index % 2}
    for index, word in enumerate(["cat", "dog", "sun", "sea", "tree", "road"])
]

COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {validation: questions.jsonl}}
validation_split: validation
"""

CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
"""

ACCURACY = """
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""

TASKS = {
    "pairs": f"task: pairs\ntag: both{COMMON}{CHOICE}{ACCURACY}",
    "normed": f"""task: normed
tag: both{COMMON}{CHOICE}
metric_list:
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
""",
    "bare": f"task: bare\nnum_fewshot: 0{COMMON}{CHOICE}{ACCURACY}",
    "answers": f"""task: answers{COMMON}
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "x"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 2, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "#### ([0-9]+)", fallback: "[invalid]"}}
      - {{function: take_first}}
  - name: flexible-extract
    filter:
      - {{function: regex, regex_pattern: "#### ([0-9]+)", fallback: "x"}}
      - {{function: take_first}}
""",
    "rolling": f"""task: rolling{COMMON}
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
""",
    "whole": """group: whole
task: [pairs, normed]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
""",
    "unsafe": f"task: unsafe\nunsafe_code: true{COMMON}{CHOICE}{ACCURACY}",
    "unimportable": f"task: unimportable\nprocess_docs: !function needy.process{COMMON}{CHOICE}{ACCURACY}",
    "without_data": f"task: without_data{COMMON.replace('questions', 'nothing')}{CHOICE}{ACCURACY}",
}


def write_tasks(folder: Path) -> None:
    """Write all tasks, their questions, and a module that needs a package which is not installed."""
    folder.mkdir(parents=True)
    for name, content in TASKS.items():
        (folder / f"{name}.yaml").write_text(content)
    (folder / "needy.py").write_text("import not_installed_anywhere\n\ndef process(docs):\n    return docs\n")
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
