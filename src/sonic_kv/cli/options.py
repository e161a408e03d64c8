"""Options of the commands themselves."""

from dataclasses import dataclass

from sonic_kv.options import Options, option


@dataclass(frozen=True)
class DecodeOptions(Options):
    """How replies are decoded."""

    compile: bool = option(
        False,
        "compile the decode step: small models decode faster, after a minute of compiling; needs a C++ compiler; "
        "on a GPU, record it as a CUDA graph, of batches too",
    )


@dataclass(frozen=True)
class ChatOptions(Options):
    """The dialogue."""

    system: str | None = option(None, "system prompt")
    load: str | None = option(
        None, "go on with this saved session; its system prompt and settings come with it"
    )


@dataclass(frozen=True)
class OutputOptions(Options):
    """Where the result goes."""

    out: str | None = option(None, "file to write, compressed if it ends in .gz; without it: standard output")


@dataclass(frozen=True)
class ConvertOptions(Options):
    """What is read."""

    skip_malformed: bool = option(
        False, "leave malformed rows out, and count them, instead of stopping there"
    )


@dataclass(frozen=True)
class PlanOptions(Options):
    """What is planned for."""

    tokens: tuple[int, ...] = option(
        (2048, 8192, 32768), "lengths of a dialogue, in tokens", least=1, filled=True
    )
    memory: str = option("24GB", "memory of the device, weights included", size=True)


@dataclass(frozen=True)
class AnswerOptions(Options):
    """Which dialogues, and how many at once."""

    limit: int = option(0, "dialogues, from the first on; 0: all", least=0)
    max_tokens: int = option(768, "a dialogue that has so many tokens gets no further reply", least=1)
    together: int = option(16, "dialogues that are written side by side", least=1, flag=False)
