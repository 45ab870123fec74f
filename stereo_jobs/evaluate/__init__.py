"""How good the method is: scenes with truth, run through each method as jobs, scored and put into tables.

| module | what it does |
|---|---|
| `evaluation` | runs all methods on all data sets; writes tables and pictures |
| `methods` | the catalogue of compared methods, and sweeps of a switch |
| `protocols` | how a scene is framed and its disparity chosen, so that figures compare with published ones |
| `datasets` | reads Middlebury, KITTI, photos and ToyScapes as scenes of one form |
| `cycle` | makes a scene with truth of a photo and its disparity |
| `scenes` | writes scenes as manifests |
| `experiments` | one method on one data set as a job, read back as scores |
| `model_cache` | keeps models loaded from one job to the next |
| `details` | scores beyond the columns of a dataset: sharpness of holes, geometry |
| `pictures` | worst, mean and best scene of all methods on one sheet |
| `tables` | the tables themselves, and their formats |
"""
