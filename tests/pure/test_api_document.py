"""docs/api.md says of every field what the code does with it: taken, refused, or accepted without effect."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from pyengine.text import anthropic, responses
from pyengine.text.anthropic import CountRequest, MessagesRequest
from pyengine.text.fields import (
    IGNORED,
    NOT_YET,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from pyengine.text.responses import ResponsesRequest

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = TEXT.split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(heading: str) -> list[str]:
    return [name for row in rows(heading) for name in re.findall(r"`(\w+)`", row[0])]


def taken(struct: type) -> set[str]:
    return {field.name for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("Fields of both endpoints", taken(ChatRequest) & taken(CompletionRequest) - {"logprobs"}),
        ("Fields of chat alone", taken(ChatRequest) - taken(CompletionRequest) | {"logprobs"}),
        ("Fields of completions alone", taken(CompletionRequest) - taken(ChatRequest) | {"logprobs"}),
        ("Fields of /tokenize", taken(TokenizeRequest)),
        ("Fields of /detokenize", taken(DetokenizeRequest)),
        ("Fields of /v1/embeddings", taken(EmbeddingRequest)),
        ("Accepted without effect", set(IGNORED)),
        ("Fields of /v1/messages", taken(MessagesRequest)),
        ("Refused by /v1/messages", set(anthropic.REFUSED)),
        ("Accepted without effect by /v1/messages", set(anthropic.IGNORED)),
        (
            "Fields of /v1/messages/count_tokens",
            taken(CountRequest) | anthropic.COUNT_IGNORED | set(anthropic.COUNT_REFUSED),
        ),
        ("Fields of /v1/responses", taken(ResponsesRequest)),
        ("Refused by /v1/responses", set(responses.REFUSED)),
        ("Accepted without effect by /v1/responses", set(responses.IGNORED)),
    ],
)
def test_tables_are_complete(heading, fields):
    listed = names(heading)
    assert sorted(listed) == sorted(fields)


def test_what_is_refused_is_listed_with_what_is_not():
    listed = {
        (row[0].strip("`"), row[1]): [json.loads(value) for value in re.findall(r"`([^`]*)`", row[2])]
        for row in rows("Known and refused")
    }
    expected = {}
    for name in NOT_YET[ChatRequest].keys() | NOT_YET[CompletionRequest].keys():
        ends = [
            end
            for end, struct in (("chat", ChatRequest), ("completions", CompletionRequest))
            if name in NOT_YET[struct]
        ]
        struct = ChatRequest if "chat" in ends else CompletionRequest
        expected[name, "both" if len(ends) == 2 else ends[0]] = list(NOT_YET[struct][name])
    assert listed == expected


@pytest.mark.parametrize(
    ("heading", "refused"), [("/v1/messages", anthropic.REFUSED), ("/v1/responses", responses.REFUSED)]
)
def test_what_asks_for_nothing_is_listed(heading, refused):
    listed = {row[0].strip("`"): row[1] for row in rows(f"Refused by {heading}")}
    for name, neutral in refused.items():
        assert [json.loads(value) for value in re.findall(r"`([^`]*)`", listed[name])] == list(neutral)
