"""Uploads: what can be refused is refused at start-up, and what is uploaded is loaded from the hub by its name."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from evopress.compressors.drop import Drop
from evopress.compressors.rtn import RTN
from evopress.export import Export, check_export, check_login, upload_checkpoints, write_checkpoints
from evopress.models.source import ModelSource
from evopress.pipeline import run_job
from evopress.runtime.json_files import read_json
from evopress.search.baselines.uniform import Uniform
from evopress.space.settings import SpaceSettings
from evopress.targets import jobs_by_target
from tests.exports import TOKENS, compressed, logits, searched_drops
from tests.hub_server import StandInHub, stand_in_hub
from tests.jobs import small_job
from tests.tiny_models import random_model, save_tiny, tiny, tokenizer

UPLOADED = Export(formats=["hf"], push_to_hub="lab/small", dtype="float32")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


def written(settings: Export, folder: Path) -> Path:
    searched = searched_drops(tiny("llama"), {(1, "attention"), (1, "mlp")})
    write_checkpoints(settings, searched, tokens=TOKENS, facts={}, folder=folder)
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["small", "lab/", "/small", "lab/small/more", "lab small/x"])
def test_a_name_without_a_user_or_organisation_is_refused(name):
    with pytest.raises(ValidationError, match=r"export\.push_to_hub is .* as in ORG/NAME"):
        Export(formats=["hf"], push_to_hub=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": []}, "export.push_to_hub uploads what export.formats names, but that is empty"),
        ({"formats": ["hf"], "push_to_hub": "lab/a--b"}, "the hub does not allow the name 'lab/a--b'"),
        ({"formats": ["hf", "zeroed"], "push_to_hub": "lab/small-"}, "the hub does not allow the name"),
        ({"formats": ["hf"], "push_to_hub": f"lab/{'x' * 100}"}, "the hub does not allow the name"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_at_start_up(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_export(Export(**{"push_to_hub": "lab/small", **settings}), Drop(), space=SpaceSettings())


def test_nobody_is_asked_for_a_login_without_an_upload(monkeypatch):
    monkeypatch.setattr("evopress.export.upload.HfApi", None)
    check_login(Export(formats=["hf"]))


def test_a_missing_login_is_noticed_before_anything_is_loaded(hub: StandInHub, monkeypatch, tmp_path):
    monkeypatch.setattr("evopress.export.upload.get_token", lambda: None)
    save_tiny("llama", tmp_path / "model")
    monkeypatch.setattr("evopress.preparation.load_model", None)
    job = small_job(tmp_path / "run", tmp_path / "outputs", tmp_path / "model", export=UPLOADED)
    with pytest.raises(ValueError, match=r"export\.push_to_hub.*nobody is logged in.*hf auth login.*HF_TOKEN"):
        run_job(job)


@pytest.mark.parametrize(
    ("account", "message"),
    [
        ({"auth": {"accessToken": {"role": "read"}}}, "the token of somebody may only read"),
        ({"orgs": []}, "somebody can only write to somebody: begin it with one of these"),
    ],
)
def test_a_login_that_may_not_write_is_refused(account, message, hub: StandInHub):
    check_login(UPLOADED)
    hub.account |= account
    with pytest.raises(ValueError, match=message):
        check_login(UPLOADED)


def test_a_hub_that_cannot_be_reached_is_noticed_at_start_up(hub: StandInHub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"export\.push_to_hub: the hub does not accept the login"):
        check_login(UPLOADED)


def test_an_uploaded_model_is_loaded_from_the_hub_as_its_card_says(hub: StandInHub, tmp_path):
    folder = written(UPLOADED, tmp_path)
    assert upload_checkpoints(UPLOADED, folder) == {"hf": f"{hub.address}/lab/small"}
    assert hub.repositories["lab/small"] == files_in(folder / "hf")
    assert hub.private == {"lab/small"}
    card = hub.repositories["lab/small"]["README.md"].decode()
    (command,) = re.findall(r'python -c "(.*from_pretrained.*)"', card)
    exec(command, {})
    model = AutoModelForCausalLM.from_pretrained("lab/small", dtype=torch.float32)
    local = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    assert torch.equal(logits(model), logits(local))
    assert AutoTokenizer.from_pretrained("lab/small")("hello")["input_ids"] == tokenizer()("hello")["input_ids"]


def test_several_formats_have_a_repository_each(hub: StandInHub, tmp_path):
    settings = Export(formats=["hf", "zeroed"], push_to_hub="lab/small", private=False)
    folder = written(settings, tmp_path)
    upload_checkpoints(settings, folder)
    assert hub.repositories.keys() == {"lab/small-hf", "lab/small-zeroed"} and not hub.private
    for name in ("hf", "zeroed"):
        assert hub.repositories[f"lab/small-{name}"] == files_in(folder / name)
        assert f"from_pretrained('lab/small-{name}')" in (folder / name / "README.md").read_text()


def test_an_upload_leaves_no_weights_of_an_earlier_one(hub: StandInHub, tmp_path):
    hub.repositories["lab/small"] = {
        "model-00001-of-00002.safetensors": b"old",
        "model.safetensors.index.json": b"old",
        "README.md": b"old",
        "notes.md": b"kept",
    }
    folder = written(UPLOADED, tmp_path)
    upload_checkpoints(UPLOADED, folder)
    assert hub.repositories["lab/small"] == {**files_in(folder / "hf"), "notes.md": b"kept"}


def test_every_target_has_a_repository_of_its_own(tmp_path):
    job = small_job(tmp_path, tmp_path, tmp_path, export=UPLOADED, targets=(3.0, 2.5), search=Uniform())
    space = compressed(tiny("llama"), RTN(bits=(2, 3, 4), group_size=32), tmp_path / "levels").space
    names = [target.export.push_to_hub for target in jobs_by_target(job, space)]
    assert names == ["lab/small-3.0bits", "lab/small-2.5bits"]


@pytest.mark.slow
def test_a_run_uploads_last_and_again_if_that_failed(hub: StandInHub, tmp_path, caplog):
    save_tiny("llama", tmp_path / "model")
    job = small_job(tmp_path / "run", tmp_path / "outputs", tmp_path / "model", export=UPLOADED, search=Uniform())
    hub.broken = True
    with pytest.raises(OSError, match=r"(?s)complete but could not be uploaded to lab/small: .*hf upload lab/small "):
        run_job(job)
    assert (tmp_path / "run" / "report.html").is_file() and "uploads" not in read_json(tmp_path / "run/results.json")
    hub.broken = False
    with caplog.at_level(logging.INFO):
        run_job(job)
    assert "the scores are already measured" in caplog.text
    results = read_json(tmp_path / "run" / "results.json")
    assert results["uploads"] == {"hf": f"{hub.address}/lab/small"}
    assert hub.repositories["lab/small"] == files_in(tmp_path / "run" / "checkpoints" / "hf")


@pytest.mark.slow
def test_a_compressed_model_of_the_hub_names_it(hub: StandInHub, tmp_path):
    random_model("llama").save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    hub.repositories["lab/base"] = files_in(tmp_path / "base")
    model = ModelSource(name="tiny", path="lab/base", dtype="float32", device="cpu", max_perplexity=1e6)
    job = small_job(tmp_path / "run", tmp_path / "outputs", tmp_path, export=UPLOADED, search=Uniform())
    run_job(replace(job, model=model))
    header = hub.repositories["lab/small"]["README.md"].decode().split("---")[1]
    assert "base_model: lab/base" in header and "license: mit" in header
