"""One file per model family, named as transformers names its ``model_type``; each defines one ``Backbone``."""
