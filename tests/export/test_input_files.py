"""What an export takes over from the model that it was made from: tokenizer, templates, processor, licences."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, Gemma3ForConditionalGeneration, Gemma3Processor, GenerationConfig

from evopress.compressors.rtn import RTN
from evopress.export import Export, write_checkpoints
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from tests.exports import TOKENS, compressed, needs_transformers4, run_in_transformers4
from tests.tiny_models import save_tiny, tokenizer

FORMATS = ("hf", "compressed_tensors", "gguf")
LEVELS = RTN(bits=(8, 4), group_size=32, symmetric=True)
OLD_TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "add_bos_token": False,
    "chat_template": "{{ messages[0]['content'] }}",
}
PUBLISHED = {
    "tokenizer_config.json": json.dumps(OLD_TOKENIZER),
    "special_tokens_map.json": '{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}',
    "added_tokens.json": "{}",
    "tokenizer.model": "sentencepiece",
    "vocab.json": "{}",
    "merges.txt": "",
    "additional_chat_templates/tool_use.jinja": "{{ 'tools' }}",
    "chat_template.jinja": "{{ messages[0]['content'] }}!",
    "LICENSE": "You may.",
}
BOI, EOI, IMAGE = "<boi>", "<eoi>", "<image>"
IMAGE_TOKENS = {"boi_token": BOI, "eoi_token": EOI, "image_token": IMAGE}


def export(source: Path, folder: Path, *formats: str) -> None:
    """Load the model of a folder and export it in formats."""
    settings = ModelSource(name="tiny", path=str(source), dtype="float32", device="cpu")
    searched = compressed(load_model(settings, folder), LEVELS, folder / "levels")
    write_checkpoints(Export(formats=list(formats)), searched, tokens=TOKENS, facts={}, folder=folder)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A model as people publish it."""
    folder = tmp_path_factory.mktemp("published")
    save_tiny("llama", folder)
    for name, text in PUBLISHED.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "tokenization_own.py").write_text("print()")
    GenerationConfig(temperature=0.6, top_p=0.9, do_sample=True, eos_token_id=[257, 258]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_every_file_of_the_tokenizer_is_taken_over(name, published, tmp_path):
    if name != "hf":
        pytest.importorskip(name, reason=f"needs the package {name}")
    export(published, tmp_path, name)
    for file in (*PUBLISHED, "tokenizer.json"):
        assert (tmp_path / name / file).read_bytes() == (published / file).read_bytes(), file
    assert not (tmp_path / name / "tokenization_own.py").exists()
    found, expected = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / name, published))
    assert found("naïve</s>")["input_ids"] == expected("naïve</s>")["input_ids"]
    assert found.chat_template == expected.chat_template
    assert found.chat_template.keys() == {"default", "tool_use"}


def test_generation_settings_are_taken_over(published, tmp_path):
    export(published, tmp_path, "hf")
    settings = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (settings.temperature, settings.top_p, settings.do_sample) == (0.6, 0.9, True)
    assert settings.eos_token_id == [257, 258]


def test_a_tokenizer_of_transformers_5_gets_the_form_that_both_releases_read(tmp_path):
    save_tiny("llama", tmp_path / "source")
    export(tmp_path / "source", tmp_path, "hf")
    read, written = (json.loads((tmp_path / name / "tokenizer_config.json").read_text()) for name in ("source", "hf"))
    assert read["tokenizer_class"] == "TokenizersBackend"
    assert written == {**read, "tokenizer_class": "PreTrainedTokenizerFast"}


def save_with_processor(folder: Path) -> None:
    """Gemma 3 with vision, and its processor."""
    pytest.importorskip("PIL", reason="needs the package pillow")
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    save_tiny("gemma3", folder)
    text = tokenizer()
    text.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS.values())})
    text._set_model_specific_special_tokens(IMAGE_TOKENS)
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    Gemma3Processor(image_processor=images, tokenizer=text, image_seq_length=4).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    ids = {f"{name}_index": text.convert_tokens_to_ids(token) for name, token in IMAGE_TOKENS.items()}
    config |= {"boi_token_index": ids["boi_token_index"], "eoi_token_index": ids["eoi_token_index"]}
    (folder / "config.json").write_text(json.dumps({**config, "image_token_id": ids["image_token_index"]}))


def test_an_export_with_vision_takes_images(tmp_path):
    from PIL import Image

    save_with_processor(tmp_path / "source")
    export(tmp_path / "source", tmp_path, "hf")
    image = Image.radial_gradient("L").convert("RGB")
    inputs = [
        AutoProcessor.from_pretrained(folder)(images=image, text=f"a {BOI} b", return_tensors="pt")
        for folder in (tmp_path / "source", tmp_path / "hf")
    ]
    assert all(torch.equal(inputs[0][name], inputs[1][name]) for name in inputs[0])
    model = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    other = {**inputs[1], "pixel_values": -inputs[1]["pixel_values"]}
    with torch.no_grad():
        assert not torch.equal(model(**inputs[1]).logits, model(**other).logits)


def test_the_settings_for_images_are_also_where_transformers_4_looks(tmp_path):
    save_with_processor(tmp_path / "source")
    assert not (tmp_path / "source" / "preprocessor_config.json").exists()
    export(tmp_path / "source", tmp_path, "hf")
    images = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert images["size"] == {"height": 28, "width": 28} and images["processor_class"] == "Gemma3Processor"
    named = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())["extra_special_tokens"]
    assert named == IMAGE_TOKENS
    shutil.copytree(tmp_path / "hf", tmp_path / "again" / "source")
    export(tmp_path / "again" / "source", tmp_path / "again", "hf")
    again = (tmp_path / "again" / "hf" / "preprocessor_config.json").read_text()
    assert json.loads(again) == images


IN_TRANSFORMERS4 = """
import sys
from PIL import Image
from transformers import AutoProcessor
inputs = AutoProcessor.from_pretrained(sys.argv[1])(images=Image.new("RGB", (40, 30)), text=sys.argv[2])
print(inputs["input_ids"][0], [len(image) for image in inputs["pixel_values"]])
"""


@needs_transformers4
@pytest.mark.slow
def test_transformers_4_opens_the_processor_of_an_export(tmp_path):
    from PIL import Image

    save_with_processor(tmp_path / "source")
    export(tmp_path / "source", tmp_path, "hf")
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    expected = processor(images=Image.new("RGB", (40, 30)), text=f"a {BOI} b")
    printed = run_in_transformers4(IN_TRANSFORMERS4, tmp_path / "hf", f"a {BOI} b")
    assert printed.strip() == f"{list(expected['input_ids'][0])} [3]"
