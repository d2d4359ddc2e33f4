"""Several members on one machine: what the demo, the benchmarks and the tests of real processes share."""
