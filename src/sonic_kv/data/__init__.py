"""Dialogues: read from files, or generated."""
