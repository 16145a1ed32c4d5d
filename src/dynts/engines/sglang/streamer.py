"""What SGLang's scheduler sends back under the budget."""

from collections.abc import Sequence
from typing import Any, ClassVar

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer

from dynts.engines.replies import cache_usage
from dynts.engines.settings import PluginSettings


class BudgetStreamer(SchedulerOutputStreamer):
    """Sends nothing of a request that is on its way back to where it was retracted.

    Args:
        settings: the plugin's.
    """

    has_additional_customized_info: ClassVar[bool] = True

    def __init__(self, *args: Any, settings: PluginSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings

    def _stream_output_generation(
        self, reqs: Sequence[Req], return_logprob: bool, skip_req: Req | None = None, is_idle_batch: bool = False
    ) -> None:
        # where a replay has just ended there is nothing new
        told = [req for req in reqs if req.replay is None or req.finished()]
        for req in reqs:
            if req.replay is not None and (req.finished() or len(req.output_ids) >= len(req.replay.tokens)):
                req.end_replay()
        super()._stream_output_generation(told, return_logprob, skip_req, is_idle_batch)

    def build_additional_customized_info(self, reqs: Sequence[Req]) -> dict[str, list[Any]]:
        """Tell what the budget did with requests that have ended, in `meta_info` of their answers.

        Args:
            reqs: whose output is sent.
        """
        return {"dynts": [[self._usage(req)] if req.finished() else [] for req in reqs]}

    def _usage(self, req: Req) -> dict[str, Any]:
        return cache_usage(len(req.origin_input_ids), len(req.output_ids_through_stop), self.settings)
