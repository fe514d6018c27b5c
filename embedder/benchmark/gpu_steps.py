"""The steps of a GPU check, in the order they run: what is cheap and tells most comes first, what compiles comes last."""

from embedder.benchmark import gpu_exits, gpu_parity, gpu_peer, gpu_speed
from embedder.benchmark.check_record import Step

STEPS: dict[str, Step] = {
    "env": gpu_parity.env,
    "waits": gpu_parity.waits,
    "parity": gpu_parity.parity,
    "taps": gpu_parity.taps,
    "float8": gpu_parity.float8,
    "fused_parity": gpu_parity.fused_parity,
    "ceilings": gpu_speed.ceilings,
    "memory": gpu_speed.memory,
    "throughput": gpu_speed.throughput,
    "fused": gpu_speed.fused,
    "profile": gpu_speed.profile,
    "exits": gpu_exits.exits,
    "auto": gpu_exits.auto,
    "peer": gpu_peer.peer,
    "compiled": gpu_speed.compiled,
    "compiled_parity": gpu_parity.compiled_parity,
    "rotary_parity": gpu_parity.rotary_parity,
    "rotary": gpu_exits.rotary,
}
OPTIONAL = ("rotary_parity", "rotary")
"""Steps that run only if they are named: all of them together take longer than the default budget."""
