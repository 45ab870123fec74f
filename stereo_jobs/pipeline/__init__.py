"""The stages of one row, in order.

`batching` groups rows, `inputs` decodes them, `resizing` brings images to the working size, `left_view` makes the left
view, `right_view` or `baseline_view` the right view, with help of `compositing`; `pair` joins both and their labels,
`scoring` measures the pair. `generator` calls them.
"""
