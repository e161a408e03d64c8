"""A base model and what sonic-kv adds to it; these are the only rooms that know transformers and PEFT."""
