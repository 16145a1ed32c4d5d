"""Plugin for SGLang: every request is decoded under the budget, radix cache and overlap scheduler included.

`dynts.engines.sglang.plugin.register` is the entry point (`sglang.srt.plugins`). The order to read: `plugin` (where it
enters SGLang, with `refusals` and `handshake`), `scheduler` (what a scheduler does at each step), `evictor` with
`dynts.engines.ledger` (which tokens stay), `admission` (who may start), `worker` (hidden states and positions),
`request` and `streamer` (how a retracted request gets back to where it was).
"""
