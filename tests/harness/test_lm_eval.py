"""The model `dynts` of lm-evaluation-harness: the texts of `dynts eval`, and what it is told is followed or refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from command_line import run
from dynts.chat.markers import END
from dynts.chat.thinking import answer_of
from dynts.errors import DyntsError, UnsupportedError
from dynts.evaluate.results import read_arm
from dynts.tiny import WEIGHTS
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.traces.folder import TraceFolder

NEEDED = "the tests of its model need lm_eval: pip install 'dynts-kv[lm-eval]'"
lm_eval = pytest.importorskip("lm_eval", reason=NEEDED)

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from sqlitedict import SqliteDict  # noqa: E402

from dynts.harness.lm_eval import DyntsLM  # noqa: E402
from dynts.harness.lm_eval.__main__ import main  # noqa: E402

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TASK = "embedded_chains"
BUDGET = {"budget": 170, "local_window": 50, "retention_ratio": 0.66}
MODEL = {"pretrained": str(WEIGHTS), "device": "cpu"}
DYNTS = {**MODEL, **BUDGET, "predictor": str(WEIGHTS / "answer")}
COUNT = 4


@pytest.fixture
def problems(write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Problems in the current folder, where the task looks for them."""
    made = [make_problem(seed, steps=range(3, 5)) for seed in HELD_OUT[:COUNT]]
    rows = [{"id": str(n), "question": item.question, "answer": item.answer} for n, item in enumerate(made)]
    path = write_lines(rows, "problems.jsonl")
    monkeypatch.chdir(path.parent)
    return path


def evaluate(model_args: dict[str, Any], **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(BENCHMARKS), include_defaults=False)
    chosen = {"apply_chat_template": True, "batch_size": 4, "bootstrap_iters": 0, **options}
    return lm_eval.simple_evaluate("dynts", model_args, [TASK], task_manager=manager, **chosen)


def responses(results: dict[str, Any]) -> list[str]:
    samples = sorted(results["samples"][TASK], key=lambda sample: sample["doc_id"])
    return [response for sample in samples for [response] in sample["resps"]]


