"""Trains the model that comes with the package (`model=tiny`) from the docstrings of the Python standard library.

    python experiments/tiny/train.py [steps]

The text of `pydoc_data`, which evopress calibrates and tests on by default, is left out.
"""

import ast
import logging
import math
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parents[2] / "evopress" / "assets" / "tiny"
END = "<|endoftext|>"
WINDOW, BATCH, PEAK_RATE, SEED = 256, 8, 3e-3, 0


def docstrings() -> Iterator[str]:
    """All docstrings of the standard library, in the order of file names; nothing is imported."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(library.rglob("*.py")):
        if {"site-packages", "pydoc_data", "lib2to3"} & set(file.parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # files that are broken on purpose, for the library's own tests
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 60:
                    yield text


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def windows(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    ids = tokenizer(END.join(texts), add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    losses = [model(input_ids=part, labels=part).loss for part in tokens.split(BATCH)]
    return math.exp(float(torch.stack(losses).mean()))


def train(model: LlamaForCausalLM, tokens: torch.Tensor, steps: int) -> None:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=0.0, betas=(0.9, 0.95)
    )
    generator = torch.Generator().manual_seed(SEED)
    started = time.monotonic()
    for step in range(steps):
        rate = PEAK_RATE * min((step + 1) / 100, 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = tokens[torch.randint(len(tokens), (BATCH,), generator=generator)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            log.info("step %d of %d, loss %.3f, %.0f s", step, steps, loss.item(), time.monotonic() - started)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    texts = list(dict.fromkeys(docstrings()))
    tokenizer = train_tokenizer(texts)
    tokens = windows(texts, tokenizer)
    unseen = windows(list(topics.values())[:60], tokenizer)[:64]
    log.info("%d docstrings, %d tokens", len(texts), tokens.numel())
    model = new_model()
    train(model, tokens, steps)
    model = model.bfloat16().eval()
    model.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    log.info("%d weights, perplexity %.2f on pydoc topics", model.num_parameters(), perplexity(model.float(), unseen))


if __name__ == "__main__":
    main()
