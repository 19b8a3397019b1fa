"""Every place where the plugin touches SGLang: one table, checked before anything is served.

SGLang logs and skips a hook that does not apply; here that stops the server. `preflight` runs in the main process for
the hooks of both processes, so that a renamed target or a lost parameter is one sentence within seconds.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable
from importlib import import_module
from typing import Any, NamedTuple

from geomcli.server_patch import transport

MAIN, SCHEDULER = "main", "scheduler"
BEFORE, AFTER, AROUND = "before", "after", "around"
_PACKAGE = "geomcli.server_patch"


class Hook(NamedTuple):
    role: str
    target: str
    kind: str
    body: str  # module:function below geomcli.server_patch
    parameters: tuple[str, ...]  # must exist on the target, self and cls left out
    why: str


_CHAT = "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat"
_COMPLETION = "sglang.srt.entrypoints.openai.serving_completions.OpenAIServingCompletion"
_RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
_RUNNER = "sglang.srt.model_executor.model_runner.ModelRunner"
_BATCH = "sglang.srt.managers.schedule_batch"
_ADDER = "sglang.srt.managers.schedule_policy.PrefillAdder"
_GRAPHS = "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner"
_NATIVE = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"

HOOKS = (
    Hook(MAIN, "sglang.srt.server_args.ServerArgs.add_cli_args", AFTER, "startup:after_add_cli_args", ("parser",),
         "adds the flags"),
    Hook(MAIN, "sglang.srt.server_args.ServerArgs.from_cli_args", AFTER, "startup:after_from_cli_args", ("args",),
         "keeps the parsed flags on the server arguments, which travel to the scheduler"),
    Hook(MAIN, "sglang.srt.server_args.ServerArgs.check_server_args", AFTER, "startup:after_check_server_args", (),
         "refuses configurations that cannot be exact"),
    Hook(MAIN, "sglang.srt.entrypoints.http_server._setup_and_run_http_server", BEFORE,
         "startup:before_run_http_server", ("server_args", "tokenizer_manager", "scheduler_infos"),
         "adds the routes of /v1/attention and checks that every scheduler loaded the plugin"),
    Hook(MAIN, f"{_CHAT}._convert_to_internal_request", AROUND, "requests:around_convert", ("request", "raw_request"),
         "reads the attention fields of a chat request"),
    Hook(MAIN, f"{_COMPLETION}._convert_to_internal_request", AROUND, "requests:around_convert",
         ("request", "raw_request"), "reads the attention fields of a completion request"),
    Hook(MAIN, "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request", AROUND,
         "requests:around_generate_request", ("obj", "request"),
         "hands the options to the scheduler and puts the entries onto its answers"),
    Hook(MAIN, "sglang.srt.managers.tokenizer_manager.TokenizerManager._create_tokenized_object", AFTER,
         "requests:after_create_tokenized", ("obj", "input_ids"), "keeps a prompt's ids"),
    Hook(MAIN, "sglang.srt.managers.tokenizer_manager.TokenizerManager._handle_batch_output", AROUND,
         "arrivals:around_handle_batch_output", ("recv_obj",), "has the entries of a batch of outputs built"),
    Hook(MAIN, "sglang.srt.managers.tokenizer_manager.TokenizerManager._handle_abort_req", AROUND,
         "arrivals:around_handle_abort", ("recv_obj",), "keeps an abort behind the outputs that came before it"),
    Hook(MAIN, f"{_CHAT}._generate_chat_stream", AROUND, "stream:around_stream",
         ("adapted_request", "request", "raw_request"), "puts entries on the chunk that carries their tokens"),
    Hook(MAIN, f"{_COMPLETION}._generate_completion_stream", AROUND, "stream:around_stream",
         ("adapted_request", "request", "raw_request"), "puts entries on the chunk that carries their tokens"),
    Hook(MAIN, f"{_CHAT}._build_chat_response", AFTER, "stream:after_build_response", ("request", "ret", "created"),
         "puts entries on the response object"),
    Hook(MAIN, f"{_COMPLETION}._build_completion_response", AFTER, "stream:after_build_response",
         ("request", "ret", "created"), "puts entries on the response object"),
    Hook(SCHEDULER, f"{_RUNNER}.init_attention_backends", AFTER, "capture:after_init_attention_backends", (),
         "learns the model's shape and refuses backends whose attention it cannot see"),
    Hook(SCHEDULER, "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new", AFTER,
         "capture:after_init_new", ("batch", "model_runner"), "plans which rows of the step are captured"),
    Hook(SCHEDULER, f"{_RUNNER}.forward", AROUND, "capture:around_forward", ("forward_batch",),
         "publishes the plan: eager runners hand the backend a copy of the batch without our attribute"),
    Hook(SCHEDULER, f"{_GRAPHS}.capture_one_shape", AROUND, "graphs:around_capture_one_shape", ("size", "forward"),
         "records each decode graph without capture and with it"),
    Hook(SCHEDULER, f"{_GRAPHS}._make_graph_key", AFTER, "graphs:after_make_graph_key", ("size", "variant_label"),
         "chooses between the two"),
    Hook(SCHEDULER, f"{_NATIVE}.forward_decode", AFTER, "native:after_attention",
         ("q", "k", "v", "layer", "forward_batch", "save_kv_cache"), "computes the statistics of decode rows"),
    Hook(SCHEDULER, f"{_NATIVE}.forward_extend", AFTER, "native:after_attention",
         ("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
         "computes the statistics of the prompt's last row: the first token's attention"),
    Hook(SCHEDULER, f"{_RUNNER}.sample", BEFORE, "capture:before_sample", ("logits_output", "forward_batch"),
         "reads the logits of those who ask, before they are sampled from and changed"),
    Hook(SCHEDULER, f"{_RUNNER}.sample", AFTER, "capture:after_sample", ("logits_output", "forward_batch"),
         "sends the step's statistics along with its logits"),
    Hook(SCHEDULER, transport.COPY_TARGET, BEFORE, "transport:before_copy_to_cpu", (),
         "before SGLang 0.5.20: copies the statistics to the host with the tokens"),
    Hook(SCHEDULER, f"{_RESULTS}.process_batch_result_prefill", BEFORE, "results:before_process",
         ("batch", "result"), "sends the first token's records to whoever builds entries"),
    Hook(SCHEDULER, f"{_RESULTS}.process_batch_result_decode", BEFORE, "results:before_process",
         ("batch", "result"), "sends the tokens' records to whoever builds entries"),
    Hook(SCHEDULER, "sglang.srt.mem_cache.common.release_kv_cache", AROUND, "radix_policy:around_release",
         ("req", "tree_cache"), "credits what a request looked at to the prefix cache's nodes"),
    Hook(SCHEDULER, f"{_BATCH}.ScheduleBatch.check_decode_mem", BEFORE, "eviction:before_check_decode_mem",
         ("selected_indices",), "lets tokens of running requests go before a decode step asks for room"),
    Hook(SCHEDULER, f"{_BATCH}.Req.reset_for_retract", AFTER, "eviction:after_reset_for_retract", (),
         "forgets what had left a request that is computed again"),
    Hook(SCHEDULER, f"{_ADDER}._get_running_request_total_token_offset", AROUND, "eviction:around_token_offset",
         ("req",), "sets no more slots aside than a running request will hold"),
    Hook(SCHEDULER, f"{_ADDER}.add_one_req", AROUND, "eviction:around_add_one_req", ("req",),
         "sets no more slots aside than a new request will hold"),
    Hook(SCHEDULER, "sglang.srt.managers.scheduler.Scheduler.get_init_info", AFTER, "capture:after_get_init_info", (),
         "tells the main process what can be captured"),
)  # fmt: skip

# Names that the bodies import from SGLang: checked like targets.
REQUIRED_NAMES = (
    "sglang.srt.managers.schedule_batch.FINISH_MATCHED_STR",
    "sglang.srt.managers.schedule_batch.Req.update_finish_state",
    "sglang.srt.mem_cache.utils._EVICTION_POLICY_FACTORIES",
    "sglang.srt.mem_cache.common.evict_from_tree_cache",
    "sglang.srt.runtime_context.get_parallel",
    "sglang.srt.runtime_context.get_server_args",
    "sglang.srt.server_args.RADIX_EVICTION_POLICY_CHOICES",
    "sglang.srt.server_args.add_radix_eviction_policy_choices",
    "sglang.srt.state_capturer.routed_experts.get_global_experts_capturer",
)


class HookFailure(Exception):
    """A target that is missing or has lost a parameter."""


def hooks_for(role: str) -> tuple[Hook, ...]:
    return tuple(h for h in needed() if h.role == role)


def needed() -> tuple[Hook, ...]:
    """The hooks that the installed SGLang needs: one that has auxiliary outputs copies them itself."""
    return tuple(h for h in HOOKS if h.target != transport.COPY_TARGET or not transport.has_auxiliary_outputs())


def body_of(hook: Hook) -> Any:
    module, function = hook.body.split(":")
    return getattr(import_module(f"{_PACKAGE}.{module}"), function)


def problem_with(hook: Hook) -> str | None:
    """Why this hook could not work on the installed SGLang, or None."""
    try:
        target = pkgutil.resolve_name(hook.target)
        names = set(inspect.signature(target).parameters)
    except Exception as error:
        return f"{hook.target} ({type(error).__name__}: {error})"
    lost = [p for p in hook.parameters if p not in names]
    return f"{hook.target} has no parameter {', '.join(lost)}" if lost else None


def import_failure(target: str) -> str | None:
    """Why the module of this target cannot be imported, None when it can or does not exist: resolving hides it."""
    names = target.split(".")
    for cut in range(1, len(names)):
        name = ".".join(names[:cut])
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            # A class or function, not a module; or a package that SGLang needs is missing.
            return None if error.name == name else f"{name} cannot be imported ({error})"
        except Exception as error:
            return f"{name} cannot be imported ({type(error).__name__}: {str(error).splitlines()[0]})"
    return None


def preflight(hooks: Iterable[Hook] | None = None) -> None:
    """HookFailure listing every target or name of the installed SGLang that does not fit."""
    hooks = tuple(needed() if hooks is None else hooks)
    if broken := next((found for hook in hooks if (found := import_failure(hook.target))), None):
        raise HookFailure(broken)
    problems = [p for p in map(problem_with, hooks) if p]
    for name in REQUIRED_NAMES:
        try:
            pkgutil.resolve_name(name)
        except Exception as error:
            problems.append(f"{name} ({type(error).__name__})")
    if problems:
        raise HookFailure("; ".join(problems))
