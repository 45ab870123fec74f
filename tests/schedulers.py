"""The schedulers of diffusers that our samplers are compared with."""

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler


class KarrasToTheLastLevel(DPMSolverMultistepScheduler):
    """DPM-Solver++(2M) on Karras levels that ends where the training's least noisy level is.

    diffusers' own last step with `sigma_min` leads from that level to itself; one level more makes it count.
    """

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps + 1, device)
        self.timesteps, self.sigmas = self.timesteps[:-1], self.sigmas[:-1]
        self.num_inference_steps = num_inference_steps


def reference_scheduler(name, config):
    """`ddim` or `dpm++_karras` for a checkpoint's scheduler configuration."""
    if name == "ddim":
        return DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)
    return KarrasToTheLastLevel.from_config(config, use_karras_sigmas=True, final_sigmas_type="sigma_min")
