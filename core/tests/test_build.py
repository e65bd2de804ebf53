from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.build import build_model, choose_platform, find_family, open_model, parse_dtype
from pegboard.errors import ConfigError, ModelError, PluginError
from pegboard.fresh import FreshPrompts
from pegboard.interfaces.platform import PromptChoice
from pegboard.nn import Linear
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec

Files = Callable[..., Any]


def test_builds_and_computes(registry: Registry, toy_files: Files) -> None:
    built = build_model(registry, toy_files())
    assert (built.platform_name, built.attention_name, built.dtype) == ("toy", "toy", torch.float64)
    ids = torch.tensor([1, 2, 3, 4, 5])
    whole = built.model(ids, built.context([5], torch.arange(5)))
    ragged = built.model(ids, built.context([3, 2], torch.tensor([0, 1, 2, 0, 1])))
    assert whole.shape == (5, 16) and built.model.head(whole).shape == (5, 31)
    torch.testing.assert_close(whole[:3], ragged[:3])
    assert not torch.allclose(whole[3:], ragged[3:])


def test_every_tensor_is_read_once_and_lands_under_its_name(registry: Registry, toy_files: Files) -> None:
    files = toy_files()
    built = build_model(registry, files)
    parameters = dict(built.model.named_parameters())
    assert parameters.keys() == files.tensors.keys()
    for name, held in files.tensors.items():
        assert held.loads == 1
        assert torch.equal(parameters[name], held.value), name


def test_fused_projections_share_one_storage(registry: Registry, toy_files: Files) -> None:
    attention = build_model(registry, toy_files()).model.attentions[0]
    starts = [layer.weight.untyped_storage().data_ptr() for layer in (attention.q_proj, attention.k_proj)]
    assert starts[0] == starts[1]


def test_phase_decides_what_is_trainable(registry: Registry, toy_files: Files) -> None:
    trained = build_model(registry, toy_files(), phase="train").model
    served = build_model(registry, toy_files()).model
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert not any(parameter.requires_grad for parameter in served.parameters())


