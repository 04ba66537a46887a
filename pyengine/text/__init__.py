"""Everything between text and token ids: tokenizers, chat templates, detokenising, stop strings, request validation.

Shared by the HTTP server, the offline ``LLM`` and batch files, so that all three accept, refuse and answer alike. No
I/O beyond reading a checkpoint's text files, no torch.
"""
