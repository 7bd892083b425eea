"""From a command line to a worker process, and the worker itself."""
