"""A local page to try policies and segmenters by hand, `grasp-rl demo`. Only :mod:`.page` knows gradio."""
