"""Convert the official downloads of the benchmarks to one layout, for the programs in datasets/."""
