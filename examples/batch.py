"""Answer in several dialogues of different length at once, each from its own compressed cache."""

from sonic_kv import Budget, ChatSession, SamplingConfig, SonicModel
from sonic_kv.session.generate import generate

DIALOGUES = {
    "My brother Tom plays the violin.": "What does Tom play?",
    "I moved to Bergen. My sister Ada stayed in Oslo.": "Where does my sister live?",
    "The wifi password is kestrel.": "What is the wifi password?",
}


def main() -> None:
    model = SonicModel.from_pretrained()
    prompts, caches = [], []
    for fact, question in DIALOGUES.items():
        chat = ChatSession(model, budget=Budget(compression_ratio=0.5))
        chat.extend([{"role": "user", "content": fact}, {"role": "assistant", "content": "Noted."}])
        prompts.append(model.format.user(question) + model.format.generation_prompt())
        caches.append(chat.cache)
    replies = generate(model, prompts, caches, SamplingConfig(max_new_tokens=24))
    for question, reply in zip(DIALOGUES.values(), replies, strict=True):
        print(f"{question} {reply.text} ({reply.finish_reason})")


if __name__ == "__main__":
    main()
