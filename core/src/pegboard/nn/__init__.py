"""Layers that every model family is built from. None of them branches on a device or a backend."""

from pegboard.nn.attention import Attention
from pegboard.nn.causal_lm import CausalLM, Decoder, DecoderLayer
from pegboard.nn.dense import dense_causal_lm, dense_parallel_plan
from pegboard.nn.embedding import Embedding
from pegboard.nn.experts import Experts
from pegboard.nn.head import Head
from pegboard.nn.linear import Linear, LinearGroup
from pegboard.nn.mlp import GatedMLP
from pegboard.nn.moe import MoE
from pegboard.nn.norm import RMSNorm
from pegboard.nn.rotary import Rotary

__all__ = [
    "Attention",
    "CausalLM",
    "Decoder",
    "DecoderLayer",
    "Embedding",
    "Experts",
    "GatedMLP",
    "Head",
    "Linear",
    "LinearGroup",
    "MoE",
    "RMSNorm",
    "Rotary",
    "dense_causal_lm",
    "dense_parallel_plan",
]
