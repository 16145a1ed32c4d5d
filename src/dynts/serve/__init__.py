"""Serve a model under a KV cache budget with OpenAI's API (`dynts serve`).

A request goes through `app` (key, size, endpoints), `protocol` (its fields), `admission` (prompt, limits), `batching`
(the queue and the thread that generates), `running` (a completion, token by token) and `replies` (the answer).
"""
