"""The prompt: everything that needs prompt_toolkit and knows nothing of commands."""