@pytest.mark.parametrize("method", ["dynts", "window"])
def test_texts_and_pass_at_1_are_those_of_dynts_eval(
    method: str, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = {"predictor": str(WEIGHTS / "answer")} if method == "dynts" else {}
    schedule = [word for name, value in BUDGET.items() for word in (f"--{name.replace('_', '-')}", value)]
    command = ["eval", "--model", WEIGHTS, "--device", "cpu", "--benchmark", problems, "--method", method, *schedule]
    command += ["--predictor", *predictor.values()] if predictor else []
    greedy = ["--temperature", 0, "--samples", 1, "--max-new-tokens", 1000, "--batch", 3]
    code, _, err = run(monkeypatch, capsys, *command, *greedy, "--out", tmp_path / "results")
    assert code == 0, err
    [folder] = (tmp_path / "results" / "problems").iterdir()
    rows = {row.id: row for row in TraceFolder.open(folder).rows()}
    written = [rows[f"{number}#0"].response for number in range(COUNT)]
    arm = read_arm(folder)

    settings = {**MODEL, **BUDGET, **predictor, "method": method}
    whole = evaluate({**settings, "thinking": False})
    assert responses(whole) == written
    answers = evaluate(settings)
    assert responses(answers) == [(answer_of(text) or "").lstrip() for text in written]
    solved = sum(sample.correct for sample in arm.samples) / COUNT
    assert answers["results"][TASK]["exact_match,last-boxed"] == solved
    assert 0 < solved < 1 or method != "dynts", "there is something to agree on"
    assert answers["config"]["dynts"]["counters"] == {
        "samples": COUNT,
        "finished": sum(sample.finished for sample in arm.samples),
        "without_answer": sum(END not in text for text in written),
        "prompt_tokens": sum(sample.prompt_tokens for sample in arm.samples),
        "generated_tokens": sum(sample.generated_tokens for sample in arm.samples),
        "compactions": sum(sample.compactions for sample in arm.samples),
        "evicted_tokens": sum(before - after for each in arm.samples for _, before, after in each.cache_lengths),
        "peak_tokens": max(sample.peak_tokens for sample in arm.samples),
    }


def test_the_command_writes_results_and_samples(problems: Path, tmp_path: Path) -> None:
    told = ",".join(f"{name}={value}" for name, value in DYNTS.items())
    command = [sys.executable, "-m", "dynts.harness.lm_eval", "--model", "dynts", "--model_args", told]
    command += ["--include_path", str(BENCHMARKS), "--tasks", TASK, "--apply_chat_template", "--batch_size", "auto"]
    command += ["--system_instruction", "a= 1 .", "--limit", "2"]
    done = subprocess.run(
        [*command, "--log_samples", "--output_path", "out"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [found] = (tmp_path / "out").rglob("results_*.json")
    config = json.loads(found.read_text())["config"]
    assert config["model"] == "dynts"
    assert config["dynts"]["settings"].items() >= {"method": "dynts", "batch": 20, **BUDGET}.items()
    assert config["dynts"]["counters"]["samples"] == 2
    assert config["dynts"]["counters"]["compactions"] > 0
    [logged] = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in logged.read_text().splitlines()]
    assert len(samples) == 2
    assert all("<user> a= 1 . <user>" in sample["arguments"]["gen_args_0"]["arg_0"] for sample in samples)


def test_an_error_ends_the_command_in_one_line(
    problems: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ",".join(f"{name}={value}" for name, value in DYNTS.items())
    command = ["--model", "dynts", "--model_args", told, "--include_path", str(BENCHMARKS), "--tasks", TASK]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *command, "--gen_kwargs", "typical_p=0.5"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("dynts: gen_kwargs typical_p=0.5: dynts cannot follow")


def test_responses_are_taken_from_lm_evals_cache(problems: Path, tmp_path: Path) -> None:
    first = evaluate(DYNTS, use_cache=str(tmp_path / "cache"), limit=2)
    again = evaluate(DYNTS, use_cache=str(tmp_path / "cache"), limit=2)
    assert responses(first) == responses(again)
    assert first["config"]["dynts"]["counters"]["samples"] == 2
    assert again["config"]["dynts"]["counters"]["samples"] == 0


def test_a_cache_of_other_responses_is_refused(problems: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    evaluate(DYNTS, use_cache=cache, limit=1)
    with pytest.raises(DyntsError, match="--use_cache: the file holds responses of method='dynts', not 'window'"):
        evaluate({**MODEL, **BUDGET, "method": "window"}, use_cache=cache, limit=1)
    with pytest.raises(DyntsError, match="--use_cache: the file holds responses of max_gen_toks=16384, not 20"):
        evaluate({**DYNTS, "max_gen_toks": 20}, use_cache=cache, limit=1)
    shutil.copytree(WEIGHTS / "future", tmp_path / "predictor")
    trained = {**DYNTS, "predictor": str(tmp_path / "predictor")}
    evaluate(trained, use_cache=str(tmp_path / "of-one"), limit=1)
    shutil.copytree(WEIGHTS / "answer", tmp_path / "predictor", dirs_exist_ok=True)
    with pytest.raises(DyntsError, match="--use_cache: the file holds responses of predictor_files="):
        evaluate(trained, use_cache=str(tmp_path / "of-one"), limit=1)
    with SqliteDict(str(tmp_path / "others_rank0.db"), autocommit=True) as others:
        others["a hash"] = "a response of another model"
    with pytest.raises(DyntsError, match="--use_cache: the file holds responses of a model other than dynts"):
        evaluate(DYNTS, use_cache=str(tmp_path / "others"), limit=1)


def test_drawn_responses_are_not_cached(problems: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"use_cache": str(tmp_path / "cache"), "limit": 1}
    told = "gen_kwargs temperature=0.6 without do_sample: --use_cache would give one drawn response"
    with pytest.raises(DyntsError, match=told):
        evaluate(DYNTS, gen_kwargs={"temperature": 0.6, "do_sample": None}, **given)
    for _ in range(2):
        found = evaluate(DYNTS, gen_kwargs={"temperature": 0.6, "do_sample": True}, **given)
        assert found["config"]["dynts"]["counters"]["samples"] == 1


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bugdet": 170}, "model_args: unknown setting bugdet: the settings are pretrained, .*budget"),
        ({"budget": "many"}, "model_args: budget must be a whole number, got 'many'"),
        ({"retention_ratio": 2}, "retention_ratio must lie between 0 and 1"),
        ({"method": "dints"}, "dints"),
        ({"predictor": None}, "predictor"),
        ({"granularity": "both"}, "granularity must be shared, native or null, got 'both'"),
        ({"thinking": "no"}, "thinking must be true or false, got 'no'"),
        ({"pretrained": None}, "pretrained is missing"),
        ({"template_arg": {"enable_thinking": False}}, "never looks at 'enable_thinking'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": "some"}, "batch_size must be a whole number of at least 1, got 'some'"),
        ({"trust_remote_code": True}, "unknown setting trust_remote_code"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DyntsError, match=message):
        DyntsLM(**{**DYNTS, **settings})


def test_one_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DyntsError, match="one process evaluates"):
        DyntsLM(**DYNTS)


def test_options_of_lm_eval_and_settings() -> None:
    model = DyntsLM.create_from_arg_string(
        f"pretrained={WEIGHTS},method=window,budget=170,local_window=50,device=cpu",
        {"batch_size": "auto:4", "max_batch_size": 7, "device": "cuda:1"},
    )
    assert model.batch_size == 7
    assert model.device == torch.device("cpu"), "settings win"
    shown = model.get_model_info()["dynts"]["settings"]
    assert shown.items() >= {"method": "window", "budget": 170, "predictor": None, "device": "cpu"}.items()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_lm_evals_default_device_is_replaced_where_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "dynts"):
        model = DyntsLM.create_from_arg_obj(
            {"pretrained": str(WEIGHTS), "method": "window", "budget": 170, "local_window": 50}, {"device": "cuda:0"}
        )
    assert model.device == torch.device("cpu")
    assert "cuda:0" in caplog.text


# --- what is asked


@pytest.fixture(scope="module")
def model() -> DyntsLM:
    return DyntsLM(**DYNTS, batch_size=4, max_gen_toks=1000)


@pytest.fixture(scope="module")
def whole() -> DyntsLM:
    return DyntsLM(**MODEL, method="full", batch_size=4, thinking=False)


QUESTIONS = [make_problem(seed, steps=range(3, 4)).question for seed in HELD_OUT[:3]]


def ask(model: DyntsLM, *contexts: str, number: int = 1, **given: Any) -> list[str]:
    requests = [
        Instance("generate_until", {}, (context, given), 0, metadata=("task", place, 1), repeats=number)
        for place, context in enumerate(contexts)
        for _ in range(number)
    ]
    return model.generate_until(requests)


def chat(model: DyntsLM, question: str = QUESTIONS[0]) -> str:
    return model.apply_chat_template([{"role": "user", "content": question}])


def test_a_response_ends_at_the_first_of_its_strings(whole: DyntsLM) -> None:
    [text] = ask(whole, chat(whole))
    words = text.split()
    wanted = [" ".join(words[20:22]), " ".join(words[10:12])]
    first = min(text.find(each) for each in wanted)
    assert ask(whole, chat(whole), until=wanted) == [text[:first]]
    assert ask(whole, chat(whole), until=wanted[0]) == [text[: text.find(wanted[0])]], "one may stand alone"
    assert ask(whole, chat(whole), until=["", "nowhere in it"]) == [text]


def test_strings_count_after_the_thinking(model: DyntsLM, whole: DyntsLM) -> None:
    [answer] = ask(model, chat(model))
    assert answer.startswith(answer.strip()[:3])
    word = answer.split()[0]
    assert word in ask(whole, chat(whole))[0].split(END)[0], "the thinking holds it too"
    assert ask(model, chat(model), until=[word]) == [""]
    last = answer.split()[-2]
    assert ask(model, chat(model), until=[f" {last}"]) == [answer[: answer.find(f" {last}")]]


def test_a_special_token_ends_a_response(tmp_path: Path) -> None:
    """Texts leave it out, so it is found by its id."""
    shutil.copytree(WEIGHTS, tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        values = json.loads((tmp_path / "model" / name).read_text())
        (tmp_path / "model" / name).write_text(json.dumps(values | {"eos_token_id": 0}))
    endless = DyntsLM(pretrained=str(tmp_path / "model"), method="full", device="cpu")
    assert ask(endless, chat(endless), until=["<stop>"], max_gen_toks=400)[0].endswith("}")
    assert endless.answerer.counters.generated_tokens < 400


def test_a_limit_of_tokens_in_all_of_lm_evals_names(whole: DyntsLM) -> None:
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        before = whole.answerer.counters.generated_tokens
        ask(whole, chat(whole), **{name: 9})
        assert whole.answerer.counters.generated_tokens - before == 9


def test_a_thinking_without_end_leaves_no_answer(model: DyntsLM) -> None:
    before = model.answerer.counters.without_answer
    assert ask(model, chat(model), max_gen_toks=9) == [""]
    assert model.answerer.counters.without_answer - before == 1


def test_a_model_that_does_not_think_answers_with_all(model: DyntsLM) -> None:
    context = "<begin><user> a= 1 find a? . <assistant>"
    [text] = ask(model, context, max_gen_toks=3)
    assert text
    assert "<think>" not in text


def test_drawn_texts_depend_on_seed_and_repeat_alone() -> None:
    lms = [DyntsLM(**MODEL, method="full", thinking=False, batch_size=rows) for rows in (1, 5)]
    drawn = {"do_sample": True, "temperature": 3.0, "max_gen_toks": 20}
    contexts = [chat(lms[0], question) for question in QUESTIONS]
    torch.manual_seed(5)
    first = ask(lms[0], *contexts, number=2, **drawn)
    assert len(set(first)) == 6
    assert ask(lms[1], *contexts, number=2, **drawn) == first
    assert ask(lms[1], *contexts, number=2, **drawn, top_k=1) == ask(lms[1], *contexts, number=2, max_gen_toks=20)
    torch.manual_seed(6)
    assert ask(lms[0], *contexts, number=2, **drawn) != first


def test_temperature_without_sampling_is_greedy(whole: DyntsLM) -> None:
    context = chat(whole)
    plain = ask(whole, context, max_gen_toks=20)
    assert ask(whole, context, max_gen_toks=20, do_sample=False, temperature=2.0) == plain
    assert ask(whole, context, max_gen_toks=20, num_beams=1) == plain


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repetition_penalty": 1.2}, r"gen_kwargs repetition_penalty=1.2: dynts cannot follow it; it follows until"),
        ({"num_beams": 4}, "gen_kwargs num_beams=4"),
        ({"do_sample": True}, "do_sample=true needs a temperature above 0"),
        ({"temperature": 0.5, "top_p": 2}, "top_p must lie above 0 and be at most 1"),
        ({"until": [3]}, r"until=\[3\]: give texts"),
        ({"max_gen_toks": 0}, "at least 1, got 0"),
        ({"max_tokens": "many"}, "gen_kwargs max_tokens='many': give a whole number"),
        ({"max_gen_toks": 1.5}, "gen_kwargs max_gen_toks=1.5: give a whole number"),
        ({"temperature": "hot"}, "gen_kwargs temperature='hot': give a number"),
        ({"do_sample": "maybe", "temperature": 0.5}, "gen_kwargs do_sample='maybe': give true or false"),
    ],
)
def test_what_cannot_be_followed_is_named(model: DyntsLM, given: dict[str, Any], message: str) -> None:
    before = model.answerer.counters.samples
    with pytest.raises(DyntsError, match=message):
        ask(model, chat(model), **given)
    assert model.answerer.counters.samples == before


