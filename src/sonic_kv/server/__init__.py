"""The OpenAI-compatible server: compressed, durable sessions behind the API that clients already speak."""
