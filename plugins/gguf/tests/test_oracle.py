"""Decoders and the container against the `gguf` package."""

from __future__ import annotations

import numpy as np
import pytest

from pegboard_gguf.blocks import BLOCK_TYPES, BlockType

pytestmark = pytest.mark.peers

QUANTISED = [kind for kind in BLOCK_TYPES.values() if kind.decode is not None]


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_random_blocks_decode_as_the_oracle_does(kind: BlockType) -> None:
    quants = pytest.importorskip("gguf.quants")
    types = pytest.importorskip("gguf.constants").GGMLQuantizationType
    blocks = np.random.default_rng(kind.number).integers(0, 256, (1500, kind.block_bytes), dtype=np.uint8)
    out = np.empty((len(blocks), kind.block_size), np.float32)
    assert kind.decode is not None
    with np.errstate(all="ignore"):
        kind.decode(blocks, out)
        expected = quants.dequantize(blocks, types[kind.name])
    np.testing.assert_array_equal(out, expected.reshape(out.shape))


def test_every_type_that_the_oracle_decodes_is_known() -> None:
    traits = pytest.importorskip("gguf.quants")._type_traits
    known = {kind.name for kind in BLOCK_TYPES.values()}
    assert {kind.name for kind in traits} <= known


def test_block_sizes_are_the_oracles() -> None:
    constants = pytest.importorskip("gguf.constants")
    for number, kind in BLOCK_TYPES.items():
        assert (kind.block_size, kind.block_bytes) == constants.GGML_QUANT_SIZES[
            constants.GGMLQuantizationType(number)
        ], kind.name
