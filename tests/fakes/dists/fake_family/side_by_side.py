"""A decoder whose attention and MLP read the same norm and are added together, under names of its own."""

from pegboard.interfaces.model import ModelFamily
from pegboard.nn import Attention, CausalLM, Decoder, GatedMLP, RMSNorm, Rotary
from pegboard.nn.layer import Layer
from pegboard.types import AttentionSpec, ParallelRule


class Block(Layer):
    """x + attention(norm(x)) + mlp(norm(x))."""

    def __init__(self, config, index):
        super().__init__()
        hidden, heads = config["width"], config["heads"]
        spec = AttentionSpec(index, heads, config["key_heads"], hidden // heads, (hidden // heads) ** -0.5)
        self.norm = RMSNorm(hidden, 1e-6)
        self.attention = Attention(hidden, spec)
        self.feed_forward = GatedMLP(hidden, config["inner"])

    def forward(self, x, ctx):
        normed = self.norm(x)
        return x + self.attention(normed, ctx) + self.feed_forward(normed, ctx)


class SideBySide(ModelFamily):
    """Builds it."""

    def build(self, config):
        blocks = [Block(config, index) for index in range(config["depth"])]
        decoder = Decoder(config["vocab_size"], config["width"], blocks, RMSNorm(config["width"], 1e-6))
        rotary = Rotary(config["width"] // config["heads"], 1000.0)
        return CausalLM(decoder, [rotary], tied=False, max_positions=config["reach"])

    def parallel_plan(self, config):
        return (ParallelRule("*", "replicate"),)
