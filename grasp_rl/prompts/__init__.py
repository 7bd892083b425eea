"""From a question to chat messages, and from a completion to an answer."""
