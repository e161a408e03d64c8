"""The server with the libraries that people have: each as its own documentation shows it, with nothing changed.

What a model says is never asked: schemas and required tools are kept by grammars. `make test-clients` has all of them.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from serving import Served, serving
from test_tools import TOOLS, calling_model, check_call

NODE, MODULES = shutil.which("node"), os.environ.get("NODE_MODULES", "node_modules")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


class Forecast(BaseModel):
    """The weather of a town."""

    model_config = ConfigDict(
        extra="forbid"
    )  # without it a schema allows more, and random models know no end
    town: Literal["Oslo", "Rome"]
    degrees: int = Field(ge=-9, le=40)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(calling_model(), served_model_name=("tiny",), max_reply_tokens=400) as served:
        yield served


def test_openai(server: Served) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "the weather?"}]}
        parsed = client.chat.completions.parse(**asked, response_format=Forecast, max_tokens=300)
        assert isinstance(parsed.choices[0].message.parsed, Forecast)
        tools = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 300}
        (call,) = client.chat.completions.create(**asked, **tools).choices[0].message.tool_calls
        check_call(call.model_dump())
        with client.chat.completions.stream(**asked, **tools) as stream:
            (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
        assert streamed.function.model_dump(exclude={"parsed_arguments"}) == call.function.model_dump()
        likely = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, max_tokens=3)
        assert len(likely.choices[0].logprobs.content) == 3
        assert client.completions.create(model="tiny", prompt="Ada lives in", max_tokens=3).choices[0].text


def test_langchain(server: Served) -> None:
    langchain = pytest.importorskip("langchain_openai")
    messages = pytest.importorskip("langchain_core.messages")
    chat = langchain.ChatOpenAI(model="tiny", base_url=f"{server.url}/v1", api_key="none", max_tokens=300)
    named = [messages.SystemMessage("be brief"), messages.HumanMessage("the weather?", name="ada")]
    bound = chat.bind_tools(TOOLS, tool_choice="required")
    asked = bound.invoke(named)
    (call,) = asked.tool_calls
    assert call["name"] in ("get_weather", "clock")
    told = [*named, asked, messages.ToolMessage("12 degrees", tool_call_id=call["id"])]
    assert chat.bind_tools(TOOLS).bind(max_tokens=5).invoke(told).content
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(Forecast, method=method).invoke(named), Forecast)


def test_pydantic_ai(server: Served) -> None:
    ai = pytest.importorskip("pydantic_ai")
    models = pytest.importorskip("pydantic_ai.models.openai")
    provider = pytest.importorskip("pydantic_ai.providers.openai")
    there = provider.OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
    model = models.OpenAIChatModel("tiny", provider=there)
    agent = ai.Agent(
        model,
        output_type=Forecast,
        system_prompt=("be brief", "be kind"),
        model_settings={"max_tokens": 300},
    )
    first = agent.run_sync("the weather?")
    assert isinstance(first.output, Forecast)
    assert isinstance(agent.run_sync("and now?", message_history=first.all_messages()).output, Forecast)


def test_litellm(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network for prices
    litellm = pytest.importorskip("litellm")
    asked: dict[str, Any] = {
        "model": "openai/tiny",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "messages": [{"role": "user", "content": "the weather?"}],
        "max_tokens": 300,
    }
    (call,) = litellm.completion(**asked, tools=TOOLS, tool_choice="required").choices[0].message.tool_calls
    check_call(call.model_dump())
    answer = litellm.completion(**asked, response_format=Forecast).choices[0].message.content
    Forecast.model_validate_json(answer)


def test_llm(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")  # none but its own: some load models
    llm = pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: tiny\n  model_name: tiny\n  api_base: {server.url}/v1\n  supports_schema: true\n"
    )
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    model = llm.get_model("tiny")
    Forecast.model_validate_json(
        model.prompt("the weather?", schema=Forecast, key="none", max_tokens=300).text()
    )
    chat = model.conversation()
    for text in ("hello", "and?"):
        assert chat.prompt(text, key="none", max_tokens=5, stream=False).text()


def test_instructor(server: Served) -> None:
    instructor, openai = pytest.importorskip("instructor"), pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as bare:
        for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
            client = instructor.from_openai(bare, mode=mode)
            said = [{"role": "user", "content": "the weather?"}]
            found = client.chat.completions.create(
                model="tiny", messages=said, response_model=Forecast, max_tokens=300, max_retries=1
            )
            assert isinstance(found, Forecast)


SCRIPT = """
import { createRequire } from "node:module";
const OpenAI = createRequire(process.env.NODE_MODULES + "/")("openai").default;
const client = new OpenAI({ baseURL: process.env.URL + "/v1", apiKey: "none" });
const messages = [{ role: "user", content: "the weather?" }];
const tools = JSON.parse(process.env.TOOLS);
const whole = await client.chat.completions.create(
  { model: "tiny", messages, tools, tool_choice: "required", max_tokens: 300 });
let text = "";
for await (const chunk of await client.chat.completions.create(
  { model: "tiny", messages, stream: true, max_tokens: 5 })) text += chunk.choices[0]?.delta?.content ?? "";
console.log(JSON.stringify({ call: whole.choices[0].message.tool_calls[0], text }));
"""


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.skipif(not Path(MODULES, "openai").exists(), reason="npm's openai is not installed")
def test_openai_of_javascript(server: Served, tmp_path: Path) -> None:
    script = tmp_path / "client.mjs"
    script.write_text(SCRIPT)
    more = {"URL": server.url, "TOOLS": json.dumps(TOOLS), "NODE_MODULES": str(Path(MODULES).resolve())}
    done = subprocess.run(
        [str(NODE), str(script)], env={**os.environ, **more}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    check_call(told["call"])
    assert told["text"]
