"""PEFT loads what the scaffolded adapter writes, and computes the same."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pegboard_sdk.scaffold.names import choose_names
from pegboard_sdk.scaffold.write import write_package
from pegboard_sdk.toys.model import TINY, RandomFiles, TinyFamily, logits, random_model

pytestmark = pytest.mark.peers

IDS = torch.tensor([5, 250, 17, 17, 99])


def test_peft_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft
    import transformers

    package = write_package(choose_names("acme-scale", "adapter"), tmp_path)
    monkeypatch.syspath_prepend(str(package / "src"))
    options = importlib.import_module("pegboard_acme_scale.options").Options(targets=["q_proj", "v_proj", "up_proj"])
    adapter = importlib.import_module("pegboard_acme_scale.adapter").AcmeScaleAdapter(options)
    built = random_model(adapter=adapter)
    adapter.load(built.model, {name: 1 + torch.randn_like(t) / 3 for name, t in adapter.tensors(built.model).items()})
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config("tiny")))
    save_file(dict(adapter.tensors(built.model)), folder / "adapter_model.safetensors")

    config = transformers.LlamaConfig(**{key: value for key, value in TINY.items() if key != "architectures"})
    plain = transformers.LlamaForCausalLM(config).double()
    tensors = RandomFiles(TinyFamily(), TINY).tensors
    plain.load_state_dict({name: tensor.load() for name, tensor in tensors.items()})
    theirs = peft.PeftModel.from_pretrained(plain, str(folder))
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS[None]).logits[0], logits(built, IDS), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(theirs(IDS[None]).logits[0], logits(random_model(), IDS))
