"""One dialogue, and many at once: sessions, sampling, the engine, saved state."""
