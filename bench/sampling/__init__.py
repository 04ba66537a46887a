"""What the sampler's stages and grammars cost a step of many rows."""
