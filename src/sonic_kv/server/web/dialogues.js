// The list of the dialogues that the server keeps: each can be gone on with, or erased.
import { element } from "./panel.js";

const $ = id => document.getElementById(id);
const when = used => new Date(1000 * used).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

/** Open the list when its button is pressed. `call` asks the server, `goOn` turns to a dialogue, `erased` is told of one. */
export function listDialogues(call, goOn, erased) {
  const list = $("dialogues");
  const tell = text => { $("listed").textContent = text; };

  function button(kind, act, ...children) {
    const made = element("button", kind, ...children);
    made.type = "button";
    made.onclick = async () => { try { await act(made); } catch (error) { tell(error.message); } };
    return made;
  }

  function row({ id, title, messages, used }) {
    const name = title || "No words", about = `${messages} messages${used ? `, ${when(used)}` : ""}`;
    const open = button("go", async () => { await goOn(id); list.close(); }, element("b", "", name), element("span", "note", about));
    const erase = button("erase", async () => {
      if (!made.classList.contains("sure")) { ask(true); return; }
      await call(`v1/sessions/${id}`, { method: "DELETE" }).catch(error => { if (error.status !== 404) throw error; });
      const next = made.nextElementSibling ?? made.previousElementSibling;
      made.remove();
      (next?.querySelector(".erase") ?? $("close")).focus();
      tell(`“${name}” is erased.`);
      erased(id);
    });
    const made = element("li", "", open, erase);
    const ask = sure => {
      made.classList.toggle("sure", sure);
      erase.textContent = sure ? "Erase for good" : "Erase";
      erase.setAttribute("aria-label", `${erase.textContent}: ${name}`);
    };
    erase.onblur = () => ask(false);
    ask(false);
    return made;
  }

  $("list").onclick = async () => {
    $("names").replaceChildren();
    tell("");
    list.showModal();
    try {
      const { data } = await (await call("v1/sessions")).json();
      $("names").append(...data.map(row));
      if (!data.length) tell("None yet.");
    } catch (error) { tell(error.message); }
  };
  $("close").onclick = () => list.close();
}
