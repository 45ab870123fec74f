"""From rows to scored pairs.

| module | what it does |
|---|---|
| `generator` | loads the models and calls the stages below, batch by batch |
| `batching` | groups rows into batches; the interface between a worker and a generator |
| `inputs` | decodes and checks a row's images and maps |
| `resizing` | brings images to the working size and back |
| `map_resizing` | brings a map to the size of its photo |
| `left_view` | makes the left view and finds its depth |
| `right_view` | makes the right view by diffusion, and its labels |
| `baseline_view` | makes the right view by a baseline instead |
| `compositing` | puts warped pixels of the left view over diffused ones |
| `hole_detail` | draws the holes of large photos again, at the photo's own resolution |
| `windows` | windows over holes, and the resolutions at which these are drawn again |
| `pair` | joins views and labels into a pair |
| `scoring` | measures, judges and compares a finished pair |
| `threads` | how many threads of a CPU single pairs are computed on |
"""
