"""Attention by torch's scaled_dot_product_attention."""
