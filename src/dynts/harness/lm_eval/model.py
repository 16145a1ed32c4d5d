"""The model `dynts`, as lm_eval asks it."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from lm_eval.api.model import LM, CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import simple_parse_args_string

from dynts.config import Sampling
from dynts.engines import ENGINES
from dynts.engines.engine import sampling_seed, trace_id
from dynts.errors import DyntsError, UnsupportedError, check_count
from dynts.harness.answering import Answerer, Asked, greedy_or_drawn
from dynts.harness.settings import read_harness_settings

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

LM_EVAL_DEVICE = "cuda:0"
"""What lm_eval's command gives where no device is asked for."""
COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "top_k")
"""Generation arguments that are whole numbers; the first four are names of one."""
NUMBERS = ("temperature", "top_p")
"""Those that are numbers."""
FOLLOWED = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")
"""Generation arguments that are followed; lm_eval's other names for `max_gen_toks` are too."""

CACHE_SETTINGS = "dynts"
"""Where a file of --use_cache says whose responses it holds; every other key is the hash of a request."""


@register_model("dynts")
class DyntsLM(LM):
    """A model that generates under a budget, with any method, as lm_eval asks it.

    Args:
        batch_size: rows at a time; "auto" for dynts' own default.
        max_batch_size: for "auto", rows at a time.
        settings: `pretrained`, and see `dynts.harness.settings.HarnessSettings`.

    Raises:
        DyntsError: a setting is unknown or wrong; it is named.
        UnsupportedError: the model cannot be compressed exactly.
    """

    def __init__(self, *, batch_size: int | str = 1, max_batch_size: int | None = None, **settings: Any) -> None:
        super().__init__()
        self.batch_size = _rows(batch_size, max_batch_size)
        self.answerer = Answerer(read_harness_settings(settings, "model_args"), self.batch_size)
        self._device = self.answerer.model.device

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Return the model of settings; lm_eval's own options, such as --device, give what is not among them.

        Args:
            arg_dict: the settings.
            additional_config: batch sizes and device, of lm_eval's options or its defaults.
        """
        own = {name: value for name, value in (additional_config or {}).items() if value is not None} | arg_dict
        if own.get("device") == LM_EVAL_DEVICE and not torch.cuda.is_available():
            log.warning("no CUDA device for lm_eval's default device, %s: taking device=auto", own.pop("device"))
        return cls(**own)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """Return the model of settings such as "pretrained=MODEL,budget=5000", see `create_from_arg_obj`.

        Args:
            arg_string: the settings.
            additional_config: as there.
        """
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's, which lm_eval names in its results."""
        return self.answerer.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """Tells prompts that lm_eval caches from those of other tokenizers and templates."""
        source = self.answerer.settings.source
        return "__".join([source.path.replace("/", "__"), *map(str, source.chat.settings().values())])

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm_eval's cache of responses, which knows them by their prompts and generation arguments alone.

        Args:
            cache_hook: of the file that --use_cache names.

        Raises:
            DyntsError: the file holds responses of another model, method or budget.
        """
        super().set_cache_hook(cache_hook)
        responses = cache_hook.dbdict
        if responses is None:
            return
        mine = self.answerer.identity()
        theirs = responses.get(CACHE_SETTINGS, {} if len(responses) else mine)
        if different := [name for name in mine | theirs if mine.get(name) != theirs.get(name)]:
            name = different[0]
            told = f"{name}={theirs.get(name)!r}, not {mine.get(name)!r}" if theirs else "a model other than dynts"
            raise DyntsError(f"--use_cache: the file holds responses of {told}: take a file for each")
        if kept := len(responses) - (CACHE_SETTINGS in responses):
            log.warning("--use_cache: the file holds %d responses; the counters are of those that are made now", kept)
        responses[CACHE_SETTINGS] = mine
        responses.commit()

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the chat template, which lm_eval writes into its results.

        Raises:
            DyntsError: a template is asked for by its name.
        """
        if isinstance(chat_template, str):
            raise DyntsError(
                f"--apply_chat_template {chat_template}: the tokenizer's own template is used: leave the name out"
            )
        return str(self.tokenizer.chat_template or "") if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return messages in the model's chat template, as dynts renders them.

        Args:
            chat_history: the messages, a system message and few-shot examples among them.
            add_generation_prompt: whether the model begins a turn; else it goes on with the last message.

        Raises:
            DyntsError: the chat template fails.
        """
        return self.answerer.render(chat_history, complete=add_generation_prompt)

    def generate_until(self, requests: "list[Instance]") -> list[str]:
        """Return a response for each request, in their order.

        Raises:
            DyntsError: a generation argument cannot be followed, or --use_cache would keep a drawn response, or the
                budget has no room for a context; before anything is generated.
        """
        repeats: Counter[tuple[str | None, int, int]] = Counter()
        asked = []
        for request in requests:
            context, given = request.args
            which = (request.task_name, request.doc_id, request.idx)
            # the same whatever stands beside it, and another one for each repeat
            seed = sampling_seed(torch.initial_seed(), trace_id("/".join(map(str, which)), repeats[which]))
            repeats[which] += 1
            sampling, until = self._generation(given, seed)
            if self.cache_hook.dbdict is not None and sampling.temperature and not given.get("do_sample"):
                raise DyntsError(
                    f"gen_kwargs temperature={sampling.temperature:g} without do_sample: --use_cache would give one "
                    "drawn response to every repeat: add do_sample=true, and drawn responses are not kept"
                )
            asked.append(Asked(context, sampling, until))

        def tell(place: int, response: str) -> None:
            self.cache_hook.add_partial("generate_until", requests[place].args, response)

        return self.answerer.answer(asked, tell)

    def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
        """Refuse.

        Raises:
            UnsupportedError: always.
        """
        raise _no_likelihoods(requests)

    def loglikelihood_rolling(self, requests: "list[Instance]") -> list[float]:
        """Refuse.

        Raises:
            UnsupportedError: always.
        """
        raise _no_likelihoods(requests)

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm_eval adds to `config` in its results: dynts' settings, and what the responses cost."""
        model = self.answerer.model
        return {
            "model_num_parameters": model.num_parameters(),
            "model_dtype": str(model.dtype),
            "model_revision": self.answerer.settings.source.revision,
            "dynts": self.answerer.describe(),
        }

    def _generation(self, given: Mapping[str, Any], seed: int) -> tuple[Sampling, tuple[str, ...]]:
        _check_values(given)
        chosen: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), self.answerer.settings.max_gen_toks))
        if chosen.get("num_beams") == 1:  # what is done anyway, and some tasks say
            del chosen["num_beams"]
        if unknown := {name: value for name, value in chosen.items() if name not in FOLLOWED}:
            asked = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
            raise DyntsError(
                f"gen_kwargs {asked}: dynts cannot follow it; it follows {', '.join(FOLLOWED)}: take it out of the "
                "task's generation_kwargs"
            )
        until = chosen["until"]
        if not all(isinstance(text, str) for text in until):
            raise DyntsError(f"gen_kwargs until={until!r}: give texts")
        return greedy_or_drawn(chosen, self.answerer.vocabulary, seed), tuple(text for text in until if text)


