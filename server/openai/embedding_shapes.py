"""OpenAI's list of embeddings, from what the engine pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyengine import embeddings
from pyengine.text.fields import EmbeddingRequest
from pyengine.text.generation import Generation


def embedding_list(
    model: str, asked: EmbeddingRequest, generations: Sequence[Generation], num_tokens: int
) -> dict[str, Any]:
    """The answer to ``asked``, in the order of its input; ``num_tokens``: of all inputs together."""
    vectors = [embeddings.finish(each.embedding, asked.dimensions) for each in generations]
    encode = embeddings.to_base64 if asked.encoding_format == "base64" else lambda vector: vector.tolist()
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": encode(each)} for i, each in enumerate(vectors)],
        "model": model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
