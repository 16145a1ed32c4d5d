"""Plugin for vLLM: every request is decoded under the budget, continuous batching and prefix caching included.

`dynts.engines.vllm.plugin.register` is the entry point (`vllm.general_plugins`). The order to read: `settings` here
and in `dynts.engines` (what the user sets), `plugin` (where it enters vLLM), `scheduler` and `blocks` (which blocks a
request holds), `evictor` with `dynts.engines.ledger` and `layouts` (which tokens stay, and how they move), `runner_v1`
and `runner_v2` (where that enters vLLM's two model runners).
"""
