"""The torture run: real receivers on a real Postgres, both killed again and again under load, and a checker that believes
neither. `python -m bench.torture --help`; what it proves stands in `docs/proofs.md`.
"""  # noqa: D205 - one sentence
