"""vLLM's worker with a solver's experts in its model: ``--worker-cls bdc.serving.worker.Worker``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.logger import init_logger
from vllm.platforms import current_platform

from bdc.artefacts import sha256_of
from bdc.customize.storage import CONFIG, SolverParts
from bdc.errors import InputError
from bdc.serving.layers import install
from bdc.serving.rows import Rows
from bdc.serving.wire import decode

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_worker import Worker as Base
elif current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Base
else:
    from vllm.v1.worker.gpu_worker import Worker as Base

logger = init_logger(f"vllm.{__name__}")

SOLVER, SALTS = "bdc_solver", "bdc_cache_salts"
"""Where vLLM's ``additional_config`` has the solver's folder, and whether all prompts come with their tickets' salts."""


class Worker(Base):  # type: ignore[misc]
    """Requests that bring rank weights along (`bdc.serving.Gate`) have experts; all others see the base model.

    Raises:
        InputError: the configuration names no solver, the model does not fit it, or tokens of a step would not be in one
            piece.
    """

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        config = self.vllm_config
        _check(config)
        folder = Path(config.additional_config[SOLVER])
        parts = SolverParts.load(folder)
        # vLLM keeps compiled graphs by its configuration, and a folder may hold another solver tomorrow.
        config.additional_config["bdc_fingerprint"] = sha256_of(folder / CONFIG)
        super().load_model(*args, **kwargs)
        stack = parts.stack
        self._rows: Rows = install(
            self.model_runner.get_model(),
            stack,
            parts.customizer().scaling,
            requests=config.scheduler_config.max_num_seqs,
            # Sharded steps are padded to a multiple of the shards.
            tokens=config.scheduler_config.max_num_batched_tokens + config.parallel_config.tensor_parallel_size,
            dtype=config.model_config.dtype,
            device=self.device,
        )
        self._numbers = len(stack.modules) * stack.k * stack.rank
        _place_after_inputs(self.model_runner, self._rows)
        logger.info("%d experts of rank %d beside %d layers", stack.k, stack.rank, len(stack.modules))

    def execute_model(self, scheduler_output: Any) -> Any:
        for request in scheduler_output.finished_req_ids:
            self._rows.drop(request)
        for request in scheduler_output.scheduled_new_reqs:
            try:
                weights = decode(getattr(request.sampling_params, "extra_args", None), self._numbers)
            except InputError as error:  # an exception here would end the engine, and with it all requests
                logger.error("request %s is answered without experts: %s", request.req_id, error)
                weights = None
            self._rows.add(request.req_id, weights)
        return super().execute_model(scheduler_output)


def _check(config: Any) -> None:
    own = config.additional_config
    if not isinstance(own, dict) or SOLVER not in own:
        raise InputError(f'vLLM\'s additional_config names no solver; pass it as {{"{SOLVER}": FOLDER}}')
    if config.cache_config.enable_prefix_caching and not own.get(SALTS):
        raise InputError(
            "cached prefixes of one request would be used for others with other rank weights; pass "
            "enable_prefix_caching=False, or give each prompt the cache_salt of its ticket and say so with "
            f'"{SALTS}": true in additional_config'
        )
    parallel = config.parallel_config
    if getattr(parallel, "use_ubatching", False) or getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        raise InputError(
            "a solver needs the tokens of a step in one piece: no micro-batches, no prefill context parallelism"
        )
    if getattr(parallel, "use_sequence_parallel_moe", False):
        raise InputError(
            "a solver does not go with sequence-parallel experts of a mixture, which cut a step's tokens up"
        )
    if config.speculative_config is not None:
        raise InputError("a solver does not go with speculative decoding, whose drafts it has not been tried with")
    if config.lora_config is not None:
        raise InputError("a solver does not go with vLLM's own LoRA adapters; leave enable_lora out")


def _place_after_inputs(runner: Any, rows: Rows) -> None:
    """Call ``rows.place`` once the runner has put a step's requests in order, whichever of vLLM's two runners it is."""
    first = hasattr(runner, "_prepare_inputs")
    name = "_prepare_inputs" if first else "prepare_inputs"
    prepare = getattr(runner, name)

    def prepare_and_place(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare(scheduler_output, *args, **kwargs)
        if first:
            requests = runner.input_batch.req_ids
            tokens = np.array([scheduler_output.num_scheduled_tokens[request] for request in requests])
        else:
            requests, tokens = prepared.req_ids, np.diff(prepared.query_start_loc_np[: len(prepared.req_ids) + 1])
        rows.place(requests, tokens)
        return prepared

    setattr(runner, name, prepare_and_place)
