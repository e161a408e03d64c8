"""What a dialogue holds of its past: layers, growing storage, few bits, files for other engines."""
