"""Other engines, each with its own extra."""
