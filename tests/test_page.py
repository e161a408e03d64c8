"""The server's page in a browser: at desktop and phone width, light and dark, with the keyboard, and for everybody."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Served, assistant, fresh, serving, user
from tiny import talkative, tiny_base, tiny_model, tiny_tokenizer

from sonic_kv.compress.options import Budget
from sonic_kv.model.model import SonicModel
from sonic_kv.model.nats import DamageScale

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
LENGTH = 48  # of a reply, in tokens
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
REPLY = """# A heading

Some **bold**, *slanted* and `code`, a [link](https://example.org/) and <b>no HTML</b>.

1. one
   - inner
2. two

> quoted

| a | b |
|---|---|
| 1 | 2 |

```python
print("a line that is long enough to scroll on every telephone, and on most of the others as well")
```
"""


@pytest.fixture(scope="module")
def model() -> SonicModel:
    return tiny_model(max_position_embeddings=2048)


@pytest.fixture(scope="module")
def server(model: SonicModel) -> Iterator[Served]:
    with serving(model, max_reply_tokens=LENGTH) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def tabs(browser: Any) -> Iterator[Any]:
    """A fresh profile; nothing fails in its pages, and they load nothing from elsewhere."""
    context = browser.new_context(viewport=DESKTOP)
    failures: list[str] = []
    asked: set[str] = set()
    context.on("weberror", lambda error: failures.append(str(error.error)))
    context.on("request", lambda request: asked.add(request.url.split("/")[2].split(":")[0]))
    yield context
    context.close()
    assert failures == []
    assert asked <= {"127.0.0.1"}


def opened(tabs: Any, server: Served) -> Any:
    page = tabs.new_page()
    page.goto(server.url)
    page.locator("#model:text('tiny')").wait_for()
    return page


def talk(page: Any, text: str) -> None:
    """Say something, and wait for the reply."""
    page.locator("#text").fill(text)
    page.keyboard.press("Enter")
    page.locator(f"#log .user:has(p:text('{text}')) + .assistant:not(.waiting)").wait_for()
    page.locator("#send:text-is('Send')").wait_for()


def shown(page: Any) -> dict[str, Any]:
    """What a tab remembers."""
    state: dict[str, Any] = json.loads(page.evaluate("sessionStorage.getItem('sonic-kv')"))
    return state


def continued(page: Any, server: Served, messages: list[dict[str, str]]) -> None:
    """Let a tab go on with a dialogue that another client has led."""
    server.reply(messages, headers={"x-session-id": "led"})
    found = server.http.get("/v1/sessions/led").json()
    state = {"id": "led", "turns": [[found["bytes"], found["full_bytes"]]]}
    page.evaluate("state => sessionStorage.setItem('sonic-kv', JSON.stringify(state))", state)
    page.reload()
    page.locator("#log .assistant").first.wait_for()


def test_a_dialogue_with_a_key(model: SonicModel, tmp_path: Path, tabs: Any) -> None:
    """Type, stream, slide, reload, go on, ask again; in two tabs, with an API key."""
    with serving(model, tmp_path, keys=("secret-key",), max_reply_tokens=LENGTH) as server:
        page = tabs.new_page()
        page.goto(server.url)
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        page.locator("#say:has-text('not valid here')").wait_for()
        page.get_by_label("API key").fill("secret-key")
        page.keyboard.press("Enter")
        page.locator("#model:text('tiny')").wait_for()
        talk(page, "my sister Ada lives in Oslo")
        assert page.locator("#chart circle.kept").count() == 1  # one turn is drawn too
        first = server.http.get(f"/v1/sessions/{shown(page)['id']}").json()["messages"][-1]["content"]
        assert first == fresh([user("my sister Ada lives in Oslo")], length=LENGTH)
        assert page.locator("#log h2").all_text_contents() == ["You", "Model"]
        for text in ("the door code is 4711, keep it", "hi, how is it?"):
            talk(page, text)
        full = page.locator("#full").text_content()
        assert page.locator("#most").text_content() == f"■ {full} with full context"
        assert page.locator("#now").text_content() == f"● {page.locator('#bytes').text_content()} kept"
        before = int(page.locator("#entries").text_content() or 0)
        assert page.locator("#segments li").count() >= 3
        page.locator("#ratio").focus()
        page.keyboard.press("End")
        page.locator("#effect:text('without running the model')").wait_for()
        assert page.locator("#ratio").get_attribute("aria-valuetext") == "95 % removed"
        shrunk = int(page.locator("#entries").text_content() or 0)
        assert shrunk < before
        text = page.locator("#log").inner_text()
        page.reload()
        page.locator("#log .assistant").first.wait_for()
        assert page.locator("#log").inner_text() == text
        assert int(page.locator("#entries").text_content() or 0) == shrunk
        talk(page, "go on")
        page.get_by_text("Another reply").click()
        page.locator("#send:text-is('Send')").wait_for()
        page.get_by_text("Another reply").wait_for()
        assert page.locator("#log .user").count() == 4
        assert page.locator("#say").text_content() == ""
        other = opened(tabs, server)  # another tab has a dialogue of its own, and the same key
        other.locator("#log .hint").wait_for()
        assert other.locator("#log .user").count() == 0


def test_a_tab_that_was_duplicated_goes_on_by_itself(server: Served, tabs: Any) -> None:
    page = opened(tabs, server)
    talk(page, "my sister Ada lives in Oslo")
    twin = tabs.new_page()
    kept = json.dumps(json.dumps(shown(page)))  # a browser copies what a tab remembers
    twin.add_init_script(f"sessionStorage['sonic-kv'] ||= {kept}")
    twin.goto(server.url)
    twin.wait_for_function(
        "id => JSON.parse(sessionStorage.getItem('sonic-kv')).id !== id", arg=shown(page)["id"]
    )
    talk(twin, "the twin goes on")
    talk(page, "the first goes on")
    for tab, text in ((page, "the first goes on"), (twin, "the twin goes on")):
        messages = server.http.get(f"/v1/sessions/{shown(tab)['id']}").json()["messages"]
        assert [m["content"] for m in messages if m["role"] == "user"] == [
            "my sister Ada lives in Oslo",
            text,
        ]
        tab.reload()
        tab.locator(f"#log .user p:text('{text}')").wait_for()


def say_and_watch(page: Any, text: str) -> None:
    """Say something, until the reply has begun to come."""
    page.locator("#text").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#log .waiting .body')?.textContent.length > 5")


@pytest.fixture
def replying(tabs: Any) -> Iterator[Any]:
    """A page to which a long reply is coming."""
    talker = SonicModel(talkative(tiny_base(max_position_embeddings=2048)), tiny_tokenizer())
    with serving(talker) as server:
        page = opened(tabs, server)
        say_and_watch(page, "go on and on")
        yield page


def test_a_reply_that_is_stopped_stays_and_is_gone_on_from(replying: Any) -> None:
    page = replying
    page.keyboard.press("Escape")
    page.locator("#send:text-is('Send')").wait_for()
    assert page.locator("#say").text_content() == ""
    said = shown(page)["messages"]
    assert [message["role"] for message in said] == ["user", "assistant"]
    assert 5 < len(said[1]["content"]) < 1024
    page.reload()
    page.locator("#log .assistant").wait_for()
    say_and_watch(page, "what?")
    page.get_by_text("Stop").click()
    page.get_by_text("Another reply").wait_for()
    assert shown(page)["messages"][:2] == said


def test_a_new_dialogue_is_new_also_while_a_reply_comes(replying: Any) -> None:
    page = replying
    page.keyboard.press("Alt+n")
    page.locator("#send:text-is('Send')").wait_for()
    page.locator("#log .hint").wait_for()
    assert shown(page)["messages"] == []


@pytest.mark.parametrize(
    "budget",
    [Budget(compression_ratio=0.72), Budget(compression_ratio=0.97), Budget(max_damage=0.3)],
    ids=str,
)
def test_a_dialogue_is_compressed_as_the_server_does_until_somebody_slides(budget: Budget, tabs: Any) -> None:
    model = tiny_model(max_position_embeddings=2048)
    assert model.adapter is not None
    model.adapter.scale = DamageScale(0.5, 0.9)
    with serving(model, budget=budget, max_reply_tokens=LENGTH) as server:
        page = opened(tabs, server)

        def asked() -> Budget:
            found = server.http.get(f"/v1/sessions/{shown(page)['id']}").json()
            ratio = found["compression_ratio"] if found["max_damage"] is None else None
            return Budget(compression_ratio=ratio, max_damage=found["max_damage"])

        for text in ("my sister Ada lives in Oslo", "where?"):
            talk(page, text)
            assert asked() == budget
        shown_ratio = page.locator("#percent").text_content()
        assert shown_ratio == f"{100 * (budget.compression_ratio or 0):.0f} %"
        page.keyboard.press("Alt+n")
        talk(page, "hello")
        assert asked() == budget
        page.locator("#ratio").fill("0.5")
        page.locator("#effect:text('segment'), #effect:text('freed')").wait_for()
        assert asked() == Budget(compression_ratio=0.5)


def test_a_dialogue_that_the_server_has_forgotten_goes_on(server: Served, tabs: Any) -> None:
    page = opened(tabs, server)
    talk(page, "my sister Ada lives in Oslo")
    assert server.http.delete(f"/v1/sessions/{shown(page)['id']}").status_code == 200
    page.reload()
    page.locator("#log .user p:text('my sister Ada')").wait_for()
    talk(page, "where does Ada live?")
    messages = server.http.get(f"/v1/sessions/{shown(page)['id']}").json()["messages"]
    assert messages == shown(page)["messages"]
    assert len(messages) == 4


def test_dialogues_are_gone_on_with_and_erased(model: SonicModel, tmp_path: Path, tabs: Any) -> None:
    """By keyboard alone; the others' are not listed."""
    with serving(model, tmp_path, keys=("secret-key", "other-key"), max_reply_tokens=LENGTH) as server:
        server.reply([user("somebody else's")], headers={"authorization": "Bearer other-key"})
        for number, name in enumerate(("first", "<b>second</b>")):
            server.reply([user(name)], headers={"x-session-id": f"dialogue-{number}"})
        page = tabs.new_page()
        page.goto(server.url)
        page.get_by_label("API key").fill("secret-key")
        page.keyboard.press("Enter")
        page.locator("#model:text('tiny')").wait_for()
        page.locator("#list").focus()
        page.keyboard.press("Enter")
        page.locator("#names li").nth(1).wait_for()
        assert sorted(page.locator("#names b").all_text_contents()) == ["<b>second</b>", "first"]
        page.locator("#names .go:has-text('first')").focus()
        page.keyboard.press("Enter")
        page.locator("#log .user p:text('first')").wait_for()
        assert not page.locator("#dialogues").is_visible()
        talk(page, "go on")
        assert len(server.http.get("/v1/sessions/dialogue-0").json()["messages"]) == 4
        page.locator("#list").click()
        page.locator("#names li").nth(1).wait_for()
        for title in ("<b>second</b>", "first"):
            page.get_by_label(f"Erase: {title}").focus()
            page.keyboard.press("Enter")
            page.get_by_label(f"Erase for good: {title}").wait_for()
            page.keyboard.press("Enter")
            page.locator(f"#listed:text-is('“{title}” is erased.')").wait_for()
        assert page.evaluate("document.activeElement.id") == "close"
        page.keyboard.press("Escape")
        page.locator("#log .hint").wait_for()  # what was erased is not shown either
        assert server.http.get("/v1/sessions").json()["data"] == []
        assert [
            path.name for path in tmp_path.rglob("dialogues/*") if path.is_file()
        ] != []  # the other key's


def test_a_dialogue_that_is_open_in_another_tab_is_gone_on_with_apart(server: Served, tabs: Any) -> None:
    page = opened(tabs, server)
    talk(page, "here and there")
    other = opened(tabs, server)
    other.locator("#list").click()
    other.locator("#names .go:has-text('here and there')").first.click()
    other.wait_for_function("() => JSON.parse(sessionStorage.getItem('sonic-kv')).detached")
    assert shown(other)["messages"] == shown(page)["messages"]
    assert shown(other)["id"] != shown(page)["id"]


def test_what_is_kept_is_shown_in_the_text(server: Served, tabs: Any) -> None:
    page = opened(tabs, server)
    continued(page, server, [user("my sister Ada lives in Oslo"), assistant(REPLY), user("hi")])
    page.keyboard.press("Alt+k")
    page.locator("#log .token").first.wait_for()
    told = server.http.get("/v1/sessions/led/kept").json()["messages"]
    texts = page.locator("#log article .typed").all_text_contents()
    assert texts[:2] == ["my sister Ada lives in Oslo", REPLY]
    assert page.locator("#log .token").count() == sum(len(message["tokens"]) for message in told)
    dropped = sum(token["share"] == 0 for message in told for token in message["tokens"])
    assert page.locator("#log .token.k0").count() == dropped > 0
    assert page.locator("#legend").is_visible()
    page.locator("#ratio").focus()
    page.keyboard.press("End")  # more is dropped, and shown so
    page.wait_for_function(f"() => document.querySelectorAll('#log .token.k0').length > {dropped}")
    page.keyboard.press("Alt+k")
    page.locator("#log .token").first.wait_for(state="detached")
    assert page.locator("#log article strong").first.text_content() == "bold"


MARKDOWN = {
    "a\nb\n\nc": "<p>a<br>b</p><p>c</p>",
    "**b** __b__ *i* _i_ ~~s~~ `c`": "<p><strong>b</strong> <strong>b</strong> <em>i</em> <em>i</em> <del>s</del> "
    "<code>c</code></p>",
    "***both*** 2*3*4 snake_case_name \\*no\\*": "<p><strong><em>both</em></strong> 2*3*4 snake_case_name *no*</p>",
    "# One\n### Three #": '<h3 class="level1">One</h3><h3 class="level3">Three</h3>',
    "- a\n- b\n  - c\n\n  d\n3. e": "<ul><li>a</li><li>b<ul><li>c</li></ul><p>d</p></li></ul>"
    '<ol start="3"><li>e</li></ol>',
    "1. a\n\n2. b\n   c": "<ol><li>a</li><li>b<br>c</li></ol>",
    "```py\n<b>&\n\n# x": '<pre data-language="py" tabindex="0"><code>&lt;b&gt;&amp;\n\n# x</code></pre>',
    "> a\n> - b": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>",
    "|a|b|\n|-|:-:|\n|1|*2*|": '<div class="scroll" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
    "<tbody><tr><td>1</td><td><em>2</em></td></tr></tbody></table></div>",
    "---": "<hr>",
    "<script>x</script> <img src=x>": "<p>&lt;script&gt;x&lt;/script&gt; &lt;img src=x&gt;</p>",
    "[a](javascript:alert(1)) [b](data:text/html,x) ![c](x.png)": "<p>a b c</p>",
    "[a](https://e.org/x_(y)) https://e.org/q.": '<p><a href="https://e.org/x_(y)" target="_blank" '
    'rel="noopener noreferrer">a</a> <a href="https://e.org/q" target="_blank" rel="noopener noreferrer">'
    "https://e.org/q</a>.</p>",
}


def test_markdown_is_shown_and_never_html(server: Served, tabs: Any) -> None:
    page = opened(tabs, server)
    render = """async text => {
        const { markdown } = await import("/page/markdown.js"), root = document.createElement("div");
        root.append(markdown(text));
        return root.innerHTML;
    }"""
    assert {text: page.evaluate(render, text) for text in MARKDOWN} == MARKDOWN
    odd = page.evaluate(
        r"""async () => {
        const { markdown } = await import("/page/markdown.js");
        const parts = ["*", "**", "_", "`", "```\n", "[", "](", ")", "http://a.b", "<img onerror=x>", "javascript:x",
            "\n", "\n\n", "    ", "- ", "1. ", "> ", "|", "|-|-|\n", "#", "a", " ", "\\", "~~", "&lt;", "\u0000", "😀"];
        let seed = 1;
        const draw = n => (seed = (seed * 48271) % 2147483647) % n;
        const tags = new Set(), names = new Set();
        for (let i = 0; i < 2000; i++) {
            const root = markdown(Array.from({ length: draw(40) }, () => parts[draw(parts.length)]).join(""));
            for (const node of root.querySelectorAll("*")) {
                tags.add(node.tagName.toLowerCase());
                node.getAttributeNames().forEach(name => names.add(name));
            }
        }
        for (const part of ["> ", "- ", "**a ", "[a](", "`a``"]) markdown(part.repeat(5000));
        return [[...tags], [...names]];
    }"""
    )
    allowed = "p br h3 hr ul ol li blockquote pre code strong em del a table thead tbody tr th td div"
    assert set(odd[0]) <= set(allowed.split())
    assert set(odd[1]) <= {"class", "start", "href", "target", "rel", "tabindex", "data-language"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everybody_can_use_it(server: Served, browser: Any, size: Any, scheme: str) -> None:
    """No violation that axe knows, nothing wider than the window, and hints that are right there."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tabs = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)

    def check() -> None:
        found = axe.run(page).response["violations"]
        assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    page = opened(tabs, server)
    assert page.get_by_text("on the right").is_visible() == (size is DESKTOP)
    check()
    continued(page, server, [user("my sister Ada lives in Oslo"), assistant(REPLY), user("hi")])
    check()
    page.locator("#kept").click()
    page.locator("#log .token").first.wait_for()
    check()
    page.locator("#list").click()
    page.locator("#names li .erase").first.click()
    page.locator("#names li.sure").wait_for()
    check()
    page.keyboard.press("Escape")
    if size is PHONE:
        assert not page.locator("#cache").is_visible()
        page.locator("#panel").click()
        check()
    assert page.locator("#cache").is_visible()
    tabs.close()


def test_the_prompt_for_a_key_is_for_everybody_too(model: SonicModel, browser: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with serving(model, keys=("secret-key",)) as server:
        tabs = browser.new_context(viewport=PHONE, bypass_csp=True)
        page = tabs.new_page()
        page.goto(server.url)
        page.get_by_label("API key").wait_for()
        assert axe.run(page).response["violations"] == []
        tabs.close()


def test_the_keyboard_reaches_everything(server: Served, tabs: Any) -> None:
    page = opened(tabs, server)
    talk(page, "my sister Ada lives in Oslo")
    page.keyboard.press("Alt+k")
    page.locator("#log .token").first.wait_for()
    page.locator("#text").focus()
    reached = set()
    for _ in range(31):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {
        "kept",
        "list",
        "new",
        "log",
        "Copy",
        "Another reply",
        "text",
        "send",
        "ratio",
        "length",
    } <= reached
    page.keyboard.press("Alt+n")
    page.locator("#log .hint").wait_for()
    assert page.evaluate("document.activeElement.id") == "text"
