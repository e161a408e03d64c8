"""`sonic-kv bench`: what compression costs and saves in time and bytes."""
