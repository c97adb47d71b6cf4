"""Keys that sequences have in common are read once for all of them, and each gets the bits that it has alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkpoints import make_checkpoint
from steps import batch_of, batch_of_one, logits_of, make_runner
from trivet.engine.cpu_runner import CpuRunner

VOCAB = 320
Sequence = tuple[list[int], int, list[int]]  # tokens of the step, the position of the first, block table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("shared") / "m", "qwen3", max_position_embeddings=2560)


@pytest.fixture(scope="module")
def many_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 query heads on one of keys and values: more than the rows of a tile, and no divisor of them."""
    folder = tmp_path_factory.mktemp("shared") / "many"
    shape = {"num_attention_heads": 40, "num_key_value_heads": 1, "hidden_size": 320}
    return make_checkpoint(folder, max_position_embeddings=2560, **shape)


class Prompts:
    """Prompts computed into blocks of one runner; a prompt that begins as another has its blocks there."""

    def __init__(self, runner: CpuRunner) -> None:
        self.runner, self._block = runner, runner.capabilities.block_size
        self._free, self._rng = iter(range(runner.capabilities.num_blocks)), np.random.default_rng(1)

    def make(self, own: int, begin: tuple[list[int], list[int]] = ([], [])) -> tuple[list[int], list[int]]:
        """(ids, block table with room for 40 tokens more) of `begin`, whole blocks, and `own` tokens after it."""
        ids, table = begin
        block = self._block
        assert len(ids) % block == 0
        mine = ids + [int(i) for i in self._rng.integers(VOCAB, size=own)]
        blocks = table[: len(ids) // block] + [next(self._free) for _ in range((own + 40 + block - 1) // block)]
        start = len(ids)
        while start < len(mine):
            chunk = mine[start : start + 200]
            self.runner.collect(self.runner.submit(batch_of_one(chunk, start, VOCAB, blocks)))
            start += len(chunk)
        return mine, blocks


def rows_of(runner: CpuRunner, sequences: list[Sequence]) -> list[bytes]:
    """The bits of all rows' logits, a sequence each."""
    logits = runner.collect(runner.submit(batch_of(sequences, VOCAB))).logits
    ends = np.cumsum([len(ids) for ids, _, _ in sequences])
    return [part.tobytes() for part in np.split(logits, ends[:-1])]


def keys_read(runner: CpuRunner, sequences: list[Sequence]) -> float:
    """Bytes of keys and values that attention read in a step of these sequences."""
    executor = runner._executor
    assert executor is not None
    before = executor.profile()["attention"][2]
    runner.collect(runner.submit(batch_of(sequences, VOCAB)))
    return float(executor.profile()["attention"][2] - before)


def branch_of(common: int) -> int:
    """Tokens of a branch: so many that those on it are better off without the others, or not."""
    return 512 if common == 128 else 192


def members_of(prompts: Prompts, common: int, block: int) -> list[Sequence]:
    """Groups of several sizes, one token and more a sequence, one that has nothing in common, one that is a prompt."""
    trunk = prompts.make(common)
    more = branch_of(common)
    branch = prompts.make(more, trunk)
    members = [prompts.make(own, trunk) for own in (1, 5, 33, 60, 7, 2)]
    members += [prompts.make(own, (branch[0][: (common + more) // block * block], branch[1])) for own in (3, 9)]
    members.append(prompts.make(300))
    sequences: list[Sequence] = [([7 + i] * (1 + i % 3), len(ids), table) for i, (ids, table) in enumerate(members)]
    own, table = prompts.make(10, trunk)
    return [*sequences, ([5] * 20, len(own), table)]


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("common,block", [(128, 32), (416, 32), (1024, 64), (1152, 128), (2112, 64)])
def test_the_same_bits_as_alone(isa: str, folder: Path, kv: str, common: int, block: int) -> None:
    check_the_same_bits(make_runner(folder, precision="int8", kv=kv, block_size=block, num_blocks=200), common, block)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_with_many_heads(isa: str, many_heads: Path, threads: int) -> None:
    check_the_same_bits(make_runner(many_heads, threads=threads, num_blocks=200), 1056, 32)


def check_the_same_bits(runner: CpuRunner, common: int, block: int) -> None:
    assert runner._executor is not None
    runner._executor.set_profiling(True)
    sequences = members_of(Prompts(runner), common, block)
    alone = [rows_of(runner, [sequence])[0] for sequence in sequences]
    order = np.random.default_rng(2).permutation(len(sequences))
    together = rows_of(runner, [sequences[i] for i in order])
    assert [together[int(np.flatnonzero(order == i)[0])] for i in range(len(sequences))] == alone
    read = sum(keys_read(runner, [sequence]) for sequence in sequences)
    per_key = keys_read(runner, [([1], 0, sequences[0][2])])
    spared = (read - keys_read(runner, sequences)) / per_key
    # whole steps of 128 keys: six of the trunk and two of the branch, apart or all eight together
    trunk, branch = common // 128 * 128, (common + branch_of(common)) // block * block // 128 * 128
    assert spared == max(5 * trunk + branch, 7 * trunk) and (spared > 7 * trunk) == (common == 128)


def test_common_keys_are_read_once(folder: Path) -> None:
    runner = make_runner(folder, num_blocks=160)
    assert runner._executor is not None
    runner._executor.set_profiling(True)
    prompts = Prompts(runner)
    trunk = prompts.make(512)
    sequences: list[Sequence] = [([1], len(ids), table) for ids, table in (prompts.make(32, trunk) for _ in range(6))]
    one = keys_read(runner, sequences[:1])
    assert keys_read(runner, sequences) == pytest.approx(one + 5 * one * 33 / 545)
    # others in between, a second trunk: each trunk once
    other = prompts.make(256)
    sequences += [([1], len(ids), table) for ids, table in (prompts.make(32, other) for _ in range(3))]
    per_key = one / 545
    assert keys_read(runner, sequences[::2] + sequences[1::2]) == pytest.approx(per_key * (512 + 6 * 33 + 256 + 3 * 33))


def test_a_few_that_share_much_are_not_held_to_what_all_share(folder: Path) -> None:
    runner = make_runner(folder, num_blocks=160)
    assert runner._executor is not None
    runner._executor.set_profiling(True)
    prompts = Prompts(runner)
    root = prompts.make(128)
    deep = prompts.make(768, root)
    near = [prompts.make(32, deep) for _ in range(3)]
    far = [prompts.make(32, root) for _ in range(2)]
    per_key = keys_read(runner, [([1], len(near[0][0]), near[0][1])]) / (896 + 33)
    sequences: list[Sequence] = [([1], len(ids), table) for ids, table in [near[0], far[0], near[1], far[1], near[2]]]
    assert keys_read(runner, sequences) == pytest.approx(per_key * (896 + 3 * 33 + 128 + 2 * 33))


def test_more_sequences_than_may_share(folder: Path) -> None:
    """Beyond 256 tokens of a step the rest reads its keys alone; nothing else changes."""
    runner = make_runner(folder, num_blocks=400, max_num_seqs=300)
    prompts = Prompts(runner)
    trunk = prompts.make(128)
    sequences: list[Sequence] = []
    for i in range(290):
        sequences.append(([i % 50], 128, [*trunk[1][:4], 20 + i]))
    assert runner._executor is not None
    runner._executor.set_profiling(True)
    alone = [rows_of(runner, [sequences[i]])[0] for i in (0, 255, 256, 289)]
    together = rows_of(runner, sequences)
    assert [together[i] for i in (0, 255, 256, 289)] == alone
    per_key = keys_read(runner, [([1], 0, sequences[0][2])])
    assert keys_read(runner, sequences) / per_key == 290 * 129 - 255 * 128


def test_the_trunk_is_what_its_own_prefill_gives(folder: Path) -> None:
    """The row after a shared trunk equals the last one of the whole prompt computed at once."""
    runner = make_runner(folder, num_blocks=160)
    prompts = Prompts(runner)
    trunk = prompts.make(256)
    sequences: list[Sequence] = [([3 + i], 256, [*trunk[1][:8], 100 + i]) for i in range(4)]
    together = rows_of(runner, sequences)
    for i in range(4):
        whole = logits_of(runner, [*trunk[0], 3 + i], [257], list(range(120, 130)))
        assert together[i] == whole[-1].tobytes()
