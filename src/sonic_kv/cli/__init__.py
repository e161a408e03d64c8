"""The `sonic-kv` command."""
