"""The tiny model, tokenizer and host platform that tests of plugins stand on. They compute exactly, and slowly."""
