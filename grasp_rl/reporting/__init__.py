"""Tables, curves and images of finished runs."""
