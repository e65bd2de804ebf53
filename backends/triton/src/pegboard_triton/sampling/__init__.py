"""From logits to token ids, without sorting the vocabulary. `choose` is the kernel, `search` what it finds thresholds with."""
