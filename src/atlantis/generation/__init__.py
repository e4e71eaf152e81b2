"""Prompts to completions: with a model in this process, on a server, or with vLLM."""
