"""FlashInfer behind Pegboard's attention interface."""
