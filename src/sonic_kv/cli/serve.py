"""`sonic-kv serve`: a model over HTTP."""

from functools import partial
from typing import TYPE_CHECKING

from sonic_kv.cli.command import Call, Command
from sonic_kv.cli.loading import load_for_decoding, say_adapter
from sonic_kv.cli.options import DecodeOptions
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import ConfigError
from sonic_kv.integrations.options import RayOptions
from sonic_kv.model.options import ModelOptions
from sonic_kv.server.options import ServeOptions
from sonic_kv.session.options import SamplingConfig

if TYPE_CHECKING:
    from sonic_kv.model.model import SonicModel


def _load(options: ModelOptions, compiled: bool) -> "SonicModel":
    """The model; what it lacks is said."""
    model = load_for_decoding(options, compiled=compiled)
    say_adapter(model)
    return model


def run(call: Call) -> None:
    """Serve until interrupted."""
    try:
        from sonic_kv.server.run import model_name, serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'sonic-kv[serve]'") from error

    options, ray_options, given = call.options(ServeOptions), call.options(RayOptions), call.given(RayOptions)
    if given and options.engine != "ray":
        raise ConfigError(f"{min(given)} is an option of engine ray: give --engine ray too, or leave it out")
    budget = call.options(Budget) if call.given(Budget) else None
    model_options, compiled = call.options(ModelOptions), call.options(DecodeOptions).compile
    if compiled and not model_options.device.startswith("cuda"):
        raise ConfigError("--compile of a server is for GPUs: leave it out, or give --packed instead")
    load = partial(_load, model_options, compiled)
    name = model_name(model_options.model)
    compact = SessionConfig(positions="compact") if options.engine == "vllm" else None
    config, sampling = call.options(SessionConfig, compact), call.options(SamplingConfig)
    if options.engine == "ray":
        from sonic_kv.integrations.ray import serve as serve_on_ray

        serve_on_ray(load, name, config, budget, sampling, options, ray_options)
    else:
        serve(load, name, config, budget, sampling, options)


SERVE = Command(
    "serve",
    "serve a model with OpenAI's API and a chat page; dialogues are compressed and survive a restart",
    run,
    {
        "model": ModelOptions,
        "decode": DecodeOptions,
        "serve": ServeOptions,
        "ray": RayOptions,
        "budget": Budget,
        "session": SessionConfig,
        "sampling": SamplingConfig,
    },
    file_only=("sampling",),  # requests bring their own
)
