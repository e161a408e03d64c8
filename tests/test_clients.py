"""The server with the clients that people have: OpenAI's, LangChain's, and a fuzzer."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Served, fresh, serving, user
from tiny import tiny_model

from sonic_kv.model.model import SonicModel


@pytest.fixture(scope="module")
def model() -> SonicModel:
    return tiny_model(max_position_embeddings=2048)


@pytest.fixture(scope="module")
def server(model: SonicModel) -> Iterator[Served]:
    with serving(model, keys=("secret-key",)) as served:
        yield served


def test_openai_client(server: Served) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret-key") as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        messages: list[Any] = [user("my sister Ada lives in Oslo")]
        reply = client.chat.completions.create(model="tiny", messages=messages)
        assert reply.choices[0].message.content == fresh(messages)
        assert reply.usage.sonic["logical_tokens"] > 0
        messages += [reply.choices[0].message.model_dump(), user("and?")]  # as clients send it back
        with client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        ) as chunks:
            got = list(chunks)
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        assert "".join(c.choices[0].delta.content or "" for c in got if c.choices) == fresh(plain)
        assert got[-1].usage.prompt_tokens_details.cached_tokens > 0
        asked = {"extra_body": {"sonic": {"compression_ratio": 0.9}}, "model": "tiny", "messages": messages}
        assert client.chat.completions.create(**asked).usage.sonic["compression_ratio"] == 0.9
        with pytest.raises(openai.BadRequestError, match="top_logprobs"):
            client.chat.completions.create(model="tiny", messages=messages, top_logprobs=1)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-5", messages=messages)
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_langchain_client(server: Served) -> None:
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(
        model="tiny", base_url=f"{server.url}/v1", api_key="secret-key", temperature=0, max_tokens=12
    )
    messages = [("system", "be brief"), ("human", "my sister Ada lives in Oslo")]
    expected = fresh([{"role": "system", "content": "be brief"}, user("my sister Ada lives in Oslo")])
    assert chat.invoke(messages).content == expected
    assert "".join(chunk.content for chunk in chat.stream(messages)) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_schemathesis_finds_no_failure(server: Served) -> None:
    """Every operation of the OpenAPI document, with drawn inputs: no 5xx, no answer it does not describe."""
    schemathesis = pytest.importorskip("schemathesis")
    import hypothesis

    headers = {"authorization": "Bearer secret-key"}
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for operation in schema.get_all_operations():

        @hypothesis.settings(
            max_examples=100, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(case=operation.ok().as_strategy())
        def check(case: Any) -> None:
            response = case.call(headers=headers, timeout=30)
            assert response.status_code < 500, response.text
            described = case.operation.definition.raw["responses"]
            assert str(response.status_code) in described, (response.status_code, response.text)

        check()
    assert httpx.get(f"{server.url}/healthz").status_code == 200
