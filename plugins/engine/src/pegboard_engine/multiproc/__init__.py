"""Executor `multiproc`: the model runs in a process of its own, one for each device.

`executor` is the parent's side, `worker` the other. Between them `channel` carries typed messages: JSON over a Unix socket, and arrays in
memory that both map (`segments`). `values` says what can travel; nothing is pickled.
"""
