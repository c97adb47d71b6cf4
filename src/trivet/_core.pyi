"""
Trivet's native core: kernels, one transformer step a call, packing, sampling, measuring.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray

import types

kernels: types.ModuleType


def allowed_threads() -> int:
    """
    Compute threads unless said: one for each core that the affinity mask and the CPU quota allow.
    """

def num_cores(cpus: Sequence[int], root: str = '/sys/devices/system/cpu') -> int:
    """
    Cores that these CPUs lie on: two that are threads of one core count once.
    """

def cgroup_quota(membership: str = '/proc/self/cgroup', root: str = '/sys/fs/cgroup') -> float:
    """
    CPUs that the quota of this process's cgroups, and of those above them, allows; 0: no quota.
    """

def available_isas() -> list[str]:
    """
    Kernel tiers that this CPU and kernel allow and that passed their self-test, slowest first.
    """

def isa() -> str:
    """The kernel tier in use."""

def isa_notes() -> list[str]:
    """
    Why tiers that this CPU seems to have are not available; usually empty.
    """

def set_isa(name: str) -> None:
    """
    Chooses a kernel tier for the whole process; not to be called while a step runs.
    """

def twin_of(isa: str) -> str:
    """The plain tier that gives the same bits; set_isa takes it, for tests."""

def cpu_has_amx() -> bool:
    """Whether the CPU says that it has tiles for int8 and bf16."""

def amx_permitted() -> bool:
    """Whether the operating system lets this process use tile registers."""

def kv_block_bytes(layers: Sequence[tuple[int, int]], block_size: int, int8: bool) -> int:
    """Bytes of one block over all layers given as (kv heads, head width)."""

class Model:
    """A packed model in a memory map."""

    def __init__(self, buffer: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], spec: dict, tensors: dict) -> None: ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads."""

class Executor:
    """
    Runs steps of one model over its own KV cache, one after the other; at most two are under way.
    """

    def __init__(self, model: object, num_blocks: int, block_size: int, kv_dtype: str, max_tokens: int, num_threads: int) -> None: ...

    @property
    def scratch_bytes(self) -> int:
        """Bytes of activations reserved; touched when first used."""

    def set_profiling(self, on: bool) -> None:
        """Whether steps count the time of each operation."""

    def profile(self) -> dict:
        """
        Operation -> (seconds, calls, bytes of weights or KV that must be read, multiplications and additions), counted while profiling was on.
        """

    @property
    def block_bytes(self) -> int:
        """Bytes of KV of one block over all layers."""

    def touch_kv(self, begin: int, end: int) -> None:
        """
        Brings these bytes of the KV cache, block after block, into memory; what is stored stays.
        """

    def submit(self, token_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], seq_starts: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], context_lens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], block_tables: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)], sample_rows: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], temperature: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], top_k: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], top_p: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], min_p: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], seed: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], sample_idx: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], bias_starts: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], bias_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], bias_values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], mask_idx: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], masks: Annotated[NDArray[numpy.uint32], dict(shape=(None, None), order='C', device='cpu', writable=False)], num_logprobs: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], score_rows: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], score_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], score_num_logprobs: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], logits_rows: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], hidden_rows: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], sampled_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')], logprobs: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], ranks: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')], top_ids: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu')], top_logprobs: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], score_logprobs: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], score_ranks: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')], score_top_ids: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu')], score_top_logprobs: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], hidden: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> int:
        """
        Queues one transformer step and returns its number; arrays as in trivet.engine.step, outputs written in place.
        """

    def wait(self, number: int, timeout_s: float) -> bool:
        """Whether the step is done within so many seconds."""

    def collect(self) -> tuple[float, float]:
        """
        Waits for the oldest step under way; when it began and ended, in monotonic seconds.
        """

def pack_bf16(sources: list, k: int, codes: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], num_threads: int) -> bool:
    """
    Fills `codes` from sources [(uint8 array or None, dtype, num_rows)]; False if a value is NaN or infinite.
    """

def pack_i8(sources: list, k: int, codes: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], scales: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], colsum: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')], num_threads: int) -> bool:
    """
    Fills codes, scales [Np] and colsum [Np]; False if a value is NaN or infinite.
    """

def pack_i4(sources: list, k: int, group: int, codes: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], multipliers: Annotated[NDArray[numpy.int8], dict(shape=(None,), order='C', device='cpu')], scales: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], colsum: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')], num_threads: int) -> bool:
    """
    Fills codes, multipliers, scales [Np] and colsum [Np]; False if a value is NaN or infinite.
    """

def rope_frequencies(head_dim: int, theta: float, scaling: str, factor: float, low_freq_factor: float, high_freq_factor: float, original_max_position: float, frequencies: Annotated[NDArray[numpy.float64], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """
    Fills float64 [head_dim / 2] with radians a position; `scaling` is none, linear or llama3.
    """

def rope_table(frequencies: Annotated[NDArray[numpy.float64], dict(shape=(None,), order='C', device='cpu', writable=False)], part: str, table: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
    """
    Fills float32 [positions, pairs] with the cos or sin (`part`) of position * frequency, all below 2^31.
    """

def sample_rows(logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], *, temperature: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], top_k: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], top_p: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], min_p: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], seed: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], sample_idx: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], position: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], bias_starts: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], bias_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], bias_values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], mask_idx: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], masks: Annotated[NDArray[numpy.uint32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> NDArray[numpy.int32]:
    """
    The token drawn in each row of logits [R, V], int32 [R]; -1 where a logit is NaN or +inf or none is allowed.

    Arguments as in StepBatch; `position` [R] is that of the drawn token. Runs on the calling thread.
    """

def log_probs(logits: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], id: int, num_top: int) -> tuple:
    """
    (log probability of token `id`, its rank, ids and log probabilities of the `num_top` most likely tokens),

    ids -1 past the last possible token. A row with NaN or +inf, or without a finite value: NaN, rank 0, ids -1.
    """

def sampling_noise(seed: int, sample_idx: int, position: int, vocab: int) -> NDArray[numpy.uint32]:
    """
    The noise word of each token, uint32 [V]: u = (word + 0.5) / 2^32, and -ln(-ln(u)) is added to its logit.
    """

def measure_bandwidth(num_bytes: int = 1073741824, num_threads: int = 1) -> dict:
    """
    Memory read speed: {'gb_per_s': the best, 'by_streams': {1: .., 2: .., 4: ..}} in 10^9 bytes a second.

    Best of 5 for 1, 2 and 4 streams a thread. Takes `num_bytes` of memory and about a second a GiB.
    """

def measure_peak(kind: str, num_threads: int = 1, isa: str = '') -> float:
    """
    Operations a second (a multiply-add is two) of the innermost loop for 'int8' or 'bf16', fed from L1, in tier
    `isa` (default: the one in use). Takes about 0.1 s.
    """