def test_a_context_that_the_budget_has_no_room_for(model: DyntsLM) -> None:
    with pytest.raises(DyntsError, match="budget 170 is too small for a question of"):
        ask(model, chat(model), chat(model, QUESTIONS[0] * 9))


def test_log_likelihoods_are_refused(model: DyntsLM) -> None:
    request = Instance("loglikelihood", {}, ("a", "b"), 0, metadata=("hellaswag", 0, 1))
    for asked in (model.loglikelihood, model.loglikelihood_rolling):
        with pytest.raises(UnsupportedError, match=r"hellaswag asks for log-likelihoods.*--model hf"):
            asked([request])


# --- contexts


def test_contexts_are_read_as_transformers_reads_them(model: DyntsLM, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert model.answerer.encode(model.apply_chat_template(messages)) == expected
    plain = "find a? ."
    assert model.answerer.encode(plain) == tokenizer(plain)["input_ids"]


def test_plain_text_is_continued_as_generate_does(whole: DyntsLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    inputs = tokenizer(QUESTIONS[0], return_tensors="pt")
    out = AutoModelForCausalLM.from_pretrained(WEIGHTS).generate(**inputs, do_sample=False, max_new_tokens=12)
    expected = tokenizer.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert [text.split() for text in ask(whole, QUESTIONS[0], max_gen_toks=12)] == [
        [word for word in expected.split() if not word.startswith("<") or "think" in word]
    ]


def test_a_turn_that_is_begun_is_gone_on_with(model: DyntsLM) -> None:
    messages = [{"role": "user", "content": "a= 1 find a? ."}, {"role": "assistant", "content": "<think>\na 1"}]
    begun = model.apply_chat_template(messages, add_generation_prompt=False)
    assert begun.endswith("<think>\na 1")


def test_a_template_is_not_chosen_by_name(model: DyntsLM) -> None:
    assert model.chat_template(True) == model.tokenizer.chat_template
    with pytest.raises(DyntsError, match="--apply_chat_template tool_use"):
        model.chat_template("tool_use")


def test_other_settings_of_a_chat_are_other_prompts_to_lm_evals_cache(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "model")
    names = {
        DyntsLM(pretrained=str(path), method="full", device="cpu", **more).tokenizer_name
        for path in (WEIGHTS, tmp_path / "model")
        for more in ({}, {"think_end": "</think>", "think_start": "<think>"})
    }
    assert len(names) == 4
