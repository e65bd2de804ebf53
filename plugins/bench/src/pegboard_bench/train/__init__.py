"""`peg bench train`: training steps measured."""