def _check_values(given: Mapping[str, Any]) -> None:
    """Refuse values that lm_eval would read as others: 1.5 tokens as one, any text as true."""
    wanted: dict[str, tuple[type | tuple[type, ...], str]] = {
        **dict.fromkeys(COUNTS, (int, "a whole number")),
        **dict.fromkeys(NUMBERS, ((int, float), "a number")),
        "do_sample": (bool, "true or false"),
    }
    for name, value in given.items():
        if name not in wanted:
            continue
        kinds, words = wanted[name]
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool) != (name == "do_sample")):
            raise DyntsError(f"gen_kwargs {name}={value!r}: give {words}")


def _rows(batch_size: int | str, most: int | None) -> int:
    """Return the rows at a time that lm_eval's two options mean."""
    if isinstance(batch_size, str) and batch_size.split(":")[0] == "auto":
        return most or ENGINES["transformers"].batch
    rows: object = int(batch_size) if isinstance(batch_size, str) and batch_size.isdecimal() else batch_size
    check_count("batch_size", rows, least=1)
    return int(rows)  # type: ignore[call-overload]


def _no_likelihoods(requests: "list[Instance]") -> UnsupportedError:
    task = requests[0].task_name if requests else None
    return UnsupportedError(
        f"task {task} asks for log-likelihoods: they are read off one pass over a given text, in which nothing is "
        "generated and a budget evicts nothing. Take a task that generates (output_type: generate_until), or `--model "
        "hf` for this one"
    )
