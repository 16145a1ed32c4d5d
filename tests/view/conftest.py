import copy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from browser import chromium
from decoding import random_predictor
from dynts.decode.arm import Arm
from dynts.methods import resolve_method
from dynts.methods.rkv import RKV
from dynts.predictor.model import ImportancePredictor
from dynts.traces.traces import Trace
from dynts.view.chosen import tokenize_chosen
from dynts.view.data import TraceView, view_trace
from nasty_trace import CONFIG, NASTY_TRACE
from tiny import tiny_model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that most characters outside ASCII take several tokens."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    special = ["<pad>", "<eos>", "<think>", "</think>"]
    alphabet = ByteLevel.alphabet()
    backend.train_from_iterator(
        ["the sum of one and two is three"] * 3,
        BpeTrainer(vocab_size=280, special_tokens=special, initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    return tiny_model("llama", vocab_size=300, max_position_embeddings=4096)


@pytest.fixture(scope="session")
def predictor() -> ImportancePredictor:
    return random_predictor()


@pytest.fixture(scope="session")
def trace() -> Trace:
    return NASTY_TRACE


@pytest.fixture(scope="session")
def methods(predictor: ImportancePredictor) -> list[Arm]:
    return [
        Arm(resolve_method("dynts"), predictor=predictor),
        Arm(RKV(granularity="native")),
        Arm(resolve_method("window")),
    ]


@pytest.fixture(scope="session")
def shown(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    trace: Trace,
    methods: list[Arm],
    predictor: ImportancePredictor,
) -> TraceView:
    """A view of a trace with all kinds of text in it."""
    tokens = tokenize_chosen(tokenizer, trace)
    return view_trace(
        model, tokenizer, trace, tokens, copy.deepcopy(methods), CONFIG, {"answer": predictor}, name="tiny"
    )


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with chromium(Path(tmp_path_factory.mktemp("profile"))) as running:
        yield running
