"""grasp_rl: teach a vision-language policy to point, with GRPO and a frozen promptable segmenter."""

__version__ = "0.1.0"
