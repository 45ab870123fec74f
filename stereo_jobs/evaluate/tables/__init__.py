"""The tables of an evaluation.

| module | what it holds |
|---|---|
| `formats` | figures and tables; Markdown, CSV and LaTeX |
| `compare` | scores of methods on data sets (the paper's Tables 1 and 2), and sheets of pictures (Fig. 3 and 4) |
| `depth` | the switches of depth mode, by metrics without truth (Fig. 7) |
| `inpaint` | masked photos filled, by the masked share (Fig. 8) |
| `cost` | seconds and U-Net evaluations of a pair (Table 3) |
| `paper` | published figures |
"""
