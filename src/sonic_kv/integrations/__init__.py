"""The same sessions on engines of others."""
