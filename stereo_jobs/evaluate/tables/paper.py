"""Published figures to be printed beside ours: the paper's own (StereoDiffusion, Tables 1 to 3), and other papers'."""

Scores = tuple[float, float, float | None]
"""Mean PSNR, SSIM and LPIPS; None where it is not published."""

SCORES: dict[str, dict[str, Scores]] = {
    "leave_blank": {"middlebury": (11.328, 0.315, 0.450), "kitti": (12.980, 0.374, 0.313)},
    "stretch": {"middlebury": (14.842, 0.432, 0.285), "kitti": (14.757, 0.429, 0.212)},
    "layered": {"middlebury": (14.190, 0.427, 0.275), "kitti": (14.540, 0.398, 0.210)},  # 3D Photography itself
    "repaint": {"middlebury": (15.102, 0.462, 0.311), "kitti": (15.056, 0.462, 0.251)},
    "stereodiffusion": {"middlebury": (15.456, 0.468, 0.231), "kitti": (15.679, 0.481, 0.205)},
    "stereodiffusion, estimated disparity": {"middlebury": (16.980, 0.551, 0.173), "kitti": (15.589, 0.479, 0.209)},
    "stereodiffusion, no technique, estimated disparity": {
        "middlebury": (16.352, 0.514, 0.378),
        "kitti": (15.286, 0.476, 0.364),
    },
    "stereodiffusion, SPSMD, estimated disparity": {
        "middlebury": (17.076, 0.549, 0.191),
        "kitti": (15.305, 0.474, 0.230),
    },
    "stereodiffusion, attention, estimated disparity": {
        "middlebury": (15.421, 0.478, 0.255),
        "kitti": (15.868, 0.483, 0.212),
    },
    "stereodiffusion, deblur": {"middlebury": (15.149, 0.444, 0.234), "kitti": (15.360, 0.461, 0.200)},
    "stereodiffusion, deblur, estimated disparity": {
        "middlebury": (16.753, 0.540, 0.174),
        "kitti": (15.269, 0.458, 0.204),
    },
}
"""Scores of Tables 1 and 2, by method and data set."""

OTHER_PROGRAMS = ("ZeroStereo", "GenStereo", "StereoSpace")
"""Methods that are not in this package; their right views come in through `--folder`."""
PUBLISHED: dict[str, dict[str, dict[str, Scores]]] = {
    "paper": SCORES,
    "squash": {"GenStereo": {"middlebury": (25.14, 0.911, None), "kitti": (23.49, 0.849, None)}},
    "end_to_end": {
        "stereodiffusion": {"middlebury": (17.06, 0.525, 0.304)},
        "ZeroStereo": {"middlebury": (17.48, 0.537, 0.264)},
        "GenStereo": {"middlebury": (18.54, 0.599, 0.184)},
        "StereoSpace": {"middlebury": (17.04, 0.541, 0.234)},
    },
}
"""Scores by protocol, method and data set: of the paper, of GenStereo (with SD 2.1) and of StereoSpace."""
IN_BRACKETS = {
    "paper": "In square brackets the paper's means; its 3D Photography stands beside `layered`.",
    "squash": "In square brackets the means that GenStereo's paper prints.",
    "end_to_end": "In square brackets the means that StereoSpace's paper prints.",
}
"""What the figures in square brackets are, by protocol."""

SECONDS: dict[str, dict[str, float]] = {
    "layered": {"text": 245, "depth": 247, "image": 231},  # 3D Photography itself
    "repaint": {"text": 338, "depth": 340, "image": 324},
    "stereodiffusion": {"text": 32, "depth": 18},
    "stereodiffusion, empty prompt": {"image": 40},  # the published inversion has no prompt
}
"""Seconds of Table 3, measured on one RTX 3090, by method and mode."""
