"""Long runs that measure and prove: what they found stands in `docs/proofs.md` and `docs/performance.md`."""
