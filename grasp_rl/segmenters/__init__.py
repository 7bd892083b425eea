"""Room: segmenters. See docs for its protocol in grasp_rl.interfaces."""
