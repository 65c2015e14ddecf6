"""Devices that evopress was never tried on are refused by name at start-up, or warned about."""

import logging

import pytest
import torch
from pydantic import ValidationError

import evopress
from evopress.models import devices
from evopress.models.devices import find_device
from evopress.models.source import ModelSource
from evopress.space.budget import Budget
from tests.tiny_models import random_model, tokenizer


def gpus(monkeypatch, number: int, hip: str | None = None) -> None:
    """A machine with so many GPUs, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(torch.version, "hip", hip)
    devices._warn_of_rocm.cache_clear()


@pytest.mark.parametrize("name", ["mps", "xpu", "xpu:1", "hip", "hpu", "mtia", "meta"])
def test_a_device_that_torch_knows_and_nobody_has_tried_is_refused_with_those_that_work(name):
    kind = name.partition(":")[0]
    with pytest.raises(
        ValidationError, match=rf"model\.device is '{name}'.*only on cpu and cuda.*{kind}: use auto, cpu"
    ):
        ModelSource(name="x", path="x", device=name)


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:3"])
def test_a_supported_device_is_accepted_before_it_is_known_whether_it_exists(name):
    assert ModelSource(name="x", path="x", device=name).device == name


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    gpus(monkeypatch, 0)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    gpus(monkeypatch, 2)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")


def test_a_gpu_that_does_not_exist_is_refused_with_what_there_is(monkeypatch):
    gpus(monkeypatch, 2)
    with pytest.raises(ValueError, match=r"model\.device is 'cuda:2' but the last GPU is cuda:1"):
        find_device("cuda:2")
    gpus(monkeypatch, 0)
    with pytest.raises(ValueError, match=r"model\.device is 'cuda' but there is no usable GPU: set model\.device=cpu"):
        find_device("cuda")


def test_an_amd_gpu_is_used_with_one_warning_that_names_it(monkeypatch, caplog):
    gpus(monkeypatch, 1, hip="6.4.2")
    assert {find_device("auto"), find_device("cuda")} == {torch.device("cuda")}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "ROCm, HIP 6.4.2" in caplog.text and "never been tested" in caplog.text
    assert find_device("cpu") == torch.device("cpu")


def test_a_gpu_of_nvidia_causes_no_warning(monkeypatch, caplog):
    gpus(monkeypatch, 1)
    find_device("auto")
    assert not caplog.records


def test_a_model_in_memory_on_such_a_device_is_refused(tmp_path):
    model = random_model("llama").to("meta")
    with pytest.raises(ValueError, match="the device of the model is 'meta'"):
        evopress.compress(model, tokenizer(), budget=Budget(metric="bits", target=3), folder=tmp_path)
