"""Small SAM and SAM 2 trained on drawn scenes, and their architectures."""