def test_fresh_prompts_are_computed_apart_where_the_platform_says_so(
    registry: Registry, toy_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = type(choose_platform(registry)[1])
    choice = PromptChoice("toy2", 3, True, "it is faster")
    monkeypatch.setattr(platform, "prompt_attention", lambda self, spec, dtype, index=0: [choice], raising=False)
    assert build_model(registry, toy_files()).attention_name == "toy"  # not installed
    specs = {(r.kind, r.name): registry.spec(r.kind, r.name) for r in registry.records()}
    both = Registry.of(specs | {("attention", "toy2"): specs["attention", "toy"]})
    built = build_model(both, toy_files())
    assert built.attention_name == "toy+toy2"
    assert isinstance(built.attention, FreshPrompts) and built.attention.tokens == 3
    ids = torch.tensor([1, 2, 3, 4, 5])
    alone = build_model(registry, toy_files())
    outs = [x.model(ids, x.context([2, 3], torch.tensor([0, 1, 0, 1, 2]))) for x in (alone, built)]
    torch.testing.assert_close(*outs)
    assert build_model(both, toy_files(), attention="toy").attention_name == "toy"
    assert build_model(both, toy_files(), phase="train").attention_name == "toy"


def test_tied_head_reads_the_embedding(registry: Registry, toy_files: Files) -> None:
    files = toy_files(tie_word_embeddings=True)
    assert "lm_head.weight" not in files.tensors
    model = build_model(registry, files).model
    assert model.head.matrix is model.model.embed_tokens.weight


def test_head_stored_beside_a_tied_embedding_is_left_alone(registry: Registry, toy_files: Files) -> None:
    files, untied = toy_files(tie_word_embeddings=True), toy_files()
    files.tensors["lm_head.weight"] = untied.tensors["lm_head.weight"]
    build_model(registry, files)
    assert untied.tensors["lm_head.weight"].loads == 0


def test_dropped_names_are_ignored(registry: Registry, toy_files: Files) -> None:
    files = toy_files()
    files.tensors["model.stale"] = next(iter(files.tensors.values()))
    build_model(registry, files)


def test_names_every_wrong_tensor_at_once(registry: Registry, toy_files: Files) -> None:
    files = toy_files()
    files.tensors["model.extra.weight"] = files.tensors.pop("model.norm.weight")
    files.tensors["model.layers.1.mlp.up_proj.weight"].shape = (2, 3)
    with pytest.raises(ModelError) as caught:
        build_model(registry, files)
    message = str(caught.value)
    for part in ("toy-model", "model.norm.weight", "model.extra.weight", "model.layers.1.mlp.up_proj.weight"):
        assert part in message


def test_dtype(registry: Registry, toy_files: Files) -> None:
    built = build_model(registry, toy_files(), dtype="bfloat16")
    assert {parameter.dtype for parameter in built.model.parameters()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match="int7") as caught:
        parse_dtype("int7")
    assert "bfloat16" in str(caught.value.fix)


def test_attention_that_cannot_do_it_says_why(registry: Registry, toy_files: Files) -> None:
    with pytest.raises(PluginError, match=r"absent: not installed; toy: no sliding windows"):
        build_model(registry, toy_files(window=4))


def test_attention_by_unknown_name(registry: Registry, toy_files: Files) -> None:
    with pytest.raises(PluginError, match="tyo"):
        build_model(registry, toy_files(), attention="tyo")


def test_unknown_architecture(registry: Registry) -> None:
    with pytest.raises(PluginError, match="MambaForCausalLM"):
        find_family(registry, {"architectures": ["MambaForCausalLM"], "model_type": "mamba2"})


@pytest.mark.parametrize("architectures", [3, "ToyForCausalLM", [3], {"a": 1}])
def test_architectures_that_are_no_list_of_names(registry: Registry, architectures: object) -> None:
    with pytest.raises(ModelError, match="a list of names is needed"):
        find_family(registry, {"architectures": architectures})


def test_model_type_serves_where_architectures_are_missing(registry: Registry) -> None:
    assert type(find_family(registry, {"model_type": "toy"})).__name__ == "ToyFamily"


def test_platform_by_name_and_automatically(registry: Registry) -> None:
    assert choose_platform(registry, "toy")[0] == choose_platform(registry)[0] == "toy"
    with pytest.raises(PluginError, match="ty"):
        choose_platform(registry, "ty")


def test_platform_that_replaces_an_unknown_op(
    toy_files: Files, monkeypatch: pytest.MonkeyPatch, registry: Registry
) -> None:
    platform = type(registry.create("platform", "toy"))
    monkeypatch.setattr(platform, "kernels", lambda *args: {"rms_nrom": torch.add})
    with pytest.raises(PluginError, match=r"platform 'toy' replaces the op 'rms_nrom'.*rms_norm"):
        build_model(registry, toy_files())


def test_platform_kernels_are_used(toy_files: Files, monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
    calls = []

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(weight.shape)
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(type(registry.create("platform", "toy")), "kernels", lambda *args: {"linear": linear})
    built = build_model(registry, toy_files())
    built.model(torch.tensor([1]), built.context([1], torch.arange(1)))
    assert len(calls) == 2 * 4  # per layer: qkv, o, gate-up, down


@pytest.mark.parametrize(
    ("location", "kind", "message"),
    [
        ("./nowhere", ModelError, "no file or folder ./nowhere"),
        ("a/b/c", ModelError, "no file or folder a/b/c"),
        ("owner/name", PluginError, "opens hub ids"),
    ],
)
def test_open_model_errors(registry: Registry, location: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        open_model(registry, location)


def test_open_model_picks_the_format_by_suffix_and_marker(tmp_path: Path) -> None:
    door = PluginSpec(
        kind="format", target=f"{__name__}:EchoFormat", capabilities={"suffixes": [".toy"], "markers": ["toy.json"]}
    )
    registry = Registry.of({("format", "echo"): door})
    (tmp_path / "toy.json").write_text("{}")
    (tmp_path / "x.toy").write_text("")
    (tmp_path / "empty").mkdir()
    assert open_model(registry, str(tmp_path)) == str(tmp_path)
    assert open_model(registry, str(tmp_path / "x.toy")) == str(tmp_path / "x.toy")
    with pytest.raises(PluginError, match=r"files ending in '\.json'"):
        open_model(registry, str(tmp_path / "toy.json"))
    with pytest.raises(ModelError, match=r"none of toy\.json is in it"):
        open_model(registry, str(tmp_path / "empty"))


class EchoFormat:
    """Opens a location as its own name."""

    def open(self, location: str, *, revision: str | None = None) -> Any:
        return location


def test_plain_layers_after_a_cast(registry: Registry, toy_files: Files) -> None:
    built = build_model(registry, toy_files())
    ids, ctx = torch.tensor([1, 2]), built.context([2], torch.arange(2))
    before = built.model(ids, ctx)
    after = built.model.float()(ids, built.context([2], torch.arange(2)))
    assert after.dtype == torch.float32
    torch.testing.assert_close(after.double(), before, atol=1e-5, rtol=1e-5)
    assert all(isinstance(a.q_proj, Linear) and not a.qkv.fused for a in built.model.attentions)
