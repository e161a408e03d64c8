"""A compressed dialogue, continued by vLLM: pip install 'sonic-kv[vllm]'."""

import sys

from sonic_kv import Budget, ChatSession, SessionConfig, SonicModel
from sonic_kv.model.loading import TINY

try:
    from vllm import LLM, SamplingParams
except ImportError:
    sys.exit("this example needs vLLM: pip install 'sonic-kv[vllm]'")

FOLDER, QUESTION = "runs/exports", "Where does Ada live?"


def main() -> None:
    model = SonicModel.from_pretrained("tiny")
    chat = ChatSession(model, Budget(compression_ratio=0.5), config=SessionConfig(positions="compact"))
    for text in ("My sister Ada lives in Oslo.", "The code of the garage door is 4711."):
        chat.send(text)
    export = chat.export(FOLDER)
    llm = LLM(
        str(TINY),
        dtype="float32",
        kv_transfer_config={
            "kv_connector": "SonicConnector",
            "kv_connector_module_path": "sonic_kv.integrations.vllm",
            "kv_role": "kv_consumer",
            "kv_connector_extra_config": {"folder": FOLDER},
        },
    )
    new = model.format.user(QUESTION) + model.format.generation_prompt()
    prompt = {"prompt_token_ids": export.token_ids + export.open_ids + new}
    session = {"kv_transfer_params": {"sonic_session": export.digest}}
    sampling = SamplingParams(temperature=0, max_tokens=64, extra_args=session)
    print("vLLM:   ", llm.generate([prompt], sampling)[0].outputs[0].text)
    print("session:", chat.send(QUESTION).text)


if __name__ == "__main__":
    main()
