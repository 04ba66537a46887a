"""The HTTP server: a gevent + Flask process for text. Speaks OpenAI's API outside, token ids to the engine process
inside. No torch.
"""
