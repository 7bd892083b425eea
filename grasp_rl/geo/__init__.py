"""From georeferenced rasters to map layers and back: windows, polygons, seams, writers. Knows no policy."""
