"""No instruction of a tier outside its files, and nothing of a tier that the linker could keep for everybody."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builds import REPO, core_objects

TIERS = ("avx2", "avx512", "avx512_bf16", "amx")

# An instruction is (function, mnemonic, operands). What is legacy SSE2 and x86-64 is for everybody.
TILE = re.compile(r"tdp\w+|tile\w+|(ld|st)tilecfg")
VEX = re.compile(r"v(?!er[rw]$)\w+|k(mov|and|or|xor|xnor|not|add|test|unpck|shift)\w*")
WIDE_REGISTER = re.compile(r"%[yz]mm|%k[0-7]|%tmm")
SSE3_TO_SSE4 = re.compile(
    r"addsubp[sd]|h(add|sub)p[sd]|lddqu|mov(ddup|shdup|sldup)|ph(add|sub)\w+|pabs[bwd]|palignr|pmaddubsw|pmulhrsw|pshufb"
    r"|psign[bwd]|(p?blend)\w+|dpp[sd]|extractps|insertps|movntdqa|mpsadbw|packusdw|pcmp(eqq|gtq|[ei]str[im])"
    r"|p(extr|insr)[bdq]|phminposuw|pm(ax|in)(sb|sd|ud|uw)|pmov[sz]x\w+|pmuldq|pmulld|ptest|round[ps][sd]|crc32\w*"
)
# tzcnt is not here: compilers write `rep bsf` where both mean the same, and disassemblers show it as tzcnt.
BIT_AND_OTHER = re.compile(
    r"andn|bextr|bls(i|r|msk)|bzhi|mulx|p(dep|ext)|rorx|s(ar|hl|hr)x|lzcnt|popcnt|movbe|ad[co]x|aes\w+|sha\d\w+|pclmul\w+"
)
PREFIXES = {"rep", "repz", "repnz", "lock", "bnd", "notrack", "data16", "cs", "ds", "es", "{vex}", "{evex}"}


def beyond_sse2(mnemonic: str, operands: str) -> bool:
    """Whether a plain x86-64 CPU lacks the instruction."""
    kinds = (TILE, VEX, SSE3_TO_SSE4, BIT_AND_OTHER)
    return any(kind.fullmatch(mnemonic) for kind in kinds) or bool(WIDE_REGISTER.search(operands))


def instructions(path: Path) -> Iterator[tuple[str, str, str]]:
    """(function, mnemonic, operands) of each instruction in an object file."""
    listing = subprocess.run(
        ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", "--wide", str(path)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    function = "?"
    for line in listing.splitlines():
        if line.endswith(">:"):
            function = line.split("<", 1)[1][:-2]
        elif "\t" in line:
            words = line.split("\t", 1)[1].split()
            while words and words[0] in PREFIXES:
                words.pop(0)
            if words:
                yield function, words[0], " ".join(words[1:])


def tier_of(source: str) -> str | None:
    """The folder of native/kernels that a source lies in, if it may use more than SSE2."""
    folder = source.removeprefix("native/kernels/").split("/")[0]
    return folder if folder in TIERS else None


@pytest.fixture(scope="module")
def objects() -> dict[str, Path]:
    found = core_objects()
    assert {tier_of(source) for source in found} == {None, *TIERS}, f"sources built: {sorted(found)}"
    return found


@pytest.mark.parametrize(
    ("mnemonic", "operands", "expected"),
    [
        ("addps", "%xmm0,%xmm1", False), ("pmaddwd", "%xmm2,%xmm1", False), ("cvttps2dq", "%xmm0,%xmm0", False),
        ("tzcnt", "%rax,%rcx", False), ("verr", "%ax", False), ("endbr64", "", False), ("shl", "%rax", False),
        ("vaddps", "%xmm0,%xmm1,%xmm2", True), ("vmovups", "(%rdi),%zmm0", True), ("vzeroupper", "", True),
        ("kmovw", "%k1,%eax", True), ("pshufb", "%xmm1,%xmm0", True), ("pmulld", "%xmm1,%xmm0", True),
        ("tdpbssd", "%tmm2,%tmm1,%tmm0", True), ("ldtilecfg", "(%rsp)", True), ("tilerelease", "", True),
        ("popcnt", "%rax,%rax", True), ("mulx", "%rax,%rcx,%rdx", True),
    ],
)  # fmt: skip
def test_an_instruction_is_told_from_sse2(mnemonic: str, operands: str, expected: bool) -> None:
    assert beyond_sse2(mnemonic, operands) is expected


def test_what_everybody_runs_is_sse2(objects: dict[str, Path]) -> None:
    seen = 0
    for source, path in objects.items():
        if tier_of(source) is None:
            for function, mnemonic, operands in instructions(path):
                seen += 1
                assert not beyond_sse2(mnemonic, operands), f"{source}: {mnemonic} {operands} in {function}"
    assert seen > 10_000, f"only {seen} instructions were read: objdump's output is not understood"


def test_tiles_are_in_the_amx_folder_only(objects: dict[str, Path]) -> None:
    with_tiles = {s for s, path in objects.items() if any(TILE.fullmatch(name) for _, name, _ in instructions(path))}
    assert with_tiles, "no tile instruction was found at all"
    assert {tier_of(source) for source in with_tiles} == {"amx"}, f"tile instructions in {sorted(with_tiles)}"


def test_the_linker_cannot_keep_code_of_a_tier_for_everybody(objects: dict[str, Path]) -> None:
    """Of equal weak symbols (inline functions, templates) it keeps one, with whichever flags that was compiled."""
    for source, path in objects.items():
        tier = tier_of(source)
        if tier is None:
            continue
        listing = subprocess.run(
            ["nm", "--defined-only", "--format=posix", str(path)], capture_output=True, text=True, check=True
        ).stdout
        shared = [line.split()[0] for line in listing.splitlines() if line.split()[1] in "ABCDGIRSTuVvWw"]
        foreign = [symbol for symbol in shared if tier not in symbol]
        assert not foreign, f"{source} exports {foreign}: make them static, or name the tier {tier} in them"


def test_a_barrier_stands_before_each_tile_configuration() -> None:
    """GCC 12's `_tile_loadconfig` declares too small an operand, so stores to the rest of it may be dropped."""
    barrier = re.compile(r'asm\s+volatile\s*\(\s*""\s*:\s*:\s*(:|"[^"]*"\s*\([^)]*\)\s*:)\s*"memory"\s*\)')
    calls = 0
    for path in sorted((REPO / "native").rglob("*.[ch]*")):
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.strip().startswith("//")]
        for above, line in zip(["", *lines], lines, strict=False):
            if "_tile_loadconfig(" in line:
                calls += 1
                assert barrier.search(above + line), f"{path.name}: no barrier right before `{line.strip()}`"
    assert calls > 0, "no call of _tile_loadconfig was found"
