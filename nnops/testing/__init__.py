"""The operator database and the tolerance policy: they feed the tests and the benchmarks."""
