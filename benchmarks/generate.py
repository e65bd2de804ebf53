"""Generation here and in other projects, in turn, each in a process of its own, on the workloads of `peg bench offline`.

    python benchmarks/generate.py [--model FOLDER] [--dtype bfloat16] [--threads 2] [--rounds 3] [--cpus 0,2]
        [--workloads stream prompt2k batch32 prefix32] [--peers transformers llama.cpp llama.cpp-q4_1] [--quantizer int8]
        [--json FILE]

Without a model it makes one of SmolLM2-135M's shape with random weights. All take greedy tokens for random ids at fixed lengths.
transformers runs a static batch, padded on the left; llama.cpp, through llama-cpp-python, one request after another, with the
shared beginning of prefix32 kept. The peers are not requirements of any member: install what you compare with (`transformers`;
`llama-cpp-python` and `gguf`). Rates are tokens a second, prefix32 is seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
WORKLOADS = ("stream", "prompt2k", "batch32", "prefix32")
PEERS = ("transformers", "llama.cpp", "llama.cpp-q4_1")
Requests = list[tuple[list[int], int]]


def make_model(folder: Path) -> None:
    """Write a model of `SHAPE` with random weights, and a tokenizer that nobody asks for text."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).save_pretrained(folder)
    Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


def make_gguf(folder: Path, peer: str) -> Path:
    """Write the model of a folder as a GGUF file without a vocabulary, in what the peer's name says.

    bfloat16; or Q4_1 with the embedding in Q8_0, as such files usually are.
    """
    import gguf
    import torch
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    target = folder / f"{peer}.gguf"
    types, bf16 = gguf.GGMLQuantizationType, peer == "llama.cpp"
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        target_name = names.get_name(name, try_suffixes=(".weight",))
        if tensor.dim() == 1:
            writer.add_tensor(target_name, tensor.float().numpy())
            continue
        # Which rows of q and k belong together differs there; it changes no time.
        raw, kind = tensor.to(torch.bfloat16).view(torch.uint8).numpy(), types.BF16
        if not bf16:
            kind = types.Q8_0 if "embed" in name else types.Q4_1
            raw = gguf.quants.quantize(tensor.float().numpy(), kind)
        writer.add_tensor(target_name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def ours(args: argparse.Namespace) -> dict[str, float]:
    """Run `peg bench offline` and return rates by workload, the peak memory in MB and the seconds to the first token."""
    command = [sys.executable, "-m", "pegboard", "bench", "offline", args.model, "--json", "--dtype", args.dtype]
    command += ["--threads", str(args.threads), "--repetitions", "1", "--platform", "cpu", "--kv-memory", "512MiB"]
    command += ["--max-model-len", "4096"]
    if args.quantizer:
        command += ["--quantizer", args.quantizer]
    command += [part for name in args.workloads for part in ("--workload", name)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    told = json.loads(done.stdout)
    return {row["workload"]: row["value"] for row in told["workloads"]} | {
        "peak MB": told["peak_rss_mb"],
        "first token s": told["load_and_first_token_s"],
    }


def theirs(args: argparse.Namespace, peer: str) -> dict[str, float]:
    """The same in another project, in a child process."""
    command = [sys.executable, __file__, "--child", peer, "--model", args.model, "--dtype", args.dtype]
    command += ["--threads", str(args.threads), "--workloads", *args.workloads]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def child(args: argparse.Namespace) -> None:
    """Measure one peer and print its figures."""
    from pegboard_engine.workloads import WORKLOADS as DEFINED

    began = time.perf_counter()
    run = (_transformers if args.child == "transformers" else _llama)(args)
    run([([5] * 8, 1)])
    told = {"first token s": time.perf_counter() - began}
    run([([7] * 64, 16)])
    for name in args.workloads:
        workload = DEFINED[name]
        requests = workload.requests(0)
        told[name] = workload.metric(requests, *run(requests))
    told["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(told))


def _transformers(args: argparse.Namespace) -> Callable[[Requests], tuple[float, float]]:
    """Return a function: requests -> (seconds to the first token, in all)."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def seconds(requests: Requests, output: int) -> float:
        longest = max(len(prompt) for prompt, _ in requests)
        ids = torch.zeros(len(requests), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, (prompt, _) in enumerate(requests):
            ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = torch.tensor(prompt), 1
        began = time.perf_counter()
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=output, min_new_tokens=output, do_sample=False
        )
        return time.perf_counter() - began

    def run(requests: Requests) -> tuple[float, float]:
        most = max(output for _, output in requests)
        first = seconds(requests, 1) if len(requests) == 1 and most > 1 else 0.0
        return first, seconds(requests, most)

    return run


def _llama(args: argparse.Namespace) -> Callable[[Requests], tuple[float, float]]:
    """As for transformers; the beginning that consecutive prompts share is not computed again."""
    import llama_cpp
    import numpy as np

    path = Path(args.model)
    model = llama_cpp.Llama(
        str(path / f"{args.child}.gguf"),
        n_ctx=4096,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        n_batch=2048,
        n_ubatch=512,
        verbose=False,
    )
    held: list[int] = []

    def next_id() -> int:
        logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),))))

    def run(requests: Requests) -> tuple[float, float]:
        began, first = time.perf_counter(), 0.0
        for prompt, output in requests:
            shared = 0
            while shared < min(len(held), len(prompt) - 1) and held[shared] == prompt[shared]:
                shared += 1
            model.n_tokens = shared  # what lies behind is dropped by the next call
            if not shared:
                model.reset()
                model._ctx.kv_cache_clear()
            model.eval(prompt[shared:])
            token = next_id()
            first = first or time.perf_counter() - began
            for _ in range(output - 1):
                model.eval([token])
                token = next_id()
            held[:] = prompt
        return first, time.perf_counter() - began

    return run


def main() -> None:
    """Run the rounds and print medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpus", help="processors to run on, such as 0,2")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["stream", "prompt2k"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["transformers"])
    parser.add_argument("--quantizer", help="for ours only")
    parser.add_argument("--json", help="write all figures to a file")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_model(Path(args.make))
        return
    if args.child:
        child(args)
        return
    if args.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in args.cpus.split(",")})
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            # In a process of its own: what this one has held would count as the peak of those that it starts.
            subprocess.run([sys.executable, __file__, "--make", folder], check=True, stderr=subprocess.DEVNULL)
            args.model = folder
        for peer in args.peers:
            if peer != "transformers" and not (Path(args.model) / f"{peer}.gguf").exists():
                make_gguf(Path(args.model), peer)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ("pegboard", *args.peers)}
        for _ in range(args.rounds):
            rounds["pegboard"].append(ours(args))
            for peer in args.peers:
                rounds[peer].append(theirs(args, peer))
    if args.json:
        Path(args.json).write_text(json.dumps(rounds, indent=1))
    print(
        f"{args.dtype}, {args.threads} threads, medians of {args.rounds} rounds; in brackets: pegboard is so many times better"
    )
    print(f"{'':14} {'pegboard':>10}" + "".join(f"{peer:>22}" for peer in args.peers))
    for name in (*args.workloads, "first token s", "peak MB"):
        middle = {who: statistics.median(one[name] for one in told) for who, told in rounds.items()}
        lower = name in ("prefix32", "first token s", "peak MB")
        line = f"{name:14} {middle['pegboard']:>10.2f}"
        for peer in args.peers:
            better = middle[peer] / middle["pegboard"] if lower else middle["pegboard"] / middle[peer]
            line += f"{middle[peer]:>13.2f} ({better:5.2f})"
        print(line)


if __name__ == "__main__":
    main()
