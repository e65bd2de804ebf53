"""Attention over a paged cache: keys and values written, few queries over many keys, many queries over many keys."""
