"""Fields beyond the plain ones against a running server: logprobs, ids, penalties, echo, tools, thinking."""

from __future__ import annotations

import json

import openai
import pytest
from running_server import RunningServer

MODEL = "smollm2-135m"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
SHORT = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_logprobs_of_completions_join_to_the_text(client):
    plain = client.completions.create(**SHORT, logprobs=3).choices[0]
    assert "".join(plain.logprobs.tokens) == plain.text and len(plain.logprobs.tokens) == 8
    for token, logprob, tops in zip(
        plain.logprobs.tokens, plain.logprobs.token_logprobs, plain.logprobs.top_logprobs, strict=True
    ):
        assert logprob == tops[token] == max(tops.values()) <= 0 and len(tops) == 3  # greedy takes the likeliest
    chunks = [chunk.choices[0] for chunk in client.completions.create(**SHORT, logprobs=3, stream=True)]
    streamed = [token for choice in chunks if choice.logprobs for token in choice.logprobs.tokens]
    values = [value for choice in chunks if choice.logprobs for value in choice.logprobs.token_logprobs]
    assert streamed == plain.logprobs.tokens and values == plain.logprobs.token_logprobs


def test_logprobs_of_chat_are_those_of_the_visible_tokens(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=40, logprobs=True, top_logprobs=2
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    entries = choice.logprobs.content
    assert bytes(b for entry in entries for b in entry.bytes).decode() == choice.message.content
    assert len(entries) == answer.usage.completion_tokens - 1  # the end of sequence is no text
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


def test_stop_strings_cut_logprobs(client):
    free = client.completions.create(**SHORT, logprobs=0).choices[0]
    stop = free.text[6:10]
    cut = client.completions.create(**SHORT, logprobs=0, stop=stop).choices[0]
    assert cut.text == free.text[: free.text.index(stop)]
    joined = "".join(cut.logprobs.tokens)
    assert joined.startswith(cut.text) and cut.logprobs.tokens == free.logprobs.tokens[: len(cut.logprobs.tokens)]
    assert not cut.logprobs.text_offset or cut.logprobs.text_offset[-1] < len(cut.text)


def test_choices_of_tokens(client):
    ids = client.completions.create(**SHORT, extra_body={"return_token_ids": True}).choices[0].token_ids
    assert len(ids) == 8
    banned = client.completions.create(
        **SHORT, logit_bias={str(ids[0]): -100}, extra_body={"return_token_ids": True}
    ).choices[0]
    assert banned.token_ids[0] != ids[0]
    only = client.completions.create(
        **SHORT, extra_body={"return_token_ids": True, "allowed_token_ids": [ids[1], ids[2]]}
    ).choices[0]
    assert set(only.token_ids) <= {ids[1], ids[2]}
    arguments = {**SHORT, "prompt": "la la la la la", "max_tokens": 24}
    free = client.completions.create(**arguments, extra_body={"return_token_ids": True}).choices[0].token_ids
    varied = (
        client.completions.create(**arguments, frequency_penalty=2, extra_body={"return_token_ids": True})
        .choices[0]
        .token_ids
    )
    assert len(set(varied)) > len(set(free))


def test_bad_words(client):
    arguments = {**SHORT, "max_tokens": 16}
    free = client.completions.create(**arguments).choices[0].text
    assert "Paris" in free
    body = {"bad_words": ["Paris", "the capital"]}
    text = client.completions.create(**arguments, extra_body=body).choices[0].text
    assert "Paris" not in text and "the capital" not in text
    chunks = client.completions.create(**arguments, extra_body=body, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text


def test_echo(client):
    plain = client.completions.create(**SHORT).choices[0].text
    assert client.completions.create(**SHORT, echo=True).choices[0].text == SHORT["prompt"] + plain
    chunks = list(client.completions.create(**SHORT, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == SHORT["prompt"] + plain


def test_the_prompt_can_be_scored(client):
    """An echo's log-probabilities are those that generating it would have had."""
    generated = client.completions.create(**SHORT, logprobs=2).choices[0]
    text = SHORT["prompt"] + generated.text
    arguments = {**SHORT, "prompt": text, "max_tokens": 0, "logprobs": 2, "echo": True}
    answer = client.completions.create(**arguments)
    scored = answer.choices[0]
    assert scored.text == text and scored.finish_reason == "length" and answer.usage.completion_tokens == 0
    assert scored.logprobs.token_logprobs[0] is None and "".join(scored.logprobs.tokens) == text
    assert scored.logprobs.token_logprobs[-8:] == generated.logprobs.token_logprobs
    assert scored.logprobs.top_logprobs[-8:] == generated.logprobs.top_logprobs
    assert scored.logprobs.text_offset == [
        sum(map(len, scored.logprobs.tokens[:i])) for i in range(len(scored.logprobs.tokens))
    ]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**arguments, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == text
    assert [v for c in chunks if c.logprobs for v in c.logprobs.token_logprobs] == scored.logprobs.token_logprobs
    longer = client.completions.create(**{**arguments, "max_tokens": 4}).choices[0]
    assert longer.logprobs.token_logprobs[: len(scored.logprobs.tokens)] == scored.logprobs.token_logprobs
    assert len(longer.logprobs.tokens) == len(scored.logprobs.tokens) + 4 and longer.text.startswith(text)
    extra = client.completions.create(**{**SHORT, "prompt": text, "max_tokens": 1}, extra_body={"prompt_logprobs": 0})
    values = [next(iter(each.values()))["logprob"] for each in extra.choices[0].prompt_logprobs[1:]]
    assert values == scored.logprobs.token_logprobs[1:]
    chat = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=3, extra_body={"prompt_logprobs": 1}
    )
    assert len(chat.prompt_logprobs) == chat.usage.prompt_tokens and chat.prompt_logprobs[0] is None


def test_truncation_is_counted(client):
    answer = client.completions.create(
        model=MODEL, prompt="word " * 9000, max_tokens=1, extra_body={"truncate_prompt_tokens": 7}
    )
    assert answer.usage.prompt_tokens == 7


def test_continuing_the_final_message(client):
    messages = [*FRANCE, {"role": "assistant", "content": "The capital of France is"}]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=4, extra_body={"continue_final_message": True}
    )
    assert answer.choices[0].message.content.startswith(" Paris")


def test_tokenize_and_back(server):
    def post(path: str, body: dict) -> dict:
        status, answer, _ = server.request(path, body)
        assert status == 200, answer
        return json.loads(answer)

    ids = post("/tokenize", {"model": MODEL, "prompt": "Hello wörld", "return_token_strs": True})
    assert ids["count"] == len(ids["tokens"]) and ids["max_model_len"] == 8192
    assert "".join(ids["token_strs"]).startswith("Hello w")
    assert post("/detokenize", {"tokens": ids["tokens"]}) == {"prompt": "Hello wörld"}
    chat = post("/tokenize", {"messages": FRANCE})
    text = post("/detokenize", {"tokens": chat["tokens"]})["prompt"]
    assert text.endswith("What is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    assert chat["token_strs"] is None
    for path, body, param in (
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": FRANCE}, "prompt"),
        ("/detokenize", {"tokens": [49152]}, "tokens"),
        ("/detokenize", {"tokens": ["x"]}, "tokens[0]"),
        ("/detokenize", {}, "tokens"),
    ):
        status, answer, _ = server.request(path, body)
        assert status == 400 and json.loads(answer)["error"]["param"] == param


def test_tools_are_refused_where_the_template_has_no_place_for_them(client):
    with pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(model=MODEL, messages=FRANCE, tools=[TOOL])


def test_calls_and_thinking_in_the_shapes_of_the_client(tmp_path):
    """A template that puts words into the model's mouth: it can only go on as a thinker."""
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}<|im_start|>assistant\n<think>\n{# </think> #}"
    )
    with RunningServer("--chat-template", str(template)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120)
        arguments = {"model": MODEL, "messages": FRANCE, "tools": [TOOL], "temperature": 0, "max_tokens": 12}
        answer = client.chat.completions.create(**arguments)
        message = answer.choices[0].message
        assert message.reasoning and message.tool_calls is None
        assert answer.usage.completion_tokens_details.reasoning_tokens == 12
        chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == message.reasoning
        assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 12
        history = [
            *FRANCE,
            message.model_dump(exclude_none=True)
            | {
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"X"}'}}
                ]
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ]
        assert client.chat.completions.create(**arguments | {"messages": history}).choices[0].message.reasoning
        check_forced_calls(client)


def check_streamed_calls(client, arguments):
    """As many calls as the model likes, or exactly one: streamed they are those of the plain answer."""
    mark = client.post("/../tokenize", cast_to=dict, body={"prompt": "<tool_call>", "add_special_tokens": False})
    eager = arguments | {"max_tokens": 110, "logit_bias": {str(mark["tokens"][0]): 50}}  # it goes on where it may
    for parallel, reason in ((True, "length"), (False, "tool_calls")):
        asked = eager | {"tool_choice": "required", "parallel_tool_calls": parallel}
        choice = client.chat.completions.create(**asked).choices[0]
        whole = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
        assert (len(whole) > 1) is parallel and (choice.finish_reason, choice.message.content) == (reason, None)
        streamed: list[list[str]] = []
        for chunk in client.chat.completions.create(**asked, stream=True):
            for piece in chunk.choices[0].delta.tool_calls or []:
                if piece.id:
                    streamed.append([piece.function.name, ""])
                streamed[piece.index][1] += piece.function.arguments
        assert list(map(tuple, streamed)) == whole


def check_forced_calls(client):
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Bern", "Paris"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters, "strict": True}}
    arguments = {"model": MODEL, "messages": FRANCE, "tools": [tool], "temperature": 0, "max_tokens": 60}
    one = {"tool_choice": "required", "parallel_tool_calls": False}
    choice = client.chat.completions.create(**arguments, **one).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Bern", "Paris")
    check_streamed_calls(client, arguments)
    named = {"type": "function", "function": {"name": "weather"}}
    chunks = [each.choices[0] for each in client.chat.completions.create(**arguments, tool_choice=named, stream=True)]
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
    assert pieces[0].id and pieces[0].function.name == "weather" and chunks[-1].finish_reason == "stop"
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
