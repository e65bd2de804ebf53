"""Weights in 4 bits: values, gradients and files are those of bitsandbytes and torchao; adapters over them are PEFT's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pegboard.cli import run_cli
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.weights import read_folder, read_safetensors
from pegboard_lora import LoraAdapter
from pegboard_lora.options import LoraOptions
from pegboard_nf4.layers import Nf4Linear
from pegboard_nf4.matrix import Nf4Matrix, nf4_table, quantise
from pegboard_nf4.ops import nf4_linear

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

IDS = [3, 14, 15, 92, 65, 35, 89, 79]


def theirs(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def in_4_bits(double: bool) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )


def ours(folder: Path, quantizer: Any = None) -> Any:
    registry = Registry.discover()
    return open_any(registry, str(folder)).build(registry, platform="cpu", dtype="float32", quantizer=quantizer)


@torch.no_grad()
def logits(built: Any) -> torch.Tensor:
    return built.model.head(built.model(torch.tensor(IDS), built.context([len(IDS)], torch.arange(len(IDS)))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 64), (48, 1536), (5, 24)])
@pytest.mark.parametrize("double", [True, False])
def test_codes_and_values_are_those_of_bitsandbytes(dtype: torch.dtype, shape: tuple[int, int], double: bool) -> None:
    import bitsandbytes.functional as bnb

    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.02).to(dtype)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
    expected = bnb.dequantize_4bit(codes, state)
    made = quantise(weight, double=double)
    assert torch.equal(made.packed, codes.view(-1))
    if not double:
        assert torch.equal(made.dequantise(dtype), expected)
        return
    read = Nf4Matrix(shape, codes.view(-1), state.absmax, state.state2.absmax, state.offset)
    assert torch.equal(read.dequantise(dtype), expected)
    # Their search on the host takes a neighbour of the nearest code now and then: ours is never further from the weight's own scale.
    true = weight.float().reshape(-1)
    of_block = torch.nn.functional.pad(true, (0, -true.numel() % 64)).view(-1, 64).abs().amax(1)
    assert ((made.plain_scales() - of_block).abs() <= (read.plain_scales() - of_block).abs() + 1e-7).all()


def test_values_and_products_are_those_of_torchao() -> None:
    """torchao writes the table with four digits and rounds scales to other codes; with its scales in the place of ours, all but the few
    weights that lie between two values of the table are equal.
    """
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import linear_nf4, to_nf4

    weight = torch.randn(256, 64, generator=torch.Generator().manual_seed(2)) * 0.02
    other = to_nf4(weight, 64, 256)
    exact = quantise(weight, double=False)
    scales = other.dequantize_scalers(other.quantized_scalers, other.quantization_factor, other.scaler_block_size)
    matrix = Nf4Matrix((256, 64), exact.packed, scales)
    torch.testing.assert_close(nf4_table().values, other.nf4, rtol=0, atol=5e-5)
    off = (matrix.dequantise(torch.float32) - other.get_original_weight()).view(-1, 64).abs()
    assert (off <= 5.1e-5 * scales[:, None]).float().mean() > 0.999
    results = []
    for product in (lambda x: linear_nf4(x, other), lambda x: nf4_linear(x, matrix, None, F.linear)):
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
        out = product(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for theirs_, ours_ in zip(*results, strict=True):
        assert (ours_ - theirs_).norm() < 0.01 * theirs_.norm()


@pytest.mark.parametrize("double", [True, False])
def test_a_folder_of_transformers_is_read(tmp_path: Path, even_llama: Path, double: bool) -> None:
    model = theirs(even_llama, quantization_config=in_4_bits(double))
    model.save_pretrained(tmp_path / "saved")
    built = ours(tmp_path / "saved")
    assert any(isinstance(module, Nf4Linear) for module in built.model.modules())
    with torch.no_grad():
        right = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits(built), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("double", [True, False])
def test_transformers_reads_what_is_written(tmp_path: Path, even_llama: Path, double: bool) -> None:
    quantizer = {"use": "nf4", "double": double}
    if double:
        assert run_cli(["convert", str(even_llama), str(tmp_path / "4"), "--to", "hf", "--quantizer", "nf4"]) == 0
    else:
        from pegboard.quantised import write_quantised

        registry = Registry.discover()
        write_quantised(ours(even_llama), registry.create("quantizer", quantizer), tmp_path / "4", {}, torch.float32)
    model = theirs(tmp_path / "4")
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    with torch.no_grad():
        right = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits(ours(tmp_path / "4")), right, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(ours(even_llama, quantizer)), right, rtol=1e-4, atol=1e-4)
    # And back: full precision is what transformers dequantises to.
    assert run_cli(["convert", str(tmp_path / "4"), str(tmp_path / "full"), "--to", "hf"]) == 0
    assert "quantization_config" not in json.loads((tmp_path / "full" / "config.json").read_text())
    plain = dict(model.dequantize().named_parameters())
    for name, lazy in read_folder(tmp_path / "full").items():
        torch.testing.assert_close(lazy.load(), plain[name].detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("stored", [True, False])
def test_the_gradients_of_an_adapter_are_pefts(tmp_path: Path, even_llama: Path, stored: bool) -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    from pegboard.build import build_model, open_model

    folder = even_llama
    if stored:
        theirs(even_llama, quantization_config=in_4_bits(True)).save_pretrained(tmp_path / "saved")
        folder = tmp_path / "saved"
    registry = Registry.discover()
    adapter = LoraAdapter(LoraOptions(rank=4, alpha=8, targets="all-linear"))
    built = build_model(
        registry,
        open_model(registry, str(folder)),
        platform="cpu",
        dtype="float32",
        adapter=adapter,
        quantizer=None if stored else registry.create("quantizer", {"use": "nf4", "double": False}),
        phase="train",
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in built.model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    model = theirs(folder, **({} if stored else {"quantization_config": in_4_bits(False)}))
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    peft = get_peft_model(model, config)
    given = {name: tensor.clone() for name, tensor in adapter.tensors(built.model).items()}
    assert not set_peft_model_state_dict(peft, given).unexpected_keys
    ids = torch.tensor(IDS)
    right = peft(ids[None]).logits[0]
    F.cross_entropy(right[:-1], ids[1:]).backward()
    mine = built.model.head(built.model(ids, built.context([len(IDS)], torch.arange(len(IDS)))))
    F.cross_entropy(mine[:-1], ids[1:]).backward()
    torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    expected = {name: p.grad for name, p in peft.named_parameters() if p.requires_grad}
    found = 0
    for name, parameter in built.model.named_parameters():
        if parameter.requires_grad:
            peer = f"base_model.model.{name}".replace("lora_a", "lora_A.default.weight")
            peer = peer.replace("lora_b", "lora_B.default.weight")
            torch.testing.assert_close(parameter.grad, expected[peer], rtol=2e-4, atol=1e-6)
            found += 1
    assert found == len(expected) == 28


def test_a_qlora_run_loads_and_merges_as_in_peft(
    tmp_path: Path, even_llama: Path, train_on: Callable[..., Path]
) -> None:
    import peft

    theirs(even_llama, quantization_config=in_4_bits(True)).save_pretrained(tmp_path / "saved")
    run = train_on(tmp_path / "run", tmp_path / "saved")
    tensors = read_safetensors(run / "final" / "adapter_model.safetensors")
    assert any(name.endswith("lora_B.weight") and bool(lazy.load().any()) for name, lazy in tensors.items())
    loaded = peft.PeftModel.from_pretrained(theirs(tmp_path / "saved"), run / "final").eval()
    with torch.no_grad():
        right = loaded(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits(ours(run / "final")), right, rtol=1e-4, atol=1e-4)
    assert run_cli(["merge", str(run / "final"), str(tmp_path / "merged"), "--dtype", "float32"]) == 0
    with torch.no_grad():
        merged = theirs(tmp_path / "merged")(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(merged, right, rtol=1e-4, atol=1e-4)


@pytest.fixture
def train_on(tmp_path: Path) -> Callable[..., Path]:
    """Run a few steps of `peg run sft --config qlora` on token-level data, with a byte tokenizer put beside the model."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    def run(output: Path, model: Path) -> Path:
        words = {word: index for index, word in enumerate(["<unk>", *"zero one two three four five six seven".split()])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(model / "tokenizer.json"))
        (model / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        text = tmp_path / "text.txt"
        text.write_text("one two three four five six seven\n\n" * 40)
        options = [f"model={model}", "data.use=text", f"data.path={text}", "data.format=text", f"output={output}"]
        small = ["model.dtype=float32", "model.platform=cpu", "steps=3", "batch.size=2", "batch.length=16"]
        stored = ["quantizer=null", "loggers=[jsonl]", "optimizer.lr=0.01", "schedule.warmup=0"]
        assert run_cli(["run", "sft", "--config", "qlora", *options, *small, *stored]) == 0
        return output

    return run
