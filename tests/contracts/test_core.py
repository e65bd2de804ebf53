"""The core names nothing concrete.

The rule: no name, string or comment of core/src contains a word of `CONCRETE`; torch's own host and abstract devices, `cpu` and
`meta`, may be named. Two exceptions stand in `ALLOWED`, with a reason each, and a test fails when one of them is not needed any more.
`plugins/known.json` is data about this project's own distributions, read only to complete an error's advice.
"""

from __future__ import annotations

import re
import sys
from typing import Any

DEVICES = "cuda rocm hip xpu mps tpu npu hpu gaudi metal vulkan sycl opencl nccl rccl xccl cudnn cublas triton".split()
VENDORS = "nvidia amd intel apple google meta_ai microsoft huggingface_hub qualcomm".split()
MODELS = "llama llama3 smollm mistral mixtral qwen gemma phi olmo deepseek gpt bert falcon mamba whisper llava".split()
METHODS = (
    "lora dora qlora rslora dpo ppo grpo kto orpo simpo rlhf sft distill distillation adamw lion muon awq gptq nf4 "
    "bitsandbytes galore neftune"
).split()
PRODUCTS = (
    "gguf vllm sglang wandb tensorboard mlflow ray nixl flashinfer sdpa xgrammar llguidance trl torchtune".split()
)
CONCRETE = {*DEVICES, *VENDORS, *MODELS, *METHODS, *PRODUCTS}

ALLOWED: dict[tuple[str, str], str] = {}
"""(file, word) -> why it may stand there."""

STANDS_ALONE = re.compile(r"(?<![a-z])(" + "|".join(sorted(CONCRETE, key=len, reverse=True)) + r")(?![a-z])")


def found(text: str) -> list[str]:
    """Return the concrete words of a text; `LoraLinear` and `lora_a` count, `explorable` does not."""
    spread = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()
    return STANDS_ALONE.findall(spread)


def test_the_rule_sees_what_it_should() -> None:
    for text in (
        "class LoraLinear",
        "torch.cuda.is_available",
        "'LlamaForCausalLM'",
        "# as llama-3 does",
        "x_nccl",
        "lora",
    ):
        assert found(text), text
    for text in ("explorable", "sphinx", "emphasis", "intellect", "cpu", "meta", "array", "hipster", "graph"):
        assert not found(text), text


def test_the_core_names_nothing_concrete(core: Any) -> None:
    named = {
        (str(module), word): f"{module}:{line}: {text.strip()[:80]}"
        for module in core.modules
        for line, text in module.words()
        for word in found(text)
    }
    wrong = [where for key, where in named.items() if key not in ALLOWED]
    assert not wrong, "\n".join(wrong)
    assert not [key for key in ALLOWED if key not in named], "an exception is not needed any more"


def test_the_core_imports_its_declared_requirements_only(core: Any) -> None:
    modules = {
        "pluggy",
        "stevedore",
        "pydantic",
        "omegaconf",
        "safetensors",
        "click",
        "packaging",
        "torch",
        "yaml",
        "pydantic_core",
    }
    declared = {"pyyaml" if name == "yaml" else name.replace("_", "-") for name in modules}
    # YAML comes with OmegaConf, pydantic_core with pydantic.
    assert core.needs | {"pyyaml", "pydantic-core"} == declared
    allowed = {*modules, "pegboard", "__future__", *sys.stdlib_module_names}
    wrong = [
        f"{m} imports {name}" for m in core.modules for name in m.imports() if name.partition(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_interfaces_import_nothing_heavy(core: Any) -> None:
    allowed = {"__future__", "pegboard", *sys.stdlib_module_names}
    for module in core.modules:
        if "interfaces" in module.path.parts:
            wrong = [name for name in module.imports(everywhere=False) if name.partition(".")[0] not in allowed]
            assert not wrong, f"{module} imports {wrong}"


def test_layers_know_neither_plugins_nor_config(core: Any) -> None:
    rooms = ("pegboard.plugins", "pegboard.config", "pegboard.commands", "pegboard.cli", "pegboard.build")
    for module in core.modules:
        if {"nn", "reference"} & set(module.path.parts):
            wrong = [name for name in module.imports() if name.startswith(rooms)]
            assert not wrong, f"{module} imports {wrong}"


def test_a_kind_is_one_file_with_one_interface(core: Any) -> None:
    from pegboard.plugins.groups import GROUPS

    files = {module.path.stem for module in core.modules if module.path.parent.name == "interfaces"} - {"__init__"}
    assert files == set(GROUPS)
    assert all(group.version >= 1 for group in GROUPS.values())
