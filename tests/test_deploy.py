"""What is in deploy/ fits the server: a dashboard of figures that there are, commands with options that there are."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Served, assistant, serving, user
from tiny import tiny_model

from sonic_kv.cli import main as cli

DEPLOY = Path(__file__).parent.parent / "deploy"
FIGURE = re.compile(r"(sonic_kv_\w+)(?:{([^}]*)})?")


def test_the_dashboard_asks_for_figures_that_there_are(tmp_path: Path) -> None:
    board = json.loads((DEPLOY / "grafana.json").read_text())
    with serving(tiny_model(), tmp_path, kv_memory="150kB", store_after=0.0) as server:
        talk(server)
        families = [*text_string_to_metric_families(server.http.get("/metrics").text)]
    there = {sample.name: {*sample.labels} for family in families for sample in family.samples}
    there["sonic_kv_stream_errors_total"] = {"error"}  # none has happened
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [one["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    for expression in asked:
        ((name, labels),) = FIGURE.findall(expression)
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        used = {*re.findall(r"(\w+)=", labels), *(label for group in grouped for label in group.split(", "))}
        assert used <= there[name] | {"instance"}, expression  # Prometheus adds the instance
    shown = {name.removesuffix("_bucket") for name, _ in FIGURE.findall(" ".join(asked))}
    known = {name for name in there if not name.endswith(("_created", "_sum", "_count"))}
    assert shown == {name.removesuffix("_bucket") for name in known}, "the dashboard shows all that there is"


def talk(server: Served) -> None:
    """Let every figure have happened."""
    for number in range(8):
        messages = [user(f"{number}: the door code is 4711, keep it")]
        messages += [assistant(server.reply(messages)), user("and?")]
        server.chat(messages, stream=True)


@pytest.mark.parametrize("name", ["sonic-kv.service", "Containerfile"])
def test_commands_have_options_that_there_are(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith(("ExecStart=", "ENTRYPOINT")))
    _, _, words = line.replace('"', "").replace(",", "").rstrip("]").partition("sonic-kv serve ")
    config = tmp_path / "serve.toml"
    config.write_text("")
    given = ["serve", *(str(config) if word.endswith(".toml") else word for word in words.split())]
    assert any(word.startswith("--") for word in given)
    command, _ = cli.parse(given)
    assert command.name == "serve"
