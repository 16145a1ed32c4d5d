"""Where the plugin enters vLLM: it chooses scheduler and worker when an engine is configured with dynts settings."""

import functools
import logging
from dataclasses import asdict
from typing import Any

from dynts.engines.settings import PluginSettings
from dynts.engines.vllm.refusals import check_config, check_request, check_vllm
from dynts.engines.vllm.settings import KEY, LOGGER, PARSER, configured, read_settings
from dynts.errors import DyntsError, UnsupportedError
from dynts.methods import DynTS

logger = logging.getLogger(LOGGER)

WORKERS = {
    "vllm.v1.worker.gpu_worker.Worker": "dynts.engines.vllm.gpu.BudgetGPUWorker",
    "vllm.v1.worker.cpu_worker.CPUWorker": "dynts.engines.vllm.cpu.BudgetCPUWorker",
}


def register() -> None:
    """vLLM's entry point, called in every process; without dynts settings it only makes the reasoning parser known."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.reasoning import ReasoningParserManager

    ReasoningParserManager.register_lazy_module(PARSER, "dynts.engines.vllm.reasoning", "DyntsReasoningParser")
    create = EngineArgs.create_engine_config
    if hasattr(create, "__wrapped__") and create.__module__ == __name__:
        return

    @functools.wraps(create)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = create(self, *args, **kwargs)
        settings = read_settings(config.additional_config)
        if settings is not None:
            activate(config, settings)
        return config

    create_engine_config.__module__ = __name__
    EngineArgs.create_engine_config = create_engine_config


def activate(config: Any, settings: PluginSettings) -> None:
    """Let an engine decode under the budget.

    Args:
        config: the engine's `VllmConfig`; it is changed.
        settings: as the user gave them.

    Raises:
        DyntsError: the predictor cannot be read, or is for another model.
        UnsupportedError: this vLLM, or the engine's configuration, is not supported.
    """
    import vllm

    check_vllm(vllm.__version__, config.use_v2_model_runner)
    check_config(config)
    worker = config.parallel_config.worker_cls
    if worker not in WORKERS:
        raise UnsupportedError(f"dynts knows the workers {', '.join(WORKERS)}, not {worker}: drop --worker-cls")
    settings = _resolve(config, settings)
    config.additional_config = {**config.additional_config, KEY: asdict(settings)}
    config.parallel_config.worker_cls = WORKERS[worker]
    kind = "BudgetAsyncScheduler" if config.scheduler_config.async_scheduling else "BudgetScheduler"
    config.scheduler_config.scheduler_cls = f"dynts.engines.vllm.scheduler.{kind}"
    _guard_requests()
    logger.info(
        "dynts: KV cache budget of %d tokens a request, predictor %s, vLLM's %s model runner",
        settings.budget,
        settings.predictor,
        "V2" if config.use_v2_model_runner else "V1",
    )


def _resolve(config: Any, settings: PluginSettings) -> PluginSettings:
    """The settings as other processes need them, for this model and its engine."""
    settings, predictor = settings.resolve(config.model_config.hf_config)
    policy = settings.policy
    if not policy.protect_question and config.cache_config.enable_prefix_caching:
        raise UnsupportedError(
            f"method {policy.name} scores the question by its hidden states, which a prompt out of the prefix cache "
            f"does not have: use --no-enable-prefix-caching, or method {DynTS.name}"
        )
    if policy.protect_answer and settings.scanner(engine_tokenizer(config.model_config), predictor) is None:
        logger.warning("dynts: no think markers known, all generated tokens are treated as thinking")
    return settings


def engine_tokenizer(model_config: Any) -> Any:
    """Return the tokenizer by vLLM's model configuration; None where vLLM runs without one."""
    from vllm.tokenizers import cached_tokenizer_from_config

    return None if model_config.skip_tokenizer_init else cached_tokenizer_from_config(model_config)


def _guard_requests() -> None:
    """Let the front end refuse requests that do not fit, as it refuses prompts beyond the model's context."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    process = InputProcessor.process_inputs
    if process.__module__ == __name__:
        return

    @functools.wraps(process)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process(self, *args, **kwargs)
        given = self.vllm_config.additional_config.get(KEY)
        if given is not None:
            try:
                check_request(request, configured(given).schedule)
            except DyntsError as error:
                raise VLLMValidationError(str(error)) from error
        return request

    process_inputs.__module__ = __name__
    InputProcessor.process_inputs = process_inputs
