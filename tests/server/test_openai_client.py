"""The ``openai`` package against a running server: plain, streamed, many at once, and every way to get it wrong."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


def test_chat(client):
    answer = client.chat.completions.create(model="smollm2-135m", messages=FRANCE, temperature=0, max_tokens=40)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop" and answer.object == "chat.completion"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_chat_equals_plain(client):
    arguments = {"model": "smollm2-135m", "messages": FRANCE, "temperature": 0, "max_tokens": 40}
    plain = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert ends == [plain.choices[0].finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


def test_completions_with_many_prompts_and_choices(client):
    answer = client.completions.create(
        model="smollm2-135m", prompt=["The sea is", "Once upon"], n=2, temperature=0.8, seed=3, max_tokens=8
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.completion_tokens == 32
    again = client.completions.create(
        model="smollm2-135m", prompt=["The sea is", "Once upon"], n=2, temperature=0.8, seed=3, max_tokens=8
    )
    assert [c.text for c in answer.choices] == [c.text for c in again.choices]
    assert answer.choices[0].text != answer.choices[1].text


def test_token_ids_as_prompt(client):
    text = (
        client.completions.create(model="smollm2-135m", prompt=[504, 3575, 282, 4649, 314], temperature=0, max_tokens=3)
        .choices[0]
        .text
    )
    assert "Paris" in text


def test_stop_strings_end_one_choice_only(client):
    free = (
        client.completions.create(model="smollm2-135m", prompt="Count: one, two, three,", temperature=0, max_tokens=24)
        .choices[0]
        .text
    )
    stop = free[5:9]
    cut = client.completions.create(
        model="smollm2-135m", prompt="Count: one, two, three,", temperature=0, max_tokens=24, stop=stop
    )
    assert cut.choices[0].text == free[: free.index(stop)] and cut.choices[0].finish_reason == "stop"


def test_thirty_two_streams_at_once_say_what_they_say_alone(server, client):
    prompts = [
        f"{word} is"
        for word in (
            "The sea",
            "A good book",
            "My favourite colour",
            "The capital of Spain",
            "Water",
            "An engine",
            "Snow",
            "The moon",
        )
    ]
    prompts = [prompt + suffix for prompt in prompts for suffix in ("", " a", " the", " not")]

    def arguments(prompt):
        return {"model": "smollm2-135m", "prompt": prompt, "temperature": 0, "max_tokens": 16}

    async def all_at_once():
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=240
        ) as many:

            async def one(prompt):
                stream = await many.completions.create(**arguments(prompt), stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

            return await asyncio.gather(*(one(prompt) for prompt in prompts))

    together = asyncio.run(all_at_once())
    alone = [client.completions.create(**arguments(prompt)).choices[0].text for prompt in prompts]
    assert together == alone and len(set(alone)) > 20


def test_models(client):
    cards = client.models.list().data
    assert [card.id for card in cards] == ["smollm2-135m"] and cards[0].max_model_len == 8192
    assert client.models.retrieve("smollm2-135m").id == "smollm2-135m"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


BAD_BODIES = [
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"[1]", "object"),
    (b'"x"', "object"),
    (b"\xff\xfe", "JSON"),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "NaN"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    (b"[" * 5000 + b"]" * 5000, "deep"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({}, "messages"),
    ({"messages": FRANCE, "temperature": -1}, "temperature"),
    ({"messages": FRANCE, "temperature": "hot"}, "temperature"),
    ({"messages": FRANCE, "top_p": 0}, "top_p"),
    ({"messages": FRANCE, "n": 0}, "n"),
    ({"messages": FRANCE, "n": 10**9}, "n"),
    ({"messages": FRANCE, "max_tokens": -5}, "max_tokens"),
    ({"messages": FRANCE, "max_tokens": 10**400}, "max_tokens"),
    ({"messages": FRANCE, "stop": [""]}, "stop"),
    ({"messages": FRANCE, "wat": 1}, "wat"),
    ({"messages": FRANCE, "stream_options": {"include_usage": True}}, "stream_options"),
    ({"messages": [{"role": "user", "content": "word " * 9000}]}, "8192"),
    ({"messages": FRANCE, "top_logprobs": 2}, "top_logprobs"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}, "image"),
]


@pytest.mark.parametrize("body, text", BAD_BODIES, ids=[str(i) for i in range(len(BAD_BODIES))])
def test_bad_chat_bodies_are_named(server, body, text):
    status, answer, headers = server.request("/v1/chat/completions", body)
    error = json.loads(answer)["error"]
    assert status == 400 and headers["Content-Type"] == "application/json", answer
    assert (
        set(error) == {"message", "type", "param", "code"}
        and text.lower() in (error["message"] + str(error["param"])).lower()
    ), error


@pytest.mark.parametrize(
    "body, text",
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "empty"),
        ({"prompt": [[]]}, "empty"),
        ({"prompt": [1, -1]}, "-1"),
        ({"prompt": [1, 49152]}, "49152"),
        ({"prompt": [1, "x"]}, "mixture"),
        ({"prompt": [2**40]}, str(2**40)),
        ({"prompt": ["a"] * 2000}, "1024"),
        ({"prompt": "a", "seed": 2**70}, "seed"),
        ({"prompt": "a", "model": "gpt-4"}, "gpt-4"),
    ],
)
def test_bad_completion_bodies_are_named(server, body, text):
    status, answer, _ = server.request("/v1/completions", body)
    assert status == (404 if "model" in body else 400)
    assert text in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize(
    "path, method, headers, status",
    [
        ("/v1/nothing", "GET", {}, 404),
        ("/v1/chat/completions", "GET", {}, 405),
        ("/v1/chat/completions", "POST", {"Content-Type": "text/plain"}, 415),
        ("/", "GET", {}, 404),
        ("/v1/completions", "PUT", {}, 405),
    ],
)
def test_wrong_routes_and_types_have_the_same_shape(server, path, method, headers, status):
    got, answer, _ = server.request(path, b"{}" if method in ("POST", "PUT") else None, headers, method)
    assert got == status and set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


def test_a_large_body_is_refused_before_it_is_read(server):
    status, answer, _ = server.request("/v1/completions", b'{"prompt": "' + b"x" * (9 << 20) + b'"}')
    assert status == 413 and "--max-body-size" in json.loads(answer)["error"]["message"]


def test_max_tokens_beyond_the_context_is_clamped(client):
    answer = client.completions.create(
        model="smollm2-135m", prompt="The capital of France is", temperature=0, max_tokens=100_000, stop=["."]
    )
    assert answer.choices[0].finish_reason == "stop"


def test_operators_routes(server):
    assert server.request("/health")[0] == 200 and server.request("/ready")[0] == 200
    assert set(json.loads(server.request("/version")[1])) == {"version"}
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:prefix_cache_hits_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:iteration_tokens_total_count",
        "vllm:request_success_total",
    ):
        assert server.metric(name) >= 0
