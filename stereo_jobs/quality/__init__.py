"""Measures how good a pair is, with and without a true right view, and decides whether it is accepted.

| module | what it holds |
|---|---|
| `config` | which metrics are measured, and the thresholds of acceptance |
| `measure` | all metrics of a pair that need no true right view, in one call |
| `verdict` | from metrics to accepted or rejected, with the reason |
| `working_size` | the size at which large pairs are measured |
| `labelled_pair` | a pair with its disparity label, as the metrics read it |
| `geometry` | do the views lie where the label says? |
| `appearance` | do the views look alike, and do the holes look like their surroundings? |
| `ghosts` | does anything of an object stay behind beside a hole? |
| `depth_agreement` | does the label agree with a depth estimator? |
| `matcher` | the stereo matcher (SGBM), and how a label agrees with it |
| `truth` | PSNR, SSIM and LPIPS against a true right view |
| `lpips` | the LPIPS network, with embedded weights |
"""
