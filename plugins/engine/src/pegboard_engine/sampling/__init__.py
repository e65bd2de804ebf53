"""From logits to token ids, for all rows at once, and what a request may ask of it.

`params` validates what one request asks. `columns` holds it, a row for each slot of the running set, on the side that schedules;
`batch` is what one step sends to the side that computes, where `sampler` applies it. Both sides may be one process or two.

Nothing of a row's result depends on the other rows: its random number is a hash of its seed and output position, cut-offs are values
(ties stay or go together), and the inverse of the cumulative distribution runs over ids in their own order.
"""
