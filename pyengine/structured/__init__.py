"""Structured output: generations that must match a JSON schema, a regular expression, a choice or a grammar.

Built on llguidance, which has no torch, no compile step and bounded work per token. ``grammar`` turns what a client
asks for into a checked grammar (server, ``LLM``), compiled in a process of its own; ``matcher`` follows it token by
token (engine).
"""
